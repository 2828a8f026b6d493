"""The predictions table: one row per image, all that evaluation ever sees of a network."""

import csv
import io
import os
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from densenet_flax.errors import InputError
from densenet_flax.files import replace_files

CLASS_NAMES = ("benign", "malignant")

_TEXT = ("file", "patient", "subtype", "slide")
_WHOLE = (*_TEXT, "magnification", "label")
_COLUMNS = (*_WHOLE, "probability", "prediction", "threshold")
_REQUIRED = ("file", "patient", "magnification", "label", "probability")


@dataclass(frozen=True, eq=False)
class Predictions:
    """One row per image; every column is an array of the same length.

    Attributes:
        file: Name of the image; no name may occur twice, so no image counts twice.
        patient: Whom the image is from, under whatever grouping the split used.
        subtype: Tumour subtype, or ''.
        magnification: 40, 100, 200 or 400 in BreakHis; 0 if unknown.
        slide: Slide id, or ''.
        label: Index into `class_names`: 0 or 1.
        probability: float64, P(`class_names[1]`).
        class_names: (negative, positive).
        threshold: An image is called positive where `probability >= threshold`.
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
            *((name, np.str_) for name in _TEXT),
            ("magnification", np.int64),
            ("label", np.int64),
            ("probability", np.float64),
        ):
            object.__setattr__(self, name, np.asarray(getattr(self, name), dtype=kind))
        if self.calibrated is not None:
            object.__setattr__(self, "calibrated", np.asarray(self.calibrated, np.float64))
        object.__setattr__(self, "class_names", tuple(self.class_names))
        object.__setattr__(self, "threshold", float(self.threshold))
        self._check()

    def _check(self) -> None:
        n = len(self)
        if n == 0:
            raise InputError("predictions: the table is empty; there is nothing to evaluate")
        for name in self._columns:
            shape = getattr(self, name).shape
            if shape != (n,):
                raise InputError(
                    f"predictions: column '{name}' has shape {shape}, but 'file' has {(n,)}"
                )
        if len(self.class_names) != 2 or self.class_names[0] == self.class_names[1]:
            raise InputError(
                f"predictions: class_names is {self.class_names}; expected two different names, "
                "the positive class second"
            )
        if not 0 <= self.threshold <= 1:
            raise InputError(f"predictions: threshold is {self.threshold}; expected 0 to 1")
        # Written as "not inside" so that NaN is caught as well.
        for name in self._columns[len(_WHOLE) :]:
            values = getattr(self, name)
            bad = ~((values >= 0) & (values <= 1))
            if bad.any():
                i = int(np.argmax(bad))
                raise InputError(
                    f"predictions: {name} of '{self.file[i]}' is {values[i]}; expected 0 to 1"
                )
        bad = ~np.isin(self.label, (0, 1))
        if bad.any():
            i = int(np.argmax(bad))
            raise InputError(
                f"predictions: label of '{self.file[i]}' is {self.label[i]}; expected 0 or 1"
            )
        name, times = Counter(self.file.tolist()).most_common(1)[0]
        if times > 1:
            raise InputError(f"predictions: file '{name}' occurs {times} times; expected once")

    @property
    def _columns(self) -> tuple[str, ...]:
        """The columns that are there, those that hold probabilities last."""
        return (*_WHOLE, "probability", *(() if self.calibrated is None else ("calibrated",)))

    def __len__(self) -> int:
        return len(self.file)

    @property
    def prediction(self) -> np.ndarray:
        """Predicted class index of each image: 1 where `probability >= threshold`."""
        return (self.probability >= self.threshold).astype(np.int64)

    def select(self, keep: np.ndarray) -> "Predictions":
        """The rows of a boolean mask or of an index array."""
        columns: dict[str, Any] = {name: getattr(self, name)[keep] for name in self._columns}
        return replace(self, **columns)

    def to_csv(self) -> bytes:
        """The table as UTF-8 CSV (RFC 4180); `read_csv` returns exactly these numbers."""
        buffer = io.StringIO()
        writer = csv.writer(buffer)  # ends lines in CR LF, so that both are quoted inside names
        # A column of its own at the end, and only where there is something to say in it.
        more = [] if self.calibrated is None else [map(repr, self.calibrated.tolist())]
        writer.writerow([*_COLUMNS, *(["calibrated"] if more else [])])
        text = zip(*(getattr(self, name).tolist() for name in _TEXT), strict=True)
        numbers = zip(
            self.magnification.tolist(),
            (self.class_names[i] for i in self.label),
            map(repr, self.probability.tolist()),
            (self.class_names[i] for i in self.prediction),
            [repr(self.threshold)] * len(self),
            *more,
            strict=True,
        )
        writer.writerows((*a, *b) for a, b in zip(text, numbers, strict=True))
        # File names need not be UTF-8: Python keeps odd bytes as surrogates, and so does this.
        return buffer.getvalue().encode("utf-8", "surrogateescape")

    def write_csv(self, path: str | os.PathLike[str]) -> None:
        """Writes the table; an interruption leaves the old file whole."""
        path = Path(path)
        replace_files(path.parent, {path.name: self.to_csv()})


def read_csv(
    path: str | os.PathLike[str],
    class_names: tuple[str, ...] = CLASS_NAMES,
    threshold: float | None = None,
) -> Predictions:
    """Reads a predictions table, this package's or another tool's.

    Args:
        path: A CSV file with at least file, patient, magnification, label and probability.
            Labels are class names; a column 'calibrated' is read if there is one.
        class_names: (negative, positive).
        threshold: None takes the file's own, or 0.5 if it has no such column. Another value
            judges the same probabilities anew.

    Raises:
        InputError: A column is missing, a value cannot be read, a file occurs twice, or the
            predictions in the file are not what its probabilities and threshold say.
    """
    path = Path(path)
    try:
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as stream:
            reader = csv.DictReader(stream)
            rows = list(reader)
            header = reader.fieldnames or []
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    except csv.Error as error:
        raise InputError(f"{path}: is not a CSV file ({error})") from error
    missing = [name for name in _REQUIRED if name not in header]
    if missing:
        raise InputError(f"{path}: no column {', '.join(missing)}; it has {', '.join(header)}")
    if not rows:
        raise InputError(f"{path}: the table is empty; there is nothing to evaluate")

    numbers = ["probability", *(["calibrated"] if "calibrated" in header else [])]
    columns: dict[str, Any] = {name: [] for name in (*_TEXT, *_REQUIRED, *numbers)}
    for number, row in enumerate(rows, start=1):
        if None in row or None in row.values():
            raise InputError(f"{path}: row {number} does not have {len(header)} fields")
        for name in _TEXT:
            columns[name].append(row.get(name, ""))
        columns["magnification"].append(_parse(int, row, "magnification", path, number))
        for name in numbers:
            columns[name].append(_parse(float, row, name, path, number))
        if row["label"] not in class_names:
            raise InputError(
                f"{path}: row {number} has label '{row['label']}'; "
                f"expected {' or '.join(class_names)}"
            )
        columns["label"].append(class_names.index(row["label"]))

    stated = (
        {_parse(float, row, "threshold", path, n) for n, row in enumerate(rows, 1)}
        if ("threshold" in header)
        else {0.5}
    )
    if len(stated) > 1:
        raise InputError(f"{path}: holds {len(stated)} thresholds; expected one for all rows")
    try:
        table = Predictions(**columns, class_names=class_names, threshold=stated.pop())
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    if "prediction" in header:
        for number, (row, index) in enumerate(zip(rows, table.prediction, strict=True), start=1):
            if row["prediction"] != class_names[index]:
                raise InputError(
                    f"{path}: row {number} predicts '{row['prediction']}', but probability "
                    f"{row['probability']} at threshold {table.threshold} is {class_names[index]}; "
                    "correct the threshold column or leave the prediction column out"
                )
    return table if threshold is None else replace(table, threshold=threshold)


def _parse(kind: type, row: dict[str, str], name: str, path: Path, number: int) -> Any:
    try:
        return kind(row[name])
    except ValueError:
        raise InputError(
            f"{path}: row {number} has {name} '{row[name]}'; expected a number"
        ) from None
