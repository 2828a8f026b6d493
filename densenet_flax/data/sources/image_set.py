"""Images that a program names one by one, with labels and patients, in the forms that people have.

Arrays, lists of paths or of Pillow images, and DataFrames become an `ImageSet`, checked: what Keras
or scikit-learn would take and that means something else here (one-hot labels, scaled or
preprocessed pixels, channels first) is refused with the line of code that converts it.
"""

import collections
import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int, Shaped
from PIL import Image

from densenet_flax.common.errors import InputError, errors_in
from densenet_flax.common.settings import suggest
from densenet_flax.data.images.inputs import ImageLike, check_pixels, is_pixels
from densenet_flax.data.images.stream import Row
from densenet_flax.data.sources.class_order import order_classes
from densenet_flax.data.sources.similar_names import unify_names
from densenet_flax.data.sources.table_files import TextTable
from densenet_flax.data.sources.tile_table import ColumnSettings, find_columns
from densenet_flax.data.sources.tree_layout import subset_of_word

SUBSETS = ("train", "validation", "test")  # in the order of their rows
_FACTS = ("patient", "site")


@dataclasses.dataclass(frozen=True, eq=False)
class ImageSet:
    """N images of one subset, or of several that `known['split']` tells apart.

    Attributes:
      images: of any size; an array [N, H, W, 3] is a sequence of images, too.
      labels: numbers or names of classes.
      known: 'patient', 'site' and 'split' of each image, as far as they are given.
    """

    images: Sequence[ImageLike]
    labels: Shaped[np.ndarray, "N"]
    known: Mapping[str, Sequence[str]]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def has_names(self) -> bool:
        """Whether the labels are names of classes."""
        return self.labels.dtype.kind != "i"

    def take(self, mask: Bool[np.ndarray, "N"]) -> "ImageSet":
        """Returns the images of a mask, without their subsets."""
        rows = np.flatnonzero(mask).tolist()
        known = {name: [values[row] for row in rows] for name, values in self.known.items()}
        del known["split"]
        return ImageSet([self.images[row] for row in rows], self.labels[rows], known)

    def rows(self, subset: str, numbers: Shaped[np.ndarray, "N"]) -> list[Row]:
        """Returns a row for each image; `numbers` are those of the classes.

        The patient is '' where it is not known.
        """
        rows = []
        for i, (image, label) in enumerate(zip(self.images, numbers.tolist(), strict=True)):
            row: Row = {"file": f"{subset}/{i:06d}", "label": label, "patient": "", "split": subset}
            if isinstance(image, str | os.PathLike):  # which can be read again
                row |= {"file": os.fspath(image), "source": str(Path(image).expanduser().resolve())}
            rows.append(row | {name: self.known[name][i] for name in _FACTS if name in self.known})
        return rows


def image_set(
    images: Any, labels: Any, patients: Any, name: str, columns: ColumnSettings
) -> ImageSet:
    """Checks images with what is said of them.

    Args:
      images: uint8 [N, H, W, 3]; a list of paths, Pillow images, contents of files or arrays of any
        size; or a DataFrame with the columns of `read_tile_table`, and then nothing else.
      labels: whole numbers from 0, or names of classes.
      patients: of each image, numbers or names; or None.
      name: of the images in messages.
      columns: what the columns of a DataFrame are called.

    Raises:
      InputError: something is missing or of another form; the message says how to convert it.
    """
    with errors_in(f"{name}: "):
        if hasattr(images, "columns"):
            if labels is not None or patients is not None:
                raise InputError(
                    "a DataFrame has labels and patients in its columns; give nothing else"
                )
            return _read_table(images, columns)
        images = _read_images(images)
        if labels is None:
            raise InputError("no labels; give one for each image")
        known = {} if patients is None else {"patient": _read_names(patients, "patients")}
        checked = ImageSet(images, _read_labels(labels), known)
        counts = {what: len(values) for what, values in known.items()}
        for what, count in {"label": len(checked.labels), **counts}.items():
            if count != len(images):
                raise InputError(
                    f"{count} {what}s for {len(images)} images; give one for each image"
                )
        return checked


def number_labels(
    sets: Sequence[ImageSet], class_names: Sequence[str], similar_names: str
) -> tuple[list[Int[np.ndarray, "N"]], tuple[str, ...]]:
    """Returns the numbers of the classes of each set's images, and the names of all classes.

    Args:
      sets: the first one is of the training images.
      class_names: in the order of their numbers; () takes what the labels are.
      similar_names: policy of `unify_names`.

    Raises:
      InputError: a label is none of the classes, or there are fewer than two.
    """
    if len({images.has_names for images in sets}) > 1:
        raise InputError("labels: some are numbers and some are names; give all in one form")
    labels = np.concatenate([images.labels for images in sets])
    if sets[0].has_names:
        names = np.array(unify_names(labels.tolist(), similar_names, "classes"))
        class_names = tuple(class_names) or order_classes(set(names.tolist()))
        if unknown := sorted(set(names.tolist()) - set(class_names)):
            raise InputError(
                f"label {unknown[0]!r}: not one of class_names={tuple(class_names)}; "
                f"{suggest(unknown[0], class_names)}"
            )
        labels = np.array([class_names.index(name) for name in names.tolist()])
    else:
        class_names = tuple(class_names) or _numbered_classes(sets[0].labels)
        outside = labels[(labels < 0) | (labels >= len(class_names))]
        if len(outside):
            raise InputError(
                f"label {outside[0]}: expected numbers from 0 to {len(class_names) - 1}, as there "
                f"are {len(class_names)} classes, {', '.join(class_names)}"
            )
    if len(class_names) < 2:
        raise InputError(
            f"labels: all are {class_names[0]!r}; expected images of two classes or more"
        )
    ends = np.cumsum([len(images) for images in sets])[:-1]
    return np.split(labels, ends), class_names


def _numbered_classes(labels: Int[np.ndarray, "N"]) -> tuple[str, ...]:
    present = np.unique(labels)
    if present[0] < 0 or present[-1] != len(present) - 1:
        shown = ", ".join(map(str, present[:6].tolist()))
        raise InputError(
            f"labels: the numbers are {shown}{', …' * (len(present) > 6)}; expected 0, 1, … without"
            " a gap, or class_names=(…) to say which classes there are"
        )
    return tuple(f"class {number}" for number in present.tolist())


def _read_images(images: Any) -> Sequence[ImageLike]:
    if isinstance(images, str | bytes | os.PathLike | Image.Image):
        raise InputError("one image; give a list")
    if is_pixels(images):
        images = np.asarray(images)
        if images.ndim == 3 and images.shape[-1] == 3:
            raise InputError(f"shape {list(images.shape)} is one image; use x[None]")
        check_pixels(images)
        if len(images) and not any(image.max() > 1 for image in images):
            raise InputError(
                "uint8, and no value is above 1, as of images that were scaled to [0, 1] "
                "before they became uint8; give values from 0 to 255"
            )
    else:
        images = list(images)
    for i, image in enumerate(images):
        if is_pixels(image):
            with errors_in(f"image {i}: "):
                check_pixels(np.asarray(image))
        elif not isinstance(image, str | bytes | os.PathLike | Image.Image):
            raise InputError(
                f"image {i} is of type {type(image).__name__}; expected a path, a Pillow image, "
                "the bytes of an image file or a uint8 array"
            )
    if not len(images):
        raise InputError("no images")
    paths = [os.fspath(image) for image in images if isinstance(image, str | os.PathLike)]
    path, count = collections.Counter(paths).most_common(1)[0] if paths else ("", 0)
    if count > 1:
        raise InputError(f"{path}: is given {count} times; give each image once")
    return images


def _read_labels(labels: Any) -> np.ndarray:
    values = np.asarray(labels)
    if values.dtype.kind in "OUT":  # NumPy makes the text 'nan' of NaN among names
        items = np.asarray(labels, dtype=object).ravel().tolist()
        kinds = {type(item) for item in items}
        for i, item in enumerate(items):
            if not isinstance(item, str | int | np.integer):
                raise InputError(
                    f"label {i} is {item!r}; expected whole numbers or names of classes"
                )
        if len({issubclass(kind, str) for kind in kinds}) > 1:
            raise InputError("labels: some are numbers and some are names; give all in one form")
        values = np.array(items).reshape(values.shape)
    if values.ndim == 2 and values.shape[1] > 1:
        raise InputError(f"labels of shape {list(values.shape)} are one-hot; use y.argmax(axis=1)")
    if values.ndim != 1:
        raise InputError(f"labels of shape {list(values.shape)}; expected [N]: use y.ravel()")
    if values.dtype.kind == "f":
        if np.isnan(values).any():
            raise InputError(f"label {int(np.isnan(values).argmax())} is NaN; leave its image out")
        raise InputError(
            f"labels are {values.dtype}; expected whole numbers from 0, or names: use "
            "y.astype(int) if they are that"
        )
    if values.dtype.kind in "biu":
        return values.astype(np.int64)
    if values.dtype.kind not in "UT":
        raise InputError(f"labels are {values.dtype}; expected whole numbers from 0, or names")
    return values


def _read_names(values: Any, what: str) -> list[str]:
    """The names of patients, sites or subsets, which may be numbers."""
    array = np.asarray(values, dtype=object)
    if array.ndim != 1:
        raise InputError(f"{what} of shape {list(array.shape)}; expected one for each image")
    names = []
    for i, value in enumerate(array.tolist()):
        if isinstance(value, float | np.floating) and value.is_integer():
            value = int(value)  # as pandas has whole numbers where one is missing
        is_name = isinstance(value, str | int | float | np.generic) and value == value  # no NaN
        name = str(value).strip() if is_name else ""
        if not name:
            raise InputError(f"{what}: number {i} is {value!r}; expected a name or a number")
        names.append(name)
    return names


def _read_table(table: Any, columns: ColumnSettings) -> ImageSet:
    header = [str(name) for name in table.columns]
    positions = find_columns(TextTable(Path("DataFrame"), header, ()), columns)
    cells = {name: list(table[table.columns[i]]) for name, i in positions.items()}
    images, labels = _read_images(cells.pop("file")), _read_labels(cells.pop("label"))
    known = {name: _read_names(values, f"column {name}") for name, values in cells.items()}
    if "split" in known:
        subsets = [subset_of_word(word) for word in known["split"]]
        if unknown := [i for i, subset in enumerate(subsets) if subset not in SUBSETS]:
            word = known["split"][unknown[0]]
            raise InputError(
                f"split {word!r}; expected one of train, validation, test, or "
                "data.columns.split='none' to ignore this column"
            )
        known["split"] = subsets
    return ImageSet(images, labels, known)
