"""Where features are kept, and those that are kept for later runs."""

import os

import jax
import ml_dtypes
import numpy as np
import pytest

from densenet_flax.common.errors import InputError
from densenet_flax.storage import feature_store
from densenet_flax.storage.feature_store import (
    choose_storage,
    is_kept,
    keep_files,
    open_files,
    size_in_bytes,
)


def make(value, dtype=np.float32):
    return {"norm": np.full((10, 2), value, dtype), "head": np.full((10, 3), -value, dtype)}


def shapes(arrays):
    return {cut: jax.ShapeDtypeStruct(a.shape, a.dtype) for cut, a in arrays.items()}


@pytest.mark.parametrize(
    ("size", "storage"),
    # 40 % of what is free on the devices, 50 % in memory, 80 % on disk.
    [(40, "device"), (41, "memory"), (1000, "memory"), (1001, "disk"), (8000, "disk")],
)
def test_auto_takes_the_fastest_storage_with_room(tmp_path, monkeypatch, size, storage):
    set_free_bytes(monkeypatch, device=100, memory=2000, disk=10_000)
    assert choose_storage(size, "auto", tmp_path) == (storage, "")


def test_auto_is_off_without_room(tmp_path, monkeypatch):
    set_free_bytes(monkeypatch, device=0, memory=2e9, disk=10e9)
    storage, reason = choose_storage(9 * 10**9, "auto", tmp_path)
    room = "0.0 GB (device), 1.0 GB (memory), 8.0 GB (disk)"
    assert (storage, reason) == ("off", f"it would take 9.0 GB, and there is room for {room}")
    assert choose_storage(2 * 10**9, "auto", None)[0] == "off"  # no files without a directory


def set_free_bytes(monkeypatch, device, memory, disk):
    monkeypatch.setattr(feature_store, "_free_on_devices", lambda: float(device))
    monkeypatch.setattr(feature_store, "_free_memory", lambda: float(memory))
    monkeypatch.setattr(feature_store, "_free_on_disk", lambda directory: float(disk))


def test_a_mode_is_what_it_says(tmp_path):
    for mode in ("device", "memory", "disk", "off"):
        assert choose_storage(10**18, mode, tmp_path)[0] == mode
    with pytest.raises(InputError, match="no directory"):
        choose_storage(1, "disk", None)
    with pytest.raises(InputError, match=r"'tape'.*auto, device"):
        choose_storage(1, "tape", tmp_path)


def test_up_to_a_gigabyte_is_kept_for_later_runs():
    shapes = {cut: jax.ShapeDtypeStruct((1000, 1000, 125), np.float32) for cut in "ab"}
    assert is_kept(size_in_bytes(shapes)) and not is_kept(size_in_bytes(shapes) + 1)
    assert 4 * size_in_bytes(shapes) == feature_store.MAX_KEPT_BYTES_IN_ALL


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_kept_files_are_found_again(tmp_path, dtype):
    arrays = make(1.5, dtype)
    keep_files(tmp_path / "key", arrays)
    opened = open_files(tmp_path / "key", shapes(arrays))
    for cut in arrays:
        assert opened[cut].dtype == dtype
        np.testing.assert_array_equal(opened[cut], arrays[cut])
    assert open_files(tmp_path / "other", shapes(arrays)) is None
    # Exponents of a few numbers, which no shape or dtype shows; they are computed again.
    path = tmp_path / "key" / "norm.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert open_files(tmp_path / "key", shapes(arrays)) is None
    assert not (tmp_path / "key").exists()
    keep_files(tmp_path / "key", arrays)
    assert open_files(tmp_path / "key", shapes({"norm": np.zeros((11, 2), dtype)})) is None


def test_the_least_recently_used_features_make_room(tmp_path, monkeypatch):
    one = shapes(make(0))
    size = sum(int(np.prod(s.shape)) * 4 for s in one.values()) + 2 * 128  # with NumPy's headers
    monkeypatch.setattr(feature_store, "MAX_KEPT_BYTES_IN_ALL", 3 * size)
    for number in range(3):
        keep_files(tmp_path / str(number), make(number))
        os.utime(tmp_path / str(number), (number + 1, number + 1))
    mapped = open_files(tmp_path / "1", one)
    assert open_files(tmp_path / "0", one)  # which is now the last that was used
    os.utime(tmp_path / "1", (2, 2))
    keep_files(tmp_path / "3", make(3))
    assert {path.name for path in tmp_path.iterdir()} == {"0", "2", "3"}
    assert (mapped["norm"] == 1).all()  # a run that uses it goes on


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path, caplog):
    (tmp_path / "file").write_text("in the way")
    keep_files(tmp_path / "file" / "key", make(1))
    assert "not kept for later runs" in caplog.text
