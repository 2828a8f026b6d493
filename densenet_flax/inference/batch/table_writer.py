"""Tables that are written part by part, as CSV, Parquet or NumPy: each file complete or absent.

The functions raise InputError where a file cannot be written.
"""

import contextlib
import csv
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import numpy as np
from jaxtyping import Float

from densenet_flax.common.csv_cells import write_cell
from densenet_flax.common.errors import InputError
from densenet_flax.evaluation.predictions import probability_columns
from densenet_flax.inference.results import Prediction
from densenet_flax.storage.atomic import atomic_file

Item = TypeVar("Item")
# Rows of a table: their columns by name, each a list of texts or an array of numbers.
Part: TypeAlias = Mapping[str, list[str] | Float[np.ndarray, "N"]]


def check_format(flag: str, path: Path, suffixes: Sequence[str]) -> None:
    """Raises InputError if the suffix names no format, or if its library is not installed."""
    if path.suffix not in suffixes:
        raise InputError(f"{flag}={path}: expected a name that ends in {' or '.join(suffixes)}")
    if path.suffix == ".parquet":
        _import_pyarrow()


def chunks(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Yields the items in lists of at most `size`."""
    iterator = iter(items)
    while chunk := list(itertools.islice(iterator, size)):
        yield chunk


def write_table(path: Path, parts: Iterable[Part]) -> None:
    """Writes a `.csv` or `.parquet` file of parts, at least one, that have the same columns."""
    write = _write_csv if path.suffix == ".csv" else _write_parquet
    with atomic_file(path) as temporary:
        write(temporary, parts)


def prediction_columns(prediction: Prediction) -> dict[str, list[str] | Float[np.ndarray, "N"]]:
    """The columns `probability…`, `calibrated…` and `decision` of a table."""
    return {
        **_class_columns("probability", prediction.probability, prediction),
        **_class_columns("calibrated", prediction.calibrated, prediction),
        "decision": prediction.decision.tolist(),
    }


def _class_columns(
    name: str, values: Float[np.ndarray, "N K"], prediction: Prediction
) -> dict[str, Float[np.ndarray, "N"]]:
    class_names = prediction.class_names
    if prediction.present is not None:  # two independent classes have two columns
        columns = [f"{name}_{class_name}" for class_name in class_names]
        return dict(zip(columns, values.T, strict=True))
    values = values[:, 1:] if len(class_names) == 2 else values
    return dict(zip(probability_columns(name, class_names), values.T, strict=True))


def decided_classes(prediction: Prediction) -> list[str]:
    """The decided class of every image, or all classes that are present in them."""
    if prediction.present is None:
        return prediction.decision.tolist()
    return np.array(prediction.class_names)[np.nonzero(prediction.present)[1]].tolist()


def write_features(
    path: Path, raw: Path, width: int, files: Iterable[str], rows_per_chunk: int
) -> None:
    """Writes features from a file of raw float32 numbers, in the order of its rows.

    Args:
      path: a `.npy` file, float32 [N, width], or a `.parquet` file with the columns `file` and
        `features`.
      raw: the file of numbers, row after row.
      width: numbers in a row.
      files: names of the files of the rows.
      rows_per_chunk: number of rows in memory at a time.
    """
    rows = raw.stat().st_size // (4 * width)  # 4 bytes a number
    with open(raw, "rb") as source, atomic_file(path) as temporary:
        data = iter(lambda: source.read(4 * width * rows_per_chunk), b"")
        if path.suffix == ".npy":
            with open(temporary, "wb") as file:
                # The header needs the number of rows, which is why the features were raw until now.
                header = {"descr": "<f4", "fortran_order": False, "shape": (rows, width)}
                np.lib.format.write_array_header_1_0(file, header)
                file.writelines(data)
        else:
            names = chunks(files, rows_per_chunk)
            # Lists of one length, without an offset for each row.
            to_lists = _import_pyarrow().FixedSizeListArray.from_arrays
            _write_parquet(
                temporary,
                (
                    {"file": file, "features": to_lists(np.frombuffer(values, np.float32), width)}
                    for file, values in zip(names, data, strict=True)
                ),
            )


def _write_csv(path: Path, parts: Iterable[Part]) -> None:
    # File names need not be UTF-8: Python keeps such bytes as surrogates, and they are written so.
    with open(path, "w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        writer = csv.writer(file)
        for number, part in enumerate(parts):
            if not number:
                writer.writerow(part)
            # `repr` writes as many digits as reading a number back exactly takes.
            cells = (
                map(write_cell, x) if isinstance(x, list) else map(repr, x.tolist())
                for x in part.values()
            )
            writer.writerows(zip(*cells, strict=True))


def _write_parquet(path: Path, parts: Iterable[Mapping[str, Any]]) -> None:
    pyarrow = _import_pyarrow()
    with contextlib.ExitStack() as stack:
        writer = None
        for part in parts:
            table = pyarrow.table(
                {name: _escape(x) if isinstance(x, list) else x for name, x in part.items()}
            )
            if writer is None:  # the schema is known with the first part
                new_writer = pyarrow.parquet.ParquetWriter(path, table.schema)
                writer = stack.enter_context(new_writer)
            writer.write_table(table)


def _escape(texts: list[str]) -> list[str]:
    # Parquet's strings are UTF-8: bytes of a file name that are not are written as escapes.
    return [text.encode("utf-8", "backslashreplace").decode() for text in texts]


def _import_pyarrow() -> Any:
    try:
        import pyarrow.parquet  # when it is needed: it takes half a second and is optional
    except ImportError as error:
        raise InputError(
            "Parquet needs pyarrow, which is not installed: pip install 'densenet_flax[parquet]', "
            "or choose .csv or .npy"
        ) from error
    return pyarrow
