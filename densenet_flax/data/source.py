"""From a configuration to arrays: the data set in memory."""

import hashlib
import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from densenet_flax.data import arrays, drawn, folder, from_tfds, prepare
from densenet_flax.data.batching import batches, check_batch_size, epoch_order
from densenet_flax.data.breakhis import counts, files
from densenet_flax.data.dataset import GROUPS, Dataset
from densenet_flax.data.stain import resolve
from densenet_flax.errors import InputError

__all__ = [
    "GROUPS",
    "Dataset",
    "batches",
    "check_batch_size",
    "epoch_order",
    "open_dataset",
]


def open_dataset(data_config: Any, cache_dir: str | os.PathLike[str]) -> Dataset:
    """Opens the data set of a configuration, preparing it the first time.

    Args:
      data_config: `name` ('breakhis', 'drawn', 'folder' or 'tfds:…'), `path` (a folder, the
        BreakHis archive, or TFDS's folder), `image_size` (height, width), `magnification` (0 for
        all) and `drawn` (parameters of `write_breakhis_tree`). And if there: `labels` ('binary'
        or 'subtype', of BreakHis), `require_complete`, `duplicates` ('keep', 'drop' or 'error'),
        `on_bad_image` ('error' or 'skip'), `stain` (see `stain.resolve`), `csv`,
        `patient_pattern` and `class_names` (of a folder), `patient_key` (of TFDS).
      cache_dir: where prepared data is kept for the next run.

    Raises:
      InputError: whatever is wrong with the configuration, the data or the disk.
    """
    get = data_config.get
    options = {
        "size": _check_size(data_config.image_size),
        "stain": resolve(get("stain")),
        "on_bad_image": arrays.check_choice(
            "data.on_bad_image", get("on_bad_image", "error"), arrays.BAD_IMAGES
        ),
    }
    duplicates = arrays.check_choice(
        "data.duplicates", get("duplicates", "keep"), arrays.DUPLICATES
    )
    cache = Path(cache_dir).expanduser().resolve()
    name = data_config.name
    if name in ("breakhis", "drawn"):
        dataset = _open_breakhis(data_config, cache, duplicates, options)
    elif name == "folder":
        dataset = _open_folder(data_config, cache, duplicates, options)
    elif name.startswith("tfds:"):
        dataset = _open_tfds(data_config, cache, duplicates, options)
    else:
        raise InputError(
            f"data.name={name!r}: expected 'breakhis', 'drawn', 'folder' or 'tfds:<name>'"
        )
    for note in dataset.notes:
        logging.warning("%s: %s", dataset.name, note)
    shares = np.bincount(dataset.labels, minlength=len(dataset.class_names))
    logging.info(
        "%s: %d images of %d patients (%s) from %s",
        dataset.name,
        len(dataset),
        len(np.unique(dataset.patients(dataset.groups[-1 if "patient" in dataset.groups else 0]))),
        ", ".join(f"{n} {name}" for n, name in zip(shares, dataset.class_names, strict=True)),
        data_config.path or cache,
    )
    return dataset


def _open_breakhis(config: Any, cache: Path, duplicates: str, options: dict[str, Any]) -> Dataset:
    magnification = config.magnification
    if magnification not in (0, *files.MAGNIFICATIONS):
        raise InputError(
            f"data.magnification={magnification}: expected 0 (all) or one of "
            f"{', '.join(map(str, files.MAGNIFICATIONS))}"
        )
    class_names = files.class_names(config.get("labels", "binary"))
    if config.name == "drawn":
        place = _draw(config.drawn, cache)
    elif config.path:
        place = Path(config.path)
    else:
        raise InputError(
            "data.path is empty: give the folder that holds BreaKHis_v1, or the archive, with "
            "--config.data.path=..."
        )
    images, rows, target = prepare.prepare(
        files.find_source(place), cache, options.pop("size"), magnification, **options
    )
    notes = arrays.log_skipped(config.name, rows["skipped"])
    if config.name == "breakhis":
        pairs = zip(rows["subtype"], rows["magnification"], strict=True)
        off = counts.compare(pairs, magnification)
        if off and config.get("require_complete", False):
            raise InputError(
                f"{place}: not all of BreakHis: {off}; complete it, or set "
                "data.require_complete=False"
            )
        notes += [f"not all of BreakHis: {off}"] if off else []
    labels = (
        rows["label"] if len(class_names) == 2 else list(map(class_names.index, rows["subtype"]))
    )
    images, rows, kept, found = arrays.without_doubles(
        target, images, rows, labels, duplicates, config.name
    )
    return Dataset(
        images=images,
        labels=np.array(labels, np.int32)[kept],
        class_names=class_names,
        files=np.array(rows["file"], dtype=str),
        metadata={
            "subtype": np.array(rows["subtype"], dtype=str),
            "magnification": np.array(rows["magnification"], np.int32),
            "slide_id": np.array(rows["slide_id"], dtype=str),
            "case": np.array(rows["case"], dtype=str),
            "sequence": np.array(rows["sequence"], np.int32),
        },
        name=config.name,
        fingerprint=rows["fingerprint"],
        stain=options["stain"],
        notes=(*notes, *found),
    )


def _open_folder(config: Any, cache: Path, duplicates: str, options: dict[str, Any]) -> Dataset:
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

    def read(row: arrays.Row) -> bytes:
        path = tiles[row["file"]].path
        try:
            return path.read_bytes()
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror or error})") from error

    images, rows, target = _arrays(
        cache / "folder" / listing.key(root)[:20],
        lambda: [{"file": f} for f in tiles],
        read,
        options,
    )
    columns = {
        name: [getattr(tiles[file], name) for file in rows["file"]] for name in listing.columns
    }
    labels = [listing.class_names.index(tiles[file].label) for file in rows["file"]]
    return _other(
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


def _open_tfds(config: Any, cache: Path, duplicates: str, options: dict[str, Any]) -> Dataset:
    patient_key = config.get("patient_key", "")
    records = from_tfds.Records(config.name.removeprefix("tfds:"), config.path, patient_key)
    home = cache / "tfds" / f"{records.key[:20]}-{patient_key or 'nobody'}"
    images, rows, target = _arrays(home, records.rows, records.read, options)
    columns: dict[str, list[str]] = {
        name: rows[name] for name in ("patient", "split") if name in rows
    }
    if not {"train", "test"} <= set(rows["split"]):
        del columns["split"]  # one part with everything is no statement about who tests
    return _other(
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


def _arrays(
    home: Path,
    rows: Callable[[], list[arrays.Row]],
    read: Callable[[arrays.Row], bytes],
    options: dict[str, Any],
) -> tuple[np.ndarray, dict[str, Any], Path]:
    size, stain, on_bad_image = options["size"], options["stain"], options["on_bad_image"]
    target = home / "arrays" / arrays.array_name(size, "all", stain)
    if on_bad_image == "skip" and not target.is_dir():  # if it is there, no image was bad
        target = target.with_name(f"{target.name}-skip")
    if not target.is_dir():
        arrays.write(target, rows(), read, size, stain=stain, on_bad_image=on_bad_image)
    return *arrays.load(target), target


def _other(
    config: Any,
    target: Path,
    images: np.ndarray,
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
    patients_known = "patient" in known
    if not patients_known:
        notes.append("nothing says whose the images are: each counts as a patient of its own")
    patient = known.setdefault("patient", names)
    kept_labels = np.array(labels, np.int32)[kept]
    return Dataset(
        images=images,
        labels=kept_labels,
        class_names=class_names,
        files=names,
        metadata=known
        | {
            "subtype": np.array(class_names, dtype=str)[kept_labels],
            "magnification": np.zeros(len(names), np.int32),
            "slide_id": patient,
            "case": patient,
            "sequence": np.arange(len(names), dtype=np.int32),
        },
        name=config.name,
        fingerprint=rows["fingerprint"],
        patients_known=patients_known,
        stain=stain,
        notes=(*notes, *found),
    )


def _check_size(size: Any) -> tuple[int, int]:
    sides = tuple(size) if isinstance(size, (tuple, list)) else ()
    if len(sides) != 2 or not all(isinstance(side, int) and side > 0 for side in sides):
        raise InputError(f"data.image_size={size}: expected (height, width) in pixels")
    return sides


def _draw(parameters: Any, cache: Path) -> Path:
    """Draws the tiles into a folder of the cache that their parameters name."""
    wanted = {key: parameters[key] for key in parameters}
    known = list(inspect.signature(drawn.write_breakhis_tree).parameters)[1:]
    for stranger in wanted.keys() - set(known):
        raise InputError(f"data.drawn.{stranger}: no such parameter; there are {', '.join(known)}")
    described = repr((drawn.VERSION, sorted(wanted.items())))
    key = hashlib.sha256(described.encode()).hexdigest()[:16]
    return drawn.write_breakhis_tree(cache / "drawn" / key, **wanted)
