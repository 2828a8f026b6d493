"""Predictions tables from files, this package's or another tool's."""

import csv
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from densenet_flax.common.errors import InputError
from densenet_flax.evaluation.predictions import (
    CLASS_NAMES,
    TEXT,
    Predictions,
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
        path: A CSV file with at least file, patient, magnification, label and probability, or in
            place of the last a column 'probability_<class>' for each of several classes. Labels
            are class names; columns 'calibrated' are read if there are any.
        class_names: (negative, positive), or three and more. None takes them from the columns
            'probability_<class>', in their order, and is `CLASS_NAMES` if there are none.
        threshold: None takes the file's own, or 0.5 if it has no such column. Another value
            judges the same probabilities anew.

    Raises:
        InputError: A column is missing, a value cannot be read, a file occurs twice, or the
            predictions in the file are not what its probabilities and threshold say.
    """
    path = Path(path)
    rows, header = _rows(path)
    if class_names is None:
        named = tuple(name.removeprefix(_PREFIX) for name in header if name.startswith(_PREFIX))
        class_names = named if named and "probability" not in header else CLASS_NAMES
    wanted = _keys("probability", class_names, header)
    missing = [n for n in ("file", "patient", "magnification", "label", *wanted) if n not in header]
    if missing:
        raise InputError(f"{path}: no column {', '.join(missing)}; it has {', '.join(header)}")
    if not rows:
        raise InputError(f"{path}: the table is empty; there is nothing to evaluate")
    strangers = {name for name in header if name.startswith(_PREFIX)} - set(wanted)
    if strangers and len(wanted) > 1:
        raise InputError(
            f"{path}: column {min(strangers)} is of no class; the classes are "
            f"{', '.join(class_names)}"
        )
    table = _table(path, rows, header, class_names)
    if "prediction" in header:
        _check_calls(path, rows, table)
    return table if threshold is None else replace(table, threshold=threshold)


def _keys(name: str, class_names: tuple[str, ...], header: list[str]) -> list[str]:
    """The columns of a probability; two classes may have one or, of another tool, one each."""
    each = [f"{name}_{one}" for one in class_names]
    if name not in header and all(key in header for key in each):
        return each
    return probability_columns(name, class_names)


def _rows(path: Path) -> tuple[list[dict[str, str]], list[str]]:
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
        if None in row or None in row.values():
            raise InputError(f"{path}: row {number} does not have {len(header)} fields")
    return rows, header


def _table(
    path: Path, rows: list[dict[str, str]], header: list[str], class_names: tuple[str, ...]
) -> Predictions:
    def numbers(kind: type, name: str) -> list[Any]:
        return [_parse(kind, row, name, path, number) for number, row in enumerate(rows, 1)]

    columns: dict[str, Any] = {name: [row.get(name, "") for row in rows] for name in TEXT}
    columns["magnification"] = numbers(int, "magnification")
    for name in ("probability", "calibrated"):
        keys = _keys(name, class_names, header)
        if all(key in header for key in keys):
            values = np.array([numbers(float, key) for key in keys])
            columns[name] = values.T if len(keys) > 1 else values[0]
    for number, row in enumerate(rows, start=1):
        if row["label"] not in class_names:
            raise InputError(
                f"{path}: row {number} has label '{row['label']}'; "
                f"expected {' or '.join(class_names)}"
            )
    columns["label"] = [class_names.index(row["label"]) for row in rows]
    stated = set(numbers(float, "threshold")) if "threshold" in header else {0.5}
    if len(stated) > 1:
        raise InputError(f"{path}: holds {len(stated)} thresholds; expected one for all rows")
    try:
        return Predictions(**columns, class_names=class_names, threshold=stated.pop())
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _check_calls(path: Path, rows: list[dict[str, str]], table: Predictions) -> None:
    """The file's own calls must be those that its probabilities give."""
    for i, (row, index) in enumerate(zip(rows, table.prediction, strict=True)):
        called = table.class_names[index]
        if row["prediction"] == called:
            continue
        if len(table.class_names) == 2:
            why = (
                f"probability {row['probability']} at threshold {table.threshold} is {called}; "
                "correct the threshold column or leave the prediction column out"
            )
        else:
            why = (
                f"the likeliest class is {called} ({table.probability[i, index]:.4g}); leave the "
                "prediction column out"
            )
        raise InputError(f"{path}: row {i + 1} predicts '{row['prediction']}', but {why}")


def _parse(kind: type, row: dict[str, str], name: str, path: Path, number: int) -> Any:
    try:
        return kind(row[name])
    except ValueError:
        raise InputError(
            f"{path}: row {number} has {name} '{row[name]}'; expected a number"
        ) from None
