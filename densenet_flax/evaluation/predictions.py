"""The predictions table: one row per image, all that the evaluation knows of a network."""

import csv
import io
import os
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from densenet_flax.common.csv_cells import write_cell
from densenet_flax.common.errors import InputError
from densenet_flax.storage.atomic import replace_files

CLASS_NAMES = ("benign", "malignant")

TEXT_COLUMNS = ("file", "patient", "subtype", "slide")
# All columns but the probabilities, in the order in which a file has them.
COLUMNS = (*TEXT_COLUMNS, "magnification", "label")
# How far from 1 the probabilities of an image may add up to: tables are written with few digits.
_SUM_TOLERANCE = 0.01
# Default of the columns that may be unknown. `__post_init__` puts an array in its place, so that
# readers of the field need not ask; Any, because a field has one type for what goes in and out.
_UNKNOWN: Any = None

# P(positive), or a row with a number for each of more than two classes.
Probability: TypeAlias = Float[np.ndarray, " N"] | Float[np.ndarray, "N K"]


@dataclass(frozen=True, eq=False)
class Predictions:
    """One row per image; every column is an array of the same length.

    With two classes a probability is one number, P(`class_names[1]`), and a threshold decides.
    With more it is a row with a number for each class, and the likeliest class is predicted.

    Attributes:
      file: Name of the image; no name may occur twice, so that no image counts twice.
      patient: The patient the image is from, under whatever grouping the split used.
      label: Index into `class_names`.
      probability: float64 `[N]`, or `[N, K]` of more than two classes. `[N, 2]`, as a network
        returns it, is accepted as well: the second column is kept.
      class_names: (negative, positive), or three and more.
      threshold: Of two classes: an image is predicted positive where `probability >= threshold`.
      calibrated: The same probability after temperature scaling, or None. Decisions never use it
        (see docs/evaluation.md).
      subtype: Tumor subtype, '' where it is unknown; None makes a column of ''.
      magnification: 40, 100, 200 or 400 in BreakHis, 0 where it is unknown; None makes a column
        of 0.
      slide: Slide id, '' where it is unknown; None makes a column of ''.
    """

    file: Shaped[np.ndarray, " N"]
    patient: Shaped[np.ndarray, " N"]
    label: Int[np.ndarray, " N"]
    probability: Probability
    class_names: tuple[str, ...] = CLASS_NAMES
    threshold: float = 0.5
    calibrated: Probability | None = None
    subtype: Shaped[np.ndarray, " N"] = _UNKNOWN
    magnification: Int[np.ndarray, " N"] = _UNKNOWN
    slide: Shaped[np.ndarray, " N"] = _UNKNOWN

    def __post_init__(self) -> None:
        """Converts the columns, which may be lists, and rejects a table that contradicts itself."""
        # A frozen dataclass takes no assignment, hence `object.__setattr__`.
        for name in COLUMNS:
            dtype = np.str_ if name in TEXT_COLUMNS else np.int64
            values = getattr(self, name)
            values = np.zeros(len(self), dtype) if values is None else np.asarray(values, dtype)
            object.__setattr__(self, name, values)
        object.__setattr__(self, "class_names", tuple(self.class_names))
        object.__setattr__(self, "threshold", float(self.threshold))
        for name in self._probability_fields:
            values = np.asarray(getattr(self, name), np.float64)
            # As a network returns it; with two classes one number says both.
            if len(self.class_names) == 2 and values.shape == (len(self), 2):
                values = values[:, 1]
            object.__setattr__(self, name, values)
        self._check()

    def _check(self) -> None:
        n, classes = len(self), len(self.class_names)
        if n == 0:
            raise InputError("predictions: the table is empty; there is nothing to evaluate")
        if classes < 2 or len(set(self.class_names)) < classes:
            raise InputError(
                f"predictions: class_names is {self.class_names}; expected two different names, "
                "the positive class second, or more than two"
            )
        for name in (*COLUMNS, *self._probability_fields):
            shape = getattr(self, name).shape
            per_class = name in self._probability_fields and classes > 2
            if shape != ((n, classes) if per_class else (n,)):
                raise InputError(
                    f"predictions: column '{name}' has shape {shape}, but 'file' has {(n,)}"
                    + (f" and there are {classes} classes" if per_class else "")
                )
        if not 0 <= self.threshold <= 1:
            raise InputError(f"predictions: threshold is {self.threshold}; expected 0 to 1")
        if classes > 2 and self.threshold != 0.5:
            raise InputError(
                f"predictions: threshold is {self.threshold}, but there are {classes} classes and "
                "the likeliest one is predicted; leave the threshold out"
            )
        for name in self._probability_fields:
            self._check_probability(name)
        invalid = (self.label < 0) | (self.label >= classes)
        if invalid.any():
            i = int(np.argmax(invalid))
            expected = "0 or 1" if classes == 2 else f"0 to {classes - 1}"
            raise InputError(
                f"predictions: label of '{self.file[i]}' is {self.label[i]}; expected {expected}"
            )
        name, times = Counter(self.file.tolist()).most_common(1)[0]
        if times > 1:
            raise InputError(f"predictions: file '{name}' occurs {times} times; expected once")

    def _check_probability(self, name: str) -> None:
        values = getattr(self, name).reshape(len(self), -1)
        # Written as "not inside" so that NaN is caught as well.
        outside = ~((values >= 0) & (values <= 1))
        if outside.any():
            i, k = np.argwhere(outside)[0]
            raise InputError(
                f"predictions: {name} of '{self.file[i]}' is {values[i, k]}; expected 0 to 1"
            )
        sums = values.sum(axis=1)
        off = np.abs(sums - 1) > _SUM_TOLERANCE
        if values.shape[1] > 1 and off.any():
            i = int(np.argmax(off))
            raise InputError(
                f"predictions: {name} of '{self.file[i]}' adds up to {sums[i]:.4g} over the "
                "classes; expected 1"
            )

    @property
    def _probability_fields(self) -> tuple[str, ...]:
        return ("probability",) if self.calibrated is None else ("probability", "calibrated")

    def __len__(self) -> int:
        return len(self.file)

    @property
    def prediction(self) -> Int[np.ndarray, " N"]:
        """Predicted class index of each image."""
        return self.decide(self.probability)

    def decide(self, probability: Probability) -> Int[np.ndarray, " N"]:
        """Returns the class index for each row of probabilities.

        Of two classes 1 where `probability >= threshold`; of more the likeliest, the first of
        equally likely ones.
        """
        if len(self.class_names) == 2:
            return (probability >= self.threshold).astype(np.int64)
        return probability.argmax(axis=-1)

    def select(self, rows: Bool[np.ndarray, " N"] | Int[np.ndarray, " M"]) -> "Predictions":
        """Returns the rows of a boolean mask or of an index array."""
        names = (*COLUMNS, *self._probability_fields)
        return replace(self, **{name: getattr(self, name)[rows] for name in names})

    def to_csv(self) -> bytes:
        """Returns the table as UTF-8 CSV (RFC 4180); `read_csv` restores exactly these numbers."""
        columns = {name: getattr(self, name).tolist() for name in COLUMNS}
        columns |= {name: list(map(write_cell, columns[name])) for name in TEXT_COLUMNS}
        class_names = list(map(write_cell, self.class_names))
        columns["label"] = [class_names[i] for i in self.label]
        columns |= self._probability_text("probability")
        columns["prediction"] = [class_names[i] for i in self.prediction]
        if len(self.class_names) == 2:
            columns["threshold"] = [repr(self.threshold)] * len(self)
        if self.calibrated is not None:
            columns |= self._probability_text("calibrated")
        buffer = io.StringIO()
        # The writer ends lines in CR LF, so that it quotes either of them inside a name.
        writer = csv.writer(buffer)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
        # File names need not be UTF-8: Python keeps odd bytes as surrogates, and so does this.
        return buffer.getvalue().encode("utf-8", "surrogateescape")

    def _probability_text(self, name: str) -> dict[str, list[str]]:
        """A probability with all its digits: one column, or one for each of several classes."""
        columns = getattr(self, name).reshape(len(self), -1).T.tolist()
        names = probability_columns(name, self.class_names)
        return {key: list(map(repr, column)) for key, column in zip(names, columns, strict=True)}

    def write_csv(self, path: str | os.PathLike[str]) -> None:
        """Writes the table; an interruption leaves an old file whole."""
        path = Path(path)
        replace_files(path.parent, {path.name: self.to_csv()})


def probability_columns(name: str, class_names: tuple[str, ...]) -> list[str]:
    """Names of a probability's columns in a file: 'probability', or 'probability_<class>'."""
    if len(class_names) == 2:
        return [name]
    return [f"{name}_{class_name}" for class_name in class_names]
