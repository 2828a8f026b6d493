"""Data sets that are not BreakHis, in the shape that everybody knows from BreakHis."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from densenet_flax.common.errors import InputError
from densenet_flax.data.dataset import Dataset
from densenet_flax.data.images import array_cache as arrays
from densenet_flax.data.images.stream import Images, Reader, Row
from densenet_flax.data.sources import folder
from densenet_flax.data.sources import tfds as from_tfds


def open_folder(config: Any, cache: Path, duplicates: str, options: dict[str, Any]) -> Dataset:
    """A folder of tiles, perhaps with a CSV; arguments as for `open_tfds`."""
    if not config.path:
        raise InputError("data.path is empty: give the folder of the images")
    root, table = Path(config.path).expanduser(), config.get("csv", "")
    listing = folder.list_folder(
        root,
        table=Path(table) if table else None,
        patient_pattern=config.get("patient_pattern", ""),
        class_names=tuple(config.get("class_names", ())),
    )
    if listing.unlisted:
        logging.info("%s: %d images in it are not in %s", root, listing.unlisted, table)
    tiles = {tile.file: tile for tile in listing.tiles}
    images, rows, target = _images(
        cache / "folder" / listing.key(root)[:20],
        lambda: [{"file": f} for f in tiles],
        folder.FileReader(root),
        options,
    )
    columns = {
        name: [getattr(tiles[file], name) for file in rows["file"]] for name in listing.columns
    }
    labels = [listing.class_names.index(tiles[file].label) for file in rows["file"]]
    return _dataset(
        config,
        target,
        images,
        rows,
        labels,
        listing.class_names,
        columns,
        duplicates,
        options["stain"],
    )


def open_tfds(config: Any, cache: Path, duplicates: str, options: dict[str, Any]) -> Dataset:
    """An image-classification set of TFDS.

    Args:
      config: the block `data` of a configuration.
      cache: where prepared data is kept.
      duplicates: what is done with doubles; see `arrays.without_doubles`.
      options: size, stain, on_bad_image and storage, as `arrays.open_or_write` takes them.

    Raises:
      InputError: whatever is wrong with the configuration, the data or the disk.
    """
    patient_key = config.get("patient_key", "")
    records = from_tfds.Records(config.name.removeprefix("tfds:"), config.path, patient_key)
    home = cache / "tfds" / f"{records.key[:20]}-{patient_key or 'nobody'}"
    images, rows, target = _images(home, records.rows, records.read, options)
    columns: dict[str, list[str]] = {
        name: rows[name] for name in ("patient", "split") if name in rows
    }
    if not {"train", "test"} <= set(rows["split"]):
        del columns["split"]  # one part with everything is no statement about who tests
    return _dataset(
        config,
        target,
        images,
        rows,
        rows["label"],
        records.class_names,
        columns,
        duplicates,
        options["stain"],
    )


def _images(
    home: Path, rows: Callable[[], list[Row]], read: Reader, options: dict[str, Any]
) -> tuple[Images, dict[str, Any], Path]:
    size, stain, skip = options["size"], options["stain"], options["on_bad_image"] == "skip"
    target = home / "arrays" / arrays.array_name(size, "all", stain)
    if skip and not target.is_dir():  # if it is there, no image was bad
        target = target.with_name(f"{target.name}-skip")
    keys = ("size", "stain", "on_bad_image", "storage")
    images, columns = arrays.open_or_write(
        target, rows, read, **{key: options[key] for key in keys}
    )
    return images, columns, target


def _dataset(
    config: Any,
    target: Path,
    images: Images,
    rows: dict[str, Any],
    labels: list[int],
    class_names: tuple[str, ...],
    columns: dict[str, list[str]],
    duplicates: str,
    stain: dict[str, Any],
) -> Dataset:
    """A data set that is not BreakHis, in the shape that everybody knows from BreakHis."""
    notes = arrays.log_skipped(config.name, rows["skipped"])
    images, rows, kept, found = arrays.without_doubles(
        target, images, rows, labels, duplicates, config.name
    )
    known = {name: np.array(column, dtype=str)[kept] for name, column in columns.items()}
    names = np.array(rows["file"], dtype=str)
    # A patient has one site, so sites are the coarser groups.
    groups: dict[str, np.ndarray] = {
        name: known.pop(name) for name in ("site", "patient") if name in known
    }
    patients_known = "patient" in groups
    if not patients_known:
        groups["patient"] = names
        notes.append("nothing says whose the images are: each counts as a patient of its own")
    return Dataset(
        images=images,
        labels=np.array(labels, np.int32)[kept],
        class_names=class_names,
        files=names,
        groups=groups,
        columns=known,
        name=config.name,
        fingerprint=rows["fingerprint"],
        patients_known=patients_known,
        stain=stain,
        notes=(*notes, *found),
    )
