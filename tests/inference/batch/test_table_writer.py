"""Tables that are written part by part."""

import csv

import numpy as np
import pyarrow.parquet
import pytest

from densenet_flax.common.errors import InputError
from densenet_flax.inference.batch.table_writer import (
    check_format,
    chunks,
    write_features,
    write_table,
)

NAMES = ["a,b.png", 'quote".png', "\udcff.png"]  # the last is a name that is not UTF-8
VALUES = np.array([0.1, 1 / 3, 1e-300])


def parts(size):
    for rows in chunks(range(3), size):
        yield {"file": [NAMES[i] for i in rows], "value": VALUES[rows]}


@pytest.mark.parametrize("size", [1, 2, 3])
def test_any_parts_make_one_csv_whose_numbers_read_back_exactly(size, tmp_path):
    write_table(tmp_path / "x.csv", parts(size))
    with open(tmp_path / "x.csv", encoding="utf-8", errors="surrogateescape", newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["file", "value"]
    assert [row[0] for row in rows] == NAMES
    assert [float(row[1]) for row in rows] == VALUES.tolist()


@pytest.mark.parametrize("size", [1, 2, 3])
def test_any_parts_make_one_parquet_table(size, tmp_path):
    write_table(tmp_path / "x.parquet", parts(size))
    table = pyarrow.parquet.read_table(tmp_path / "x.parquet").to_pydict()
    assert table["file"] == [*NAMES[:2], "\\udcff.png"]
    assert table["value"] == VALUES.tolist()


@pytest.mark.parametrize("rows_per_chunk", [1, 2, 100])
def test_features_become_npy_or_parquet(rows_per_chunk, tmp_path):
    features = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
    (tmp_path / "raw").write_bytes(features.tobytes())
    for name in ("x.npy", "x.parquet"):
        write_features(
            tmp_path / name, tmp_path / "raw", 5, iter([*NAMES[:2], "c"]), rows_per_chunk
        )
    assert np.array_equal(np.load(tmp_path / "x.npy"), features)
    table = pyarrow.parquet.read_table(tmp_path / "x.parquet").to_pydict()
    assert table["file"] == [*NAMES[:2], "c"]
    assert np.array_equal(np.array(table["features"], np.float32), features)


def test_an_unknown_suffix_is_rejected(tmp_path):
    with pytest.raises(InputError, match=r"--output=.*o\.xlsx: expected a name that ends in \.csv"):
        check_format("--output", tmp_path / "o.xlsx", (".csv", ".parquet"))
