"""Tables that are written part by part, as CSV, Parquet or NumPy: each file complete or absent."""

import csv
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import numpy as np
from jaxtyping import Float

from densenet_flax.common.errors import InputError
from densenet_flax.storage.atomic import atomic_file

Item = TypeVar("Item")
Column: TypeAlias = Sequence[str] | Float[np.ndarray, "N"]
Part: TypeAlias = Mapping[str, Column]  # some rows of a table: their columns by name


def check_format(flag: str, path: Path, suffixes: Sequence[str]) -> None:
    """Checks that the suffix of a file names a format, and that its library is installed.

    Raises:
      InputError: it does not, or it is not.
    """
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
    """Writes a table.

    Args:
      path: a `.csv` or `.parquet` file.
      parts: its rows, at least one part; all parts have the same columns.

    Raises:
      InputError: it cannot be written.
    """
    with atomic_file(path) as temporary:
        if path.suffix == ".csv":
            _write_csv(temporary, parts)
        else:
            pyarrow, _ = _import_pyarrow()
            tables = ({k: _to_arrow(pyarrow, v) for k, v in part.items()} for part in parts)
            _write_parquet(temporary, tables)


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

    Raises:
      InputError: it cannot be written.
    """
    rows = raw.stat().st_size // (4 * width)  # 4 bytes a number
    with open(raw, "rb") as source, atomic_file(path) as temporary:
        parts = iter(lambda: source.read(4 * width * rows_per_chunk), b"")
        if path.suffix == ".npy":
            with open(temporary, "wb") as file:
                # The header needs the number of rows, which is why the features were raw until now.
                header = {"descr": "<f4", "fortran_order": False, "shape": (rows, width)}
                np.lib.format.write_array_header_1_0(file, header)
                file.writelines(parts)
            return
        pyarrow, _ = _import_pyarrow()

        def tables() -> Iterator[Mapping[str, Any]]:
            for data, names in zip(parts, chunks(files, rows_per_chunk), strict=True):
                values = pyarrow.array(np.frombuffer(data, np.float32))
                # Lists of one length, without an offset for each row.
                features = pyarrow.FixedSizeListArray.from_arrays(values, width)
                yield {"file": _to_arrow(pyarrow, names), "features": features}

        _write_parquet(temporary, tables())


def _write_csv(path: Path, parts: Iterable[Part]) -> None:
    # File names need not be UTF-8: Python keeps such bytes as surrogates, and they are written so.
    with open(path, "w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        writer = csv.writer(file)
        for number, part in enumerate(parts):
            if not number:
                writer.writerow(part)
            writer.writerows(zip(*map(_to_cells, part.values()), strict=True))


def _to_cells(column: Column) -> Iterable[str]:
    """The cells of a column; numbers with as many digits as reading them back exactly takes."""
    return map(repr, column.tolist()) if isinstance(column, np.ndarray) else column


def _write_parquet(path: Path, tables: Iterable[Mapping[str, Any]]) -> None:
    pyarrow, parquet = _import_pyarrow()
    writer = None
    try:
        for columns in tables:
            table = pyarrow.table(dict(columns))
            # The schema is known with the first part.
            writer = writer or parquet.ParquetWriter(path, table.schema)
            writer.write_table(table)
    finally:
        if writer:
            writer.close()


def _to_arrow(pyarrow: Any, column: Column) -> Any:
    if isinstance(column, np.ndarray):
        return pyarrow.array(column)
    # Parquet's strings are UTF-8: bytes of a file name that are not are written as escapes.
    return pyarrow.array([text.encode("utf-8", "backslashreplace").decode() for text in column])


def _import_pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow  # when it is needed: it takes half a second and is optional
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise InputError(
            "Parquet needs pyarrow, which is not installed: pip install 'densenet_flax[parquet]', "
            "or choose .csv or .npy"
        ) from error
    return pyarrow, parquet
