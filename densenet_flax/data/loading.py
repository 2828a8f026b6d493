"""From a configuration to a data set."""

import hashlib
import os
from pathlib import Path

import numpy as np
from absl import logging

from densenet_flax.common.errors import InputError
from densenet_flax.data.data_config import DataConfig
from densenet_flax.data.dataset import Dataset
from densenet_flax.data.images.array_cache import ImageOptions
from densenet_flax.data.images.duplicates import drop_duplicates
from densenet_flax.data.images.stain_normalization import resolve_settings
from densenet_flax.data.sources.arrays import ArraysSource
from densenet_flax.data.sources.breakhis import BreakHisSource
from densenet_flax.data.sources.folder import FolderSource
from densenet_flax.data.sources.source import Source
from densenet_flax.data.sources.tfds_source import TfdsSource
from densenet_flax.data.synthetic.breakhis_tree import VERSION, write_breakhis_tree
from densenet_flax.data.tile_field import tile_field


def open_dataset(config: DataConfig, cache_dir: str | os.PathLike[str]) -> Dataset:
    """Opens the data set of a configuration; prepared once, it is kept in `cache_dir`.

    Raises:
      InputError: whatever is wrong with the configuration, the data or the disk.
    """
    cache = Path(cache_dir).expanduser().resolve()
    options = image_options(config)
    # The source annotates images in each run, and not once when they are prepared: a CSV, a pattern
    # or the kind of labels may change while the images stay the same.
    source = _make_source(config, cache, options)
    prepared = source.prepare(options)
    skipped, notes = prepared.table.skipped, []
    for line in skipped:
        logging.warning("%s: left out: %s", config.name, line)
    if skipped:
        notes = [f"{len(skipped)} image(s) could not be used and were left out: {skipped[0]}"]
    annotations = source.annotate(prepared.table)
    prepared, rows, duplicate_notes = drop_duplicates(
        prepared, annotations.labels, config.duplicates, config.name
    )
    dataset = Dataset(
        images=prepared.images,
        labels=np.array(annotations.labels, np.int32)[rows],
        class_names=source.class_names,
        files=np.array(prepared.table["file"], str),
        groups={name: group[rows] for name, group in annotations.groups.items()},
        columns={name: column[rows] for name, column in annotations.columns.items()},
        name=config.name,
        fingerprint=prepared.table.fingerprint,
        patients_known=annotations.patients_known,
        stain=options.stain,
        field=tile_field(config, prepared.table, annotations),
        notes=(*notes, *annotations.notes, *duplicate_notes),
        # Copies in several subsets are an error only where nothing was published on the data.
        contents=np.array(prepared.table["content"], str)
        if config.name in ("arrays", "folder") and not config.earlier_rules
        else None,
        provenance=annotations.provenance,
        awaits_test=config.name == "arrays",
    )
    _log_summary(dataset, config.path or cache)
    return dataset


def image_options(config: DataConfig) -> ImageOptions:
    """How a configuration prepares images; InputError for bad stain settings."""
    return ImageOptions(
        config.image_size,
        resolve_settings(config.stain),
        config.storage,
        config.on_bad_image,
        config.bits,
    )


def _make_source(config: DataConfig, cache: Path, options: ImageOptions) -> Source:
    if config.name == "arrays":
        return ArraysSource(config)
    if config.name == "folder":
        return FolderSource(config, cache, options)
    if config.name.startswith("tfds:"):
        return TfdsSource(config, cache, options)
    if config.name == "drawn":
        # In a folder that the parameters name, so that other tiles are never taken for these.
        digest = hashlib.sha256(repr((VERSION, config.drawn)).encode()).hexdigest()
        tree = write_breakhis_tree(cache / "drawn" / digest[:16], config.drawn)
        return BreakHisSource(tree, config, cache, options)
    if not config.path:
        raise InputError(
            "data.path is empty: give the folder that holds BreaKHis_v1, or the archive, with "
            "--config.data.path=..."
        )
    return BreakHisSource(Path(config.path), config, cache, options)


def _log_summary(dataset: Dataset, location: object) -> None:
    for note in dataset.notes:
        logging.warning("%s: %s", dataset.name, note)
    images = np.bincount(dataset.labels, minlength=len(dataset.class_names))
    patients = ", ".join(f"{len(np.unique(group))} by {k}" for k, group in dataset.groups.items())
    logging.info(
        "%s: %d images (%s); patients: %s; from %s",
        dataset.name,
        len(dataset),
        ", ".join(f"{n} {name}" for n, name in zip(images, dataset.class_names, strict=True)),
        patients.replace(" by patient", ""),
        location,
    )
