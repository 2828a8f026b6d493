"""A folder of tiles: a folder per class, or a CSV that says what each file is."""

import functools
import re
from collections.abc import Sequence
from pathlib import Path

from absl import logging

from densenet_flax.common.errors import InputError
from densenet_flax.data.data_config import DataConfig
from densenet_flax.data.images.array_cache import ImageOptions
from densenet_flax.data.images.formats import IMAGE_SUFFIXES, read_image_file
from densenet_flax.data.images.image_table import ImageTable
from densenet_flax.data.images.stream import Row
from densenet_flax.data.sources.files import list_files, listing_digest
from densenet_flax.data.sources.source import Annotations, Source
from densenet_flax.data.sources.tile_table import Tile, read_tile_table


class FolderSource(Source):
    """The tiles of a folder."""

    def __init__(self, config: DataConfig, cache: Path, options: ImageOptions):
        """Lists the folder; raises an `InputError` as `list_folder` does."""
        if not config.path:
            raise InputError("data.path is empty: give the folder of the images")
        root = Path(config.path).expanduser()
        table = Path(config.csv).expanduser() if config.csv else None
        self._tiles = list_folder(root, table, config.patient_pattern)
        self.class_names = config.class_names or tuple(sorted({tile.label for tile in self._tiles}))
        for tile in self._tiles:
            if tile.label not in self.class_names:
                raise InputError(
                    f"{tile.file}: its class {tile.label!r} is not one of "
                    f"data.class_names={self.class_names}"
                )
        self.read = functools.partial(_read_tile, root)
        paths = {tile.file: tile.path for tile in self._tiles}
        folder = options.cache_folder(cache / "folder" / listing_digest(root, paths)[:20])
        self.array_folder = options.array_folder(folder)

    def rows(self) -> list[Row]:
        """Lists the files by name."""
        return [{"file": tile.file} for tile in self._tiles]

    def annotate(self, table: ImageTable) -> Annotations:
        """Takes labels and patients from the listing, which may change without the images."""
        tile_of_file = {tile.file: tile for tile in self._tiles}
        tiles = [tile_of_file[file] for file in table["file"]]  # some files may have been skipped
        columns = {name: [tile.known[name] for tile in tiles] for name in tiles[0].known}
        labels = [self.class_names.index(tile.label) for tile in tiles]
        return Annotations.from_columns(labels, table["file"], columns)


def _read_tile(root: Path, row: Row) -> bytes:
    return read_image_file(root / row["file"])


def list_folder(root: Path, table: Path | None = None, patient_pattern: str = "") -> Sequence[Tile]:
    """Returns the images of a folder and what is known about each, sorted by file name.

    Args:
      root: the folder. Without `table`, each folder in it is a class.
      table: a CSV; see `read_tile_table`.
      patient_pattern: see `find_patient`. Not with a table that has a column patient.

    Raises:
      InputError: a file, a row or a setting is wrong; the message names it.
    """
    if not root.is_dir():
        raise InputError(f"{root}: no such folder; give the folder of the images as data.path")
    listing = list_files(root)
    listing.check_readable()
    images = listing.images
    if not images:
        raise InputError(
            f"{root}: no images in it; expected files that end in {', '.join(IMAGE_SUFFIXES)}"
        )
    if table is None:
        tiles = [_in_class_folder(root, file, path) for file, path in images.items()]
    else:
        tiles = read_tile_table(table, root, images)
        if len(tiles) < len(images):
            logging.info("%s: %d images are not in %s", root, len(images) - len(tiles), table)
    if patient_pattern:
        if "patient" in tiles[0].known:
            raise InputError(
                "data.patient_pattern: the CSV has a column 'patient' already; use one of the two"
            )
        tiles = [_with_patient(tile, patient_pattern) for tile in tiles]
    return sorted(tiles, key=lambda tile: tile.file)


def find_patient(pattern: str, file: str) -> str:
    """Returns the first group of the first match in a path, or the whole match; '' if none."""
    match = re.search(pattern, file)
    if not match:
        return ""
    return (match.group(1) if match.re.groups else match.group()) or ""


def _in_class_folder(root: Path, file: str, path: Path) -> Tile:
    label, slash, _ = file.partition("/")
    if not slash:
        raise InputError(
            f"{path}: is not in a class folder; expected {root}/<class>/{file}, or a CSV as "
            "data.csv"
        )
    return Tile(file, path, label, {})


def _with_patient(tile: Tile, pattern: str) -> Tile:
    patient = find_patient(pattern, tile.file)
    if not patient:
        raise InputError(
            f"{tile.file}: data.patient_pattern={pattern!r} finds no patient in this name; correct "
            "the pattern or rename the file"
        )
    return tile._replace(known={**tile.known, "patient": patient})
