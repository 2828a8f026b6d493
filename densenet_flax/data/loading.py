"""From a configuration to a data set."""

import hashlib
import inspect
import os
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from densenet_flax.common.errors import InputError
from densenet_flax.data.breakhis import counts, prepare
from densenet_flax.data.breakhis.layout import find_source
from densenet_flax.data.breakhis.names import MAGNIFICATIONS, patient_groups
from densenet_flax.data.breakhis.names import class_names as class_names_of
from densenet_flax.data.dataset import Dataset
from densenet_flax.data.images import array_cache as arrays
from densenet_flax.data.images.stain_normalization import resolve_settings
from densenet_flax.data.sources import generic as others
from densenet_flax.data.synthetic import breakhis_tree as drawn


def open_dataset(data_config: Any, cache_dir: str | os.PathLike[str]) -> Dataset:
    """Opens the data set of a configuration, preparing it the first time.

    Args:
      data_config: `name` ('breakhis', 'drawn', 'folder' or 'tfds:…'), `path` (a folder, the
        BreakHis archive, or TFDS's folder), `image_size` (height, width), `magnification` (0 for
        all) and `drawn` (parameters of `write_breakhis_tree`). And if there: `labels` ('binary'
        or 'subtype', of BreakHis), `require_complete`, `duplicates` ('keep', 'drop' or 'error'),
        `on_bad_image` ('error' or 'skip'), `storage` ('array': resized once and mapped; 'stream':
        decoded on demand), `stain` (see `resolve_settings`), `csv`, `patient_pattern` and
        `class_names` (of a folder), `patient_key` (of TFDS).
      cache_dir: where prepared data is kept for the next run.

    Raises:
      InputError: whatever is wrong with the configuration, the data or the disk.
    """
    get = data_config.get
    options = {
        "size": _check_size(data_config.image_size),
        "stain": resolve_settings(get("stain")),
        "on_bad_image": arrays.check_choice(
            "data.on_bad_image", get("on_bad_image", "error"), arrays.BAD_IMAGES
        ),
        "storage": arrays.check_choice("data.storage", get("storage", "array"), arrays.STORAGES),
    }
    duplicates = arrays.check_choice(
        "data.duplicates", get("duplicates", "keep"), arrays.DUPLICATES
    )
    if (workers := get("workers", 0)) < 0:
        raise InputError(f"data.workers={workers}: expected 0, for threads, or how many processes")
    cache = Path(cache_dir).expanduser().resolve()
    name = data_config.name
    if name in ("breakhis", "drawn"):
        dataset = _open_breakhis(data_config, cache, duplicates, options)
    elif name == "folder":
        dataset = others.open_folder(data_config, cache, duplicates, options)
    elif name.startswith("tfds:"):
        dataset = others.open_tfds(data_config, cache, duplicates, options)
    else:
        raise InputError(
            f"data.name={name!r}: expected 'breakhis', 'drawn', 'folder' or 'tfds:<name>'"
        )
    for note in dataset.notes:
        logging.warning("%s: %s", dataset.name, note)
    images = np.bincount(dataset.labels, minlength=len(dataset.class_names))
    logging.info(
        "%s: %d images (%s); number of groups: %s; from %s",
        dataset.name,
        len(dataset),
        ", ".join(f"{n} {name}" for n, name in zip(images, dataset.class_names, strict=True)),
        ", ".join(f"{len(np.unique(of))} {group}" for group, of in dataset.groups.items()),
        data_config.path or cache,
    )
    return dataset


def _open_breakhis(config: Any, cache: Path, duplicates: str, options: dict[str, Any]) -> Dataset:
    magnification = config.magnification
    if magnification not in (0, *MAGNIFICATIONS):
        raise InputError(
            f"data.magnification={magnification}: expected 0 (all) or one of "
            f"{', '.join(map(str, MAGNIFICATIONS))}"
        )
    class_names = class_names_of(config.get("labels", "binary"))
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
        find_source(place), cache, options.pop("size"), magnification, **options
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
        groups=patient_groups(rows["subtype"], rows["slide_id"], rows["case"]),
        columns={
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
