"""Predictions tables from CSV files, this package's or another tool's."""

import csv
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
from jaxtyping import Float

from densenet_flax.common.errors import InputError
from densenet_flax.evaluation.predictions import (
    CLASS_NAMES,
    TEXT_COLUMNS,
    Predictions,
    probability_columns,
)

_PREFIX = "probability_"
_REQUIRED = ("file", "patient", "magnification", "label")
_Number = TypeVar("_Number", int, float)


def read_csv(
    path: str | os.PathLike[str],
    class_names: tuple[str, ...] | None = None,
    threshold: float | None = None,
) -> Predictions:
    """Reads a predictions table.

    Args:
      path: A CSV file with at least file, patient, magnification, label and probability, or in
        place of the last a column 'probability_<class>' for each of several classes. Labels are
        class names; columns 'calibrated' are read if there are any.
      class_names: (negative, positive), or three and more. None takes them from the columns
        'probability_<class>', in their order, and is `CLASS_NAMES` if there are none.
      threshold: None takes the file's own, or 0.5 if it has no such column. Another value decides
        by the same probabilities at that threshold.

    Raises:
      InputError: A column is missing, a value cannot be read, a file occurs twice, or the
        predictions in the file do not follow from its probabilities and threshold.
    """
    table = _CsvTable.read(Path(path))
    if class_names is None:
        names = tuple(n.removeprefix(_PREFIX) for n in table.header if n.startswith(_PREFIX))
        class_names = names if names and "probability" not in table.header else CLASS_NAMES
    table.check_columns(class_names)
    predictions = _parse_table(table, class_names)
    if "prediction" in table.header:
        _check_predicted(table, predictions)
    return predictions if threshold is None else replace(predictions, threshold=threshold)


@dataclass(frozen=True)
class _CsvTable:
    """The cells of a file as text."""

    path: Path
    header: list[str]
    rows: list[dict[str, str]]

    @classmethod
    def read(cls, path: Path) -> "_CsvTable":
        try:
            with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as stream:
                reader = csv.DictReader(stream)
                rows = list(reader)
                header = list(reader.fieldnames or [])
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror})") from error
        except csv.Error as error:
            raise InputError(f"{path}: is not a CSV file ({error})") from error
        for number, row in enumerate(rows, start=1):
            # DictReader keeps surplus fields under None and fills missing ones with None.
            if None in row or None in row.values():
                raise InputError(f"{path}: row {number} does not have {len(header)} fields")
        return cls(path, header, rows)

    def check_columns(self, class_names: tuple[str, ...]) -> None:
        probabilities = self.probability_columns("probability", class_names)
        missing = [name for name in (*_REQUIRED, *probabilities) if name not in self.header]
        if missing:
            raise InputError(
                f"{self.path}: no column {', '.join(missing)}; it has {', '.join(self.header)}"
            )
        if not self.rows:
            raise InputError(f"{self.path}: the table is empty; there is nothing to evaluate")
        unknown = {n for n in self.header if n.startswith(_PREFIX)} - set(probabilities)
        if unknown and len(probabilities) > 1:
            raise InputError(
                f"{self.path}: column {min(unknown)} belongs to no class; the classes are "
                f"{', '.join(class_names)}"
            )

    def probability_columns(self, name: str, class_names: tuple[str, ...]) -> list[str]:
        """The columns of a probability; of two classes another tool may have written one each."""
        per_class = [f"{name}_{class_name}" for class_name in class_names]
        if name not in self.header and all(column in self.header for column in per_class):
            return per_class
        return probability_columns(name, class_names)

    def numbers(self, convert: Callable[[str], _Number], name: str) -> list[_Number]:
        """A column of numbers."""
        values = []
        for number, row in enumerate(self.rows, start=1):
            try:
                values.append(convert(row[name]))
            except ValueError:
                raise InputError(
                    f"{self.path}: row {number} has {name} '{row[name]}'; expected a number"
                ) from None
        return values

    def probability(
        self, name: str, class_names: tuple[str, ...]
    ) -> Float[np.ndarray, " N"] | Float[np.ndarray, "N K"] | None:
        """A probability, or None if the file does not have it."""
        columns = self.probability_columns(name, class_names)
        if not all(column in self.header for column in columns):
            return None
        values = np.array([self.numbers(float, column) for column in columns])
        return values.T if len(columns) > 1 else values[0]


def _parse_table(table: _CsvTable, class_names: tuple[str, ...]) -> Predictions:
    text = {name: np.array([row.get(name, "") for row in table.rows]) for name in TEXT_COLUMNS}
    magnification = np.array(table.numbers(int, "magnification"))
    probability, calibrated = (
        table.probability(name, class_names) for name in ("probability", "calibrated")
    )
    for number, row in enumerate(table.rows, start=1):
        if row["label"] not in class_names:
            raise InputError(
                f"{table.path}: row {number} has label '{row['label']}'; "
                f"expected {' or '.join(class_names)}"
            )
    thresholds = set(table.numbers(float, "threshold") if "threshold" in table.header else [0.5])
    if len(thresholds) > 1:
        raise InputError(
            f"{table.path}: holds {len(thresholds)} thresholds; expected one for all rows"
        )
    assert probability is not None  # `check_columns` has seen its columns
    try:
        return Predictions(
            **text,
            magnification=magnification,
            label=np.array([class_names.index(row["label"]) for row in table.rows]),
            probability=probability,
            calibrated=calibrated,
            class_names=class_names,
            threshold=thresholds.pop(),
        )
    except InputError as error:
        raise InputError(f"{table.path}: {error}") from error


def _check_predicted(table: _CsvTable, predictions: Predictions) -> None:
    """Rejects a file whose predictions are not those that its probabilities give."""
    class_names = predictions.class_names
    for i, (row, index) in enumerate(zip(table.rows, predictions.prediction, strict=True)):
        predicted = class_names[index]
        if row["prediction"] == predicted:
            continue
        if len(class_names) == 2:
            why = (
                f"probability {row['probability']} at threshold {predictions.threshold} is "
                f"{predicted}; correct the threshold column or leave the prediction column out"
            )
        else:
            why = (
                f"the likeliest class is {predicted} "
                f"({predictions.probability[i, index]:.4g}); leave the prediction column out"
            )
        raise InputError(f"{table.path}: row {i + 1} predicts '{row['prediction']}', but {why}")
