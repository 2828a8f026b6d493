"""Predictions tables from CSV files, this package's or another tool's."""

import csv
import io
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from densenet_flax.common.csv_cells import read_cell
from densenet_flax.common.errors import InputError
from densenet_flax.common.reading import MAX_TEXT_BYTES, read_file
from densenet_flax.evaluation.predictions import (
    CLASS_NAMES,
    TEXT_COLUMNS,
    Predictions,
    Probability,
    probability_columns,
)

_PREFIX = "probability_"


def read_csv(
    path: str | os.PathLike[str],
    class_names: tuple[str, ...] | None = None,
    threshold: float | None = None,
) -> Predictions:
    """Reads a predictions table.

    Args:
      path: A CSV file with at least file, patient, magnification, label and probability, or instead
        of the last a column `probability_<class>` for each of several classes. Labels are
        class names; columns 'calibrated' are read if there are any.
      class_names: (negative, positive), or three and more. None takes them from the columns
        `probability_<class>`, in their order, and is `CLASS_NAMES` if there are none.
      threshold: None takes the file's own, or 0.5 if it has no such column. Another value decides
        by the same probabilities at that threshold.

    Raises:
      InputError: A column is missing, a column or a file occurs twice, a value cannot be read, or
        the predictions in the file do not follow from its probabilities and threshold.
    """
    cells = _read_cells(Path(path))
    header = cells.header
    if class_names is None:
        names = tuple(name.removeprefix(_PREFIX) for name in header if name.startswith(_PREFIX))
        class_names = names if names and "probability" not in header else CLASS_NAMES
    columns = _columns("probability", class_names, header)
    required = ("file", "patient", "magnification", "label", *columns)
    missing = [name for name in required if name not in header]
    if missing:
        raise InputError(f"{path}: no column {', '.join(missing)}; it has {', '.join(header)}")
    if not cells.rows:
        raise InputError(f"{path}: the table is empty; there is nothing to evaluate")
    unknown = {name for name in header if name.startswith(_PREFIX)} - set(columns)
    if unknown and len(columns) > 1:
        raise InputError(
            f"{path}: column {min(unknown)} belongs to no class; the classes are "
            f"{', '.join(class_names)}"
        )
    predictions = _parse(cells, class_names)
    if "prediction" in header:
        _check_predicted(cells, predictions)
    return predictions if threshold is None else replace(predictions, threshold=threshold)


class _Cells(NamedTuple):
    """A file as text."""

    path: Path
    header: list[str]
    rows: list[dict[str, str]]

    def numbers(self, convert: Callable[[str], float], name: str) -> list[float]:
        numbers = []
        for i, row in enumerate(self.rows, start=1):
            try:
                numbers.append(convert(row[name]))
            except ValueError:
                message = f"row {i} has {name} '{row[name]}'; expected a number"
                raise InputError(f"{self.path}: {message}") from None
        return numbers

    def probability(self, columns: list[str]) -> Probability:
        values = np.array([self.numbers(float, column) for column in columns])
        return values.T if len(columns) > 1 else values[0]


def _read_cells(path: Path) -> _Cells:
    data = read_file(path, max_bytes=MAX_TEXT_BYTES)
    # Excel begins UTF-8 files with a byte order mark, which 'utf-8-sig' drops.
    text = data.decode("utf-8-sig", "surrogateescape")
    try:
        reader = csv.DictReader(io.StringIO(text, newline=""))
        rows = list(reader)
        header = list(reader.fieldnames or [])
    except csv.Error as error:
        raise InputError(f"{path}: is not a CSV file ({error})") from error
    for name, times in Counter(header).items():
        if name and times > 1:  # DictReader would keep the last one
            raise InputError(f"{path}: column '{name}' occurs {times} times; expected once")
    for number, row in enumerate(rows, start=1):
        # DictReader keeps surplus fields under None and fills missing ones with None.
        if None in row or None in row.values():
            raise InputError(f"{path}: row {number} does not have {len(header)} fields")
        row.update((name, read_cell(cell)) for name, cell in row.items())
    return _Cells(path, header, rows)


def _columns(name: str, class_names: tuple[str, ...], header: list[str]) -> list[str]:
    """The columns of a probability; of two classes another tool may have written one each."""
    per_class = [f"{name}_{class_name}" for class_name in class_names]
    if name not in header and set(per_class) <= set(header):
        return per_class
    return probability_columns(name, class_names)


def _parse(cells: _Cells, class_names: tuple[str, ...]) -> Predictions:
    path, header, rows = cells
    text = {name: np.array([row.get(name, "") for row in rows]) for name in TEXT_COLUMNS}
    magnification = np.array(cells.numbers(int, "magnification"))
    probability = cells.probability(_columns("probability", class_names, header))
    columns = _columns("calibrated", class_names, header)
    calibrated = cells.probability(columns) if set(columns) <= set(header) else None
    for number, row in enumerate(rows, start=1):
        if row["label"] not in class_names:
            expected = " or ".join(class_names)
            raise InputError(
                f"{path}: row {number} has label '{row['label']}'; expected {expected}"
            )
    thresholds = set(cells.numbers(float, "threshold") if "threshold" in header else [0.5])
    if len(thresholds) > 1:
        raise InputError(f"{path}: holds {len(thresholds)} thresholds; expected one for all rows")
    try:
        return Predictions(
            **text,
            magnification=magnification,
            label=np.array([class_names.index(row["label"]) for row in rows]),
            probability=probability,
            calibrated=calibrated,
            class_names=class_names,
            threshold=thresholds.pop(),
        )
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _check_predicted(cells: _Cells, predictions: Predictions) -> None:
    """Rejects a file whose predictions are not those that its probabilities give."""
    for i, (row, index) in enumerate(zip(cells.rows, predictions.prediction, strict=True)):
        predicted = predictions.class_names[index]
        if row["prediction"] == predicted:
            continue
        if len(predictions.class_names) == 2:
            reason = (
                f"probability {row['probability']} at threshold {predictions.threshold} is "
                f"{predicted}; correct the threshold column or leave the prediction column out"
            )
        else:
            reason = (
                f"the likeliest class is {predicted} ({predictions.probability[i, index]:.4g}); "
                "leave the prediction column out"
            )
        raise InputError(f"{cells.path}: row {i + 1} predicts '{row['prediction']}', but {reason}")
