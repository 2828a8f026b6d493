"""The predictions table: one row per image, all that evaluation ever sees of a network."""

import csv
import io
import os
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from densenet_flax.common.errors import InputError
from densenet_flax.storage.atomic import replace_files

CLASS_NAMES = ("benign", "malignant")

TEXT = ("file", "patient", "subtype", "slide")
WHOLE = (*TEXT, "magnification", "label")
# How far from 1 the probabilities of an image may add up to: tables are written with few digits.
_SUM_TOLERANCE = 0.01


@dataclass(frozen=True, eq=False)
class Predictions:
    """One row per image; every column is an array of the same length.

    With two classes a probability is one number, P(`class_names[1]`), and a threshold decides.
    With more, it is a row with a number for each class, and the likeliest class is called.

    Attributes:
        file: Name of the image; no name may occur twice, so no image counts twice.
        patient: Whom the image is from, under whatever grouping the split used.
        subtype: Tumour subtype, or ''.
        magnification: 40, 100, 200 or 400 in BreakHis; 0 if unknown.
        slide: Slide id, or ''.
        label: Index into `class_names`.
        probability: float64 `[N]`, or `[N, classes]` of more than two. `[N, 2]`, as a network
            gives it, is welcome: the second column is kept.
        class_names: (negative, positive), or three and more.
        threshold: Of two classes: an image is called positive where `probability >= threshold`.
        calibrated: float64, the same probability after temperature scaling, or None. Decisions
            never look at it (see docs/evaluation.md).
    """

    file: np.ndarray
    patient: np.ndarray
    subtype: np.ndarray
    magnification: np.ndarray
    slide: np.ndarray
    label: np.ndarray
    probability: np.ndarray
    class_names: tuple[str, ...] = CLASS_NAMES
    threshold: float = 0.5
    calibrated: np.ndarray | None = None

    def __post_init__(self) -> None:
        """Converts the columns (lists are welcome) and refuses a table that contradicts itself."""
        for name, kind in (
            *((name, np.str_) for name in TEXT),
            ("magnification", np.int64),
            ("label", np.int64),
        ):
            object.__setattr__(self, name, np.asarray(getattr(self, name), dtype=kind))
        object.__setattr__(self, "class_names", tuple(self.class_names))
        object.__setattr__(self, "threshold", float(self.threshold))
        for name in self._probabilities:
            values = np.asarray(getattr(self, name), np.float64)
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
        for name in (*WHOLE, *self._probabilities):
            shape = getattr(self, name).shape
            wanted = (n, classes) if name in self._probabilities and classes > 2 else (n,)
            if shape != wanted:
                raise InputError(
                    f"predictions: column '{name}' has shape {shape}, but 'file' has {(n,)}"
                    + (f" and there are {classes} classes" if len(wanted) > 1 else "")
                )
        if not 0 <= self.threshold <= 1:
            raise InputError(f"predictions: threshold is {self.threshold}; expected 0 to 1")
        if classes > 2 and self.threshold != 0.5:
            raise InputError(
                f"predictions: threshold is {self.threshold}, but there are {classes} classes; the "
                "likeliest is called, and there is no threshold to set"
            )
        for name in self._probabilities:
            self._check_probability(name)
        bad = ~np.isin(self.label, np.arange(classes))
        if bad.any():
            i = int(np.argmax(bad))
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
        bad = ~((values >= 0) & (values <= 1))
        if bad.any():
            i, k = np.argwhere(bad)[0]
            raise InputError(
                f"predictions: {name} of '{self.file[i]}' is {values[i, k]}; expected 0 to 1"
            )
        off = np.abs(values.sum(axis=1) - 1) > _SUM_TOLERANCE
        if values.shape[1] > 1 and off.any():
            i = int(np.argmax(off))
            raise InputError(
                f"predictions: {name} of '{self.file[i]}' adds up to {values[i].sum():.4g} over "
                "the classes; expected 1"
            )

    @property
    def _probabilities(self) -> tuple[str, ...]:
        """The columns that hold probabilities and are there."""
        return ("probability", *(() if self.calibrated is None else ("calibrated",)))

    def __len__(self) -> int:
        return len(self.file)

    @property
    def prediction(self) -> np.ndarray:
        """Predicted class index of each image."""
        return self.decide(self.probability)

    def decide(self, probability: np.ndarray) -> np.ndarray:
        """Class index for each row of probabilities.

        Of two classes 1 where `probability >= threshold`; of more the likeliest, and of equally
        likely ones the first.
        """
        if len(self.class_names) == 2:
            return (probability >= self.threshold).astype(np.int64)
        return probability.argmax(axis=-1)

    def select(self, keep: np.ndarray) -> "Predictions":
        """The rows of a boolean mask or of an index array."""
        names = (*WHOLE, *self._probabilities)
        columns: dict[str, Any] = {name: getattr(self, name)[keep] for name in names}
        return replace(self, **columns)

    def to_csv(self) -> bytes:
        """The table as UTF-8 CSV (RFC 4180); `read_csv` returns exactly these numbers."""
        columns: dict[str, list[Any]] = {name: getattr(self, name).tolist() for name in WHOLE}
        columns["label"] = [self.class_names[i] for i in self.label]
        columns |= self._written("probability")
        columns["prediction"] = [self.class_names[i] for i in self.prediction]
        if len(self.class_names) == 2:
            columns["threshold"] = [repr(self.threshold)] * len(self)
        if self.calibrated is not None:  # at the end, and only where there is something to say
            columns |= self._written("calibrated")
        buffer = io.StringIO()
        writer = csv.writer(buffer)  # ends lines in CR LF, so that both are quoted inside names
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
        # File names need not be UTF-8: Python keeps odd bytes as surrogates, and so does this.
        return buffer.getvalue().encode("utf-8", "surrogateescape")

    def _written(self, name: str) -> dict[str, list[str]]:
        """A probability with all its digits: one column, or one for each of several classes."""
        values = getattr(self, name).reshape(len(self), -1).T.tolist()
        names = probability_columns(name, self.class_names)
        return {key: list(map(repr, row)) for key, row in zip(names, values, strict=True)}

    def write_csv(self, path: str | os.PathLike[str]) -> None:
        """Writes the table; an interruption leaves the old file whole."""
        path = Path(path)
        replace_files(path.parent, {path.name: self.to_csv()})


def probability_columns(name: str, class_names: tuple[str, ...]) -> list[str]:
    """Names of a probability's columns in a file: 'probability', or 'probability_<class>'."""
    return [name] if len(class_names) == 2 else [f"{name}_{one}" for one in class_names]
