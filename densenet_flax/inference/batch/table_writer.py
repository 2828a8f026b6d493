"""Tables that are written a chunk at a time: CSV, Parquet and NumPy, whole or not at all."""

import csv
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from densenet_flax.common.errors import InputError
from densenet_flax.storage.atomic import atomic_file

Item = TypeVar("Item")


def check_suffix(flag: str, path: Path, suffixes: Sequence[str]) -> None:
    """Refuses a file name that says no known format, or one whose library is missing."""
    if path.suffix not in suffixes:
        raise InputError(f"{flag}={path}: expected a name that ends in {' or '.join(suffixes)}")
    if path.suffix == ".parquet":
        _pyarrow()


def chunks(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """The items in lists of at most `size`."""
    iterator = iter(items)
    while some := list(itertools.islice(iterator, size)):
        yield some


def write_table(path: Path, parts: Iterable[Mapping[str, Any]]) -> None:
    """Writes a table.

    Args:
      path: `.csv` or `.parquet`.
      parts: its rows in parts, each a mapping from column to values; at least one.

    Raises:
      InputError: it cannot be written.
    """
    with atomic_file(path) as temporary:
        if path.suffix == ".csv":
            # File names need not be UTF-8: Python keeps odd bytes as surrogates.
            with open(temporary, "w", encoding="utf-8", errors="surrogateescape", newline="") as f:
                writer = csv.writer(f)
                for number, part in enumerate(parts):
                    if not number:
                        writer.writerow(part)
                    writer.writerows(zip(*map(_written, part.values()), strict=True))
            return
        pyarrow, parquet = _pyarrow()
        with _Parquet(pyarrow, parquet, temporary) as out:
            for part in parts:
                out.write({name: _arrow(pyarrow, column) for name, column in part.items()})


def write_features(path: Path, raw: Path, width: int, names: Iterable[str], chunk: int) -> None:
    """Writes features that lie in a raw file.

    Args:
      path: `.npy`, float32 [N, width], or `.parquet`, with the columns file and features.
      raw: float32, one row after the other.
      width: numbers in a row.
      names: of the rows.
      chunk: rows in memory at a time.

    Raises:
      InputError: it cannot be written.
    """
    rows = raw.stat().st_size // (4 * width)
    with open(raw, "rb") as source, atomic_file(path) as temporary:
        parts = iter(lambda: source.read(4 * width * chunk), b"")
        if path.suffix == ".npy":
            with open(temporary, "wb") as file:
                header = {"descr": "<f4", "fortran_order": False, "shape": (rows, width)}
                np.lib.format.write_array_header_1_0(file, header)
                for data in parts:
                    file.write(data)
            return
        pyarrow, parquet = _pyarrow()
        with _Parquet(pyarrow, parquet, temporary) as out:
            for data, files in zip(parts, chunks(names, chunk), strict=True):
                values = pyarrow.array(np.frombuffer(data, np.float32))
                features = pyarrow.FixedSizeListArray.from_arrays(values, width)
                out.write({"file": _arrow(pyarrow, files), "features": features})


class _Parquet:
    """A Parquet file that takes its columns from the first part."""

    def __init__(self, pyarrow: Any, parquet: Any, path: Path):
        self._pyarrow, self._parquet, self._path = pyarrow, parquet, path
        self._writer: Any = None

    def __enter__(self) -> "_Parquet":
        return self

    def write(self, columns: Mapping[str, Any]) -> None:
        table = self._pyarrow.table(dict(columns))
        self._writer = self._writer or self._parquet.ParquetWriter(self._path, table.schema)
        self._writer.write_table(table)

    def __exit__(self, *_: object) -> None:
        if self._writer:
            self._writer.close()


def _written(column: Any) -> Iterable[Any]:
    """Numbers so that reading gives the same ones back."""
    return map(repr, column.tolist()) if isinstance(column, np.ndarray) else column


def _arrow(pyarrow: Any, column: Any) -> Any:
    if isinstance(column, np.ndarray):
        return pyarrow.array(column)
    return pyarrow.array([text.encode("utf-8", "backslashreplace").decode() for text in column])


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow  # half a second, and not everybody's
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise InputError(
            "Parquet needs pyarrow, which is not installed: pip install 'densenet_flax[parquet]', "
            "or choose .csv or .npy"
        ) from error
    return pyarrow, parquet
