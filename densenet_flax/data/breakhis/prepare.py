"""BreakHis as raw files to a prepared TFDS data set to one array, each made once and kept."""

import json
from pathlib import Path
from typing import Any

from absl import logging

from densenet_flax.common.errors import InputError
from densenet_flax.common.types import JsonDict
from densenet_flax.data.breakhis import VERSION
from densenet_flax.data.breakhis.layout import source_key
from densenet_flax.data.breakhis.names import class_names
from densenet_flax.data.images import array_cache as arrays
from densenet_flax.data.images.stream import Images, Row
from densenet_flax.data.sources import tfds as from_tfds
from densenet_flax.storage.atomic import write_text, writing

_COLUMNS = ("label", "subtype", "magnification", "slide_id", "case", "sequence", "file")
_SKIPPED = "skipped.json"


def prepare(
    source: Path,
    cache: Path,
    size: tuple[int, int],
    magnification: int,
    *,
    stain: JsonDict | None = None,
    storage: str = "array",
    on_bad_image: str = "error",
) -> tuple[Images, dict[str, Any], Path]:
    """The images of a folder or archive at one size, and a column per thing known about them.

    Everything is kept in `cache/tfds/<key of the source's listing>`: a folder that changed is
    prepared afresh, and two folders never mix.

    Args:
      source: what `find_source` found.
      cache: where to keep things.
      size: (height, width) of the images.
      magnification: which to take, 0 for all.
      stain: normalisation between decoding and resizing, as `resolve_settings` returns it.
      storage: 'array', or 'stream' to decode images when they are asked for.
      on_bad_image: 'error', or 'skip' to leave out what is not a whole image.

    Returns:
      The images, uint8 [N, height, width, 3], mapped read-only or streamed, in the order of their
      file names; the columns as lists, with `fingerprint`, a digest of content, and `skipped`, a
      line for each image left out; and the folder that an array is kept in.
    """
    stain = stain or {}
    chosen = f"{magnification}X" if magnification else "all"
    home = cache / "tfds" / source_key(source)[:20]
    target = home / "arrays" / arrays.array_name(size, chosen, stain)
    if on_bad_image == "skip" and not target.is_dir():  # if it is there, no image was bad
        home = home.with_name(f"{home.name}-skip")
        target = home / "arrays" / target.name
    prepared = home / "breakhis" / VERSION  # where the builder puts it
    if storage == "stream" and not prepared.is_dir():
        _records(source, home, on_bad_image)
    skipped = home / _SKIPPED
    images, columns = arrays.open_or_write(
        target,
        lambda: _rows(_records(source, home, on_bad_image), source, magnification),
        from_tfds.RecordReader(str(prepared), "image"),
        size,
        stain=stain,
        storage=storage,
        on_bad_image=on_bad_image,
        skipped=lambda: json.loads(skipped.read_text()) if skipped.is_file() else [],
    )
    return images, columns, target


def _rows(records: Any, source: Path, magnification: int) -> list[Row]:
    """What is known about each image that is wanted, by file name."""
    subtypes = class_names("subtype")
    rows = []
    for number in range(len(records)):
        record = records[number]
        row = {key: record[key] for key in _COLUMNS} | {"number": number}
        row |= {key: row[key].decode() for key in ("slide_id", "case", "file")}
        row |= {key: int(row[key]) for key in ("label", "magnification", "sequence")}
        row["subtype"] = subtypes[row["subtype"]]
        rows.append(row)
    rows.sort(key=lambda row: row["file"])
    there = sorted({row["magnification"] for row in rows})
    if magnification:
        rows = [row for row in rows if row["magnification"] == magnification]
    if not rows:
        raise InputError(
            f"data.magnification={magnification}: {source} has no such images, only "
            f"{', '.join(map(str, there))}; choose one of these, or 0 for all"
        )
    return rows


def _records(source: Path, home: Path, on_bad_image: str = "error") -> Any:
    """The prepared data set, as a TFDS data source whose images are still encoded."""
    import tensorflow_datasets as tfds  # here, as it takes half a second that later runs save

    from densenet_flax.data.breakhis import breakhis_dataset_builder

    def make() -> Any:
        with writing(home):
            home.mkdir(parents=True, exist_ok=True)
            return breakhis_dataset_builder.Builder(
                data_dir=home, source=source, on_bad_image=on_bad_image
            )

    builder = make()
    if not builder.data_path.exists():
        logging.info("Preparing %s; this is done once", source)
        try:
            with writing(home), from_tfds.quiet_unless_terminal(tfds):
                builder.download_and_prepare(download_dir=home / "downloads")
            if builder.skipped:
                write_text(home / _SKIPPED, json.dumps(builder.skipped))
        except RuntimeError as error:  # how ArrayRecord says that a write failed
            reason = str(error).partition("\n")[0]
            raise InputError(
                f"{home}: cannot write here ({reason}); free some space or choose another directory"
            ) from error
        except InputError:
            # TFDS cannot rename its finished folder if another process was first. That one is
            # whole, as it got its name the same way.
            if not builder.data_path.exists():
                raise
        builder = make()
    return builder.as_data_source(split="train", decoders={"image": tfds.decode.SkipDecoding()})
