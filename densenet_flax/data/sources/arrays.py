"""Images that a program handed over, kept below a work directory, so that a run can be resumed.

    data/train, data/validation, data/test

Each is a folder of `prepare_images` and holds, beside the pixels, labels, patients and, of images
that came from files, their paths. Test images are given after training and may be exchanged.
"""

import dataclasses
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int

from densenet_flax.common.errors import InputError
from densenet_flax.data.data_config import DataConfig
from densenet_flax.data.dataset import Provenance
from densenet_flax.data.images.array_cache import (
    ImageOptions,
    PreparedImages,
    content_digest,
    join_prepared,
    prepare_images,
    stream_folder,
)
from densenet_flax.data.images.formats import read_image_file
from densenet_flax.data.images.image_table import ImageTable
from densenet_flax.data.images.inputs import read_pixels
from densenet_flax.data.images.stream import Row
from densenet_flax.data.sources import patients
from densenet_flax.data.sources.image_set import SUBSETS, ImageSet
from densenet_flax.data.sources.similar_names import unify_names
from densenet_flax.data.sources.source import Annotations, Source
from densenet_flax.storage.checksums import DamagedFiles, check_files


class ArraysSource(Source):
    """The images below a folder that `write_subset` wrote."""

    def __init__(self, config: DataConfig):
        """Finds the subsets; raises an `InputError` if there are none."""
        self._root = Path(config.path).expanduser()
        self._folders = [folder for name in SUBSETS if _is_there(folder := self._root / name)]
        if not config.path or not self._folders:
            raise InputError(
                f"data.path={config.path}: no images that a program handed over; "
                "data.name='arrays' is set by densenet_flax.fine_tune(images, labels), which keeps "
                "them in the folder data of the work directory"
            )
        self.class_names = config.class_names
        self._similar_names = config.similar_names

    def prepare(self, options: ImageOptions) -> PreparedImages:
        """Opens the images of all subsets, one subset behind the other."""
        return join_prepared([_open(folder, options) for folder in self._folders], self._root)

    def annotate(self, table: ImageTable) -> Annotations:
        """Takes labels and patients from the table."""
        split = np.array(table["split"])
        patient_of_file = dict(zip(table["file"], table["patient"], strict=True))
        given = [patient for patient in patient_of_file.values() if patient]
        unified = iter(unify_names(given, self._similar_names, "patients"))
        known = {
            "patient": [next(unified) if name else file for file, name in patient_of_file.items()],
            "split": table["split"],
        }
        if "site" in table.columns:
            known["site"] = unify_names(table["site"], self._similar_names, "sites")
        subsets = [folder.name for folder in self._folders]
        unknown = set(split[np.array(table["patient"]) == ""].tolist())
        without = [name for name in subsets if name in unknown]
        return dataclasses.replace(
            Annotations.from_columns(table["label"], table["file"], known),
            patients_known=not without,
            notes=[_WITHOUT_PATIENTS.format(" and ".join(without))] if without else [],
            provenance=Provenance(
                labels_from="the given labels",
                patients_from="the given patients" if given else "",
                patient_source=patients.TABLE if given else patients.UNKNOWN,
                subsets_from=f"the given {', '.join(subsets)} images" if subsets[1:] else "",
            ),
        )


_WITHOUT_PATIENTS = (
    "patients of the {} images are not given, and each of these counts as a patient of its own: "
    "nothing is claimed about patients who were not in training, and results are too good if "
    "several subsets have images of one"
)


def write_subset(
    root: Path, subset: str, images: ImageSet, labels: Int[np.ndarray, "N"], options: ImageOptions
) -> None:
    """Writes images as a subset, in place of those that it had.

    Raises:
      InputError: an image cannot be used or is in another subset, or the folder cannot be written.
    """
    folder = root / subset
    rows = images.rows(subset, labels)
    _check_not_in_others(root, subset, rows)
    remove_subset(root, subset)
    if options.storage == "stream" and not all("source" in row for row in rows):
        raise InputError("data.storage='stream': is for files, and these images are in memory")
    number = {row["file"]: i for i, row in enumerate(rows)}

    def read(row: Row) -> bytes | np.ndarray:
        image = images.images[number[row["file"]]]
        if "source" in row:
            return _read_source(row)
        if isinstance(image, bytes):
            return image
        return np.ascontiguousarray(read_pixels(image, row["file"], options.bits))

    prepare_images(folder, options, lambda: rows, read)


def _check_not_in_others(root: Path, subset: str, rows: Sequence[Row]) -> None:
    files = {row["file"] for row in rows}
    for other in SUBSETS:
        if other == subset or not _is_there(root / other):
            continue
        if twice := files & set(_load_table(root / other)["file"]):
            raise InputError(f"{min(twice)}: is among the {other} images, too; leave it out of one")


def remove_subset(root: Path, subset: str) -> None:
    """Removes the images of a subset, if there are any."""
    for folder in (root / subset, stream_folder(root / subset)):
        shutil.rmtree(folder, ignore_errors=True)


def check_same_images(
    root: Path, sets: Mapping[str, tuple[ImageSet, Int[np.ndarray, "N"]]], bits: int
) -> None:
    """Checks that the images of a run are those that are handed over again.

    Files count as the same if their names are.

    Raises:
      InputError: they are others, or labels or patients differ.
    """
    for subset in ("train", "validation"):
        folder, given = root / subset, sets.get(subset)
        if _is_there(folder) == (given is not None) and (
            given is None
            or _is_same(_load_table(folder), given[0].rows(subset, given[1]), given[0], bits)
        ):
            continue
        raise InputError(
            f"workdir={root.parent}: belongs to other {subset} images, labels or patients; choose "
            "another workdir, or give those that it was made with"
        )


def _is_same(table: ImageTable, rows: Sequence[Row], images: ImageSet, bits: int) -> bool:
    kept = {file: i for i, file in enumerate(table["file"])}
    if not kept.keys() <= {row["file"] for row in rows} or len(rows) != len(kept) + len(
        table.skipped
    ):
        return False
    for row, image in zip(rows, images.images, strict=True):
        i = kept.get(row["file"])
        if i is None:  # it was skipped
            continue
        facts = [name for name in ("label", "patient", "site") if name in row]
        if any(name not in table.columns or table[name][i] != row[name] for name in facts):
            return False
        if "source" not in row:
            pixels = np.ascontiguousarray(read_pixels(image, row["file"], bits))
            if content_digest(pixels) != table["content"][i]:
                return False
    return True


def _is_there(folder: Path) -> bool:
    return folder.is_dir() or stream_folder(folder).is_dir()


def _load_table(folder: Path) -> ImageTable:
    """Checks the files of a folder, and returns its table."""
    folder = folder if folder.is_dir() else stream_folder(folder)
    # It cannot be made again: labels, and pixels that were in memory, are nowhere else.
    try:
        check_files(folder)
    except DamagedFiles as error:
        raise InputError(f"{error}; put it back, or choose another workdir") from error
    return ImageTable.load(folder)


def _open(folder: Path, options: ImageOptions) -> PreparedImages:
    table = _load_table(folder)
    if options.storage == "stream" and "source" not in table.columns:
        raise InputError(
            f"{folder}: data.storage='stream' is for files, and these images were in memory; use "
            "data.storage='array'"
        )

    def rows() -> list[Row]:
        return [
            {name: values[i] for name, values in table.columns.items() if name != "content"}
            for i in range(len(table["file"]))
        ]

    # What is there was checked with the table.
    return prepare_images(folder, options, rows, _read_source, is_prepared=Path.is_dir)


def _read_source(row: Row) -> bytes:
    return read_image_file(Path(row["source"]), row["file"])
