"""BreakHis: from raw files to a prepared TFDS data set to images of one size."""

import dataclasses
import functools
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import logging

from densenet_flax.common.errors import InputError
from densenet_flax.common.reading import MAX_TEXT_BYTES, read_file
from densenet_flax.data.breakhis import VERSION
from densenet_flax.data.breakhis.counts import describe_difference
from densenet_flax.data.breakhis.layout import find_source, list_source
from densenet_flax.data.breakhis.name_list import annotate_names
from densenet_flax.data.breakhis.names import CLASS_NAMES, class_names, parse_name
from densenet_flax.data.data_config import DataConfig
from densenet_flax.data.images.array_cache import ImageOptions
from densenet_flax.data.images.image_table import ImageTable
from densenet_flax.data.images.stream import Row
from densenet_flax.data.sources import tfds_files
from densenet_flax.data.sources.files import listing_digest
from densenet_flax.data.sources.source import Annotations, FileSource
from densenet_flax.storage.atomic import write_text, writing
from densenet_flax.storage.checksums import is_intact, write_checksums

_SKIPPED = "skipped.json"


class BreakHisSource(FileSource):
    """The images of an archive, or below any folder above them, with BreakHis's names.

    Everything is kept in `<cache>/tfds/<key of the listing>`: a folder that changed is prepared
    again, and two folders never mix.
    """

    def __init__(self, path: Path, config: DataConfig, cache: Path, options: ImageOptions):
        """Finds the images; if they are to be streamed, also prepares their records.

        Raises:
          InputError: there are no images, one is bad, or the cache cannot be written.
        """
        self._path, self._config, self._options = path, config, options
        self._raw_files = find_source(path)
        selection = f"{config.magnification}X" if config.magnification else "all"
        listing = list_source(self._raw_files)
        self._left_out = listing.left_out
        folder = cache / "tfds" / listing_digest(self._raw_files, listing.images)[:20]
        self._folder = options.cache_folder(folder, selection)
        self.array_folder = options.array_folder(self._folder, selection)
        self.class_names = class_names(config.labels)
        self._records = self._folder / "breakhis" / VERSION  # where the builder puts them
        self.read = functools.partial(tfds_files.read_record_image, str(self._records), "image")
        # An array is prepared with its records; streaming needs them without it.
        if options.storage == "stream" and not self._are_prepared:
            self._prepare_records()

    @functools.cached_property  # they are read to be checked
    def _are_prepared(self) -> bool:
        return is_intact(self._records)

    def rows(self) -> list[Row]:
        """Lists the images of the chosen magnification by file name."""
        records = self._prepare_records()
        rows: list[Row] = []
        for number in range(len(records)):
            with tfds_files.read_errors(self._records):
                file = records[number]["file"].decode()
            name = parse_name(file)
            assert name is not None  # the builder accepts no other names
            label = CLASS_NAMES.index(name.label)
            row = {**dataclasses.asdict(name), "label": label, "file": file, "number": number}
            rows.append(row)
        rows.sort(key=lambda row: row["file"])
        magnification = self._config.magnification
        chosen = [row for row in rows if magnification in (0, row["magnification"])]
        if not chosen:
            known = sorted({row["magnification"] for row in rows})
            raise InputError(
                f"data.magnification={magnification}: {self._raw_files} has no such images, only "
                f"{', '.join(map(str, known))}; choose one of these, or 0 for all"
            )
        return chosen

    def skipped(self) -> Sequence[str]:
        """Returns a line for each image that is not in the records."""
        path = self._folder / _SKIPPED
        if not os.path.lexists(path):
            return ()
        data = read_file(path, max_bytes=MAX_TEXT_BYTES)
        try:
            lines = json.loads(data)
            if not isinstance(lines, list) or not all(isinstance(line, str) for line in lines):
                raise ValueError("not a list of lines")
        except (ValueError, RecursionError) as error:
            advice = f"remove {self._folder}, to prepare the images again"
            raise InputError(f"{path}: cannot be read ({error}); {advice}") from error
        return lines

    def annotate(self, table: ImageTable) -> Annotations:
        """Takes labels, patients and columns from the file names."""
        config = self._config
        annotations = annotate_names(table["file"], config.labels, self._path)
        if config.name != "breakhis":  # drawn tiles are as many as they were asked to be
            return annotations
        annotations = dataclasses.replace(
            annotations,
            provenance=dataclasses.replace(annotations.provenance, left_out=self._left_out),
        )
        tiles = zip(table["subtype"], table["magnification"], strict=True)
        difference = describe_difference(tiles, config.magnification)
        if not difference:
            return annotations
        if config.require_complete:
            raise InputError(
                f"{self._path}: not all of BreakHis: {difference}; complete it, or set "
                "data.require_complete=False"
            )
        total, _, incomplete = difference.partition("; ")
        provenance = dataclasses.replace(annotations.provenance, incomplete=incomplete)
        return dataclasses.replace(
            annotations, provenance=provenance, notes=(f"not all of BreakHis: {total}",)
        )

    def _prepare_records(self) -> Sequence[tfds_files.Record]:
        """Opens the prepared TFDS data set, prepared first if that was not done before."""
        are_prepared = self._are_prepared  # before TFDS reads what may be damaged
        builder = self._open_builder()
        if not are_prepared and not builder.data_path.exists():
            logging.info("Preparing %s; this is done once", self._raw_files)
            try:
                with writing(self._folder), tfds_files.quiet_unless_terminal():
                    builder.download_and_prepare(download_dir=self._folder / "downloads")
                if builder.skipped:
                    write_text(self._folder / _SKIPPED, json.dumps(builder.skipped))
                write_checksums(self._records)
            except RuntimeError as error:  # ArrayRecord's way to say that a write failed
                reason = str(error).partition("\n")[0]
                raise InputError(
                    f"{self._folder}: cannot write here ({reason}); free some space or choose "
                    "another directory"
                ) from error
            except InputError:
                # TFDS cannot rename its finished folder if another process was first. The other
                # folder is complete, as it got its name in the same way.
                if not builder.data_path.exists():
                    raise
        # Prepared since it was opened: by this process, or by another one just now.
        if not builder.info.splits:
            builder = self._open_builder()
        return tfds_files.open_split(builder, "train", "image")

    def _open_builder(self) -> Any:
        from densenet_flax.data.breakhis.breakhis_dataset_builder import Builder

        with writing(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
            return Builder(
                data_dir=self._folder,
                source=self._raw_files,
                on_bad_image=self._options.on_bad_image,
                bits=self._options.bits,
            )
