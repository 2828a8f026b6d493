"""Features that are kept for later runs."""

import os

import jax
import ml_dtypes
import numpy as np
import pytest

from densenet_flax.storage import feature_store
from densenet_flax.storage.feature_store import keep_files, open_files


def make(value, dtype=np.float32):
    return {"norm": np.full((10, 2), value, dtype), "head": np.full((10, 3), -value, dtype)}


def shapes(arrays):
    return {cut: jax.ShapeDtypeStruct(a.shape, a.dtype) for cut, a in arrays.items()}


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_what_is_kept_comes_back(tmp_path, dtype):
    arrays = make(1.5, dtype)
    keep_files(tmp_path / "key", arrays)
    found = open_files(tmp_path / "key", shapes(arrays))
    for cut in arrays:
        assert found[cut].dtype == dtype
        np.testing.assert_array_equal(found[cut], arrays[cut])
    assert open_files(tmp_path / "other", shapes(arrays)) is None
    assert open_files(tmp_path / "key", shapes({"norm": np.zeros((11, 2), dtype)})) is None


def test_the_longest_unused_makes_room(tmp_path, monkeypatch):
    one = shapes(make(0))
    size = sum(int(np.prod(s.shape)) * 4 for s in one.values()) + 2 * 128  # with NumPy's headers
    monkeypatch.setattr(feature_store, "KEPT_IN_ALL", 3 * size)
    for number in range(3):
        keep_files(tmp_path / str(number), make(number))
        os.utime(tmp_path / str(number), (number + 1, number + 1))
    mapped = open_files(tmp_path / "1", one)
    assert open_files(tmp_path / "0", one)  # which is now the last that was used
    os.utime(tmp_path / "1", (2, 2))
    keep_files(tmp_path / "3", make(3))
    assert {path.name for path in tmp_path.iterdir()} == {"0", "2", "3"}
    assert (mapped["norm"] == 1).all()  # a run that uses it goes on


def test_a_place_that_cannot_be_written_is_no_error(tmp_path, caplog):
    (tmp_path / "file").write_text("in the way")
    keep_files(tmp_path / "file" / "key", make(1))
    assert "not kept for later runs" in caplog.text
