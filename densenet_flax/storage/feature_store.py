"""Where the features of the prefix cache are kept: on the devices, in memory or in files."""

import contextlib
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import jax
import ml_dtypes
import numpy as np
from absl import logging
from jax.sharding import Mesh

from densenet_flax.common.errors import InputError
from densenet_flax.common.sharding import all_processes, over_batch, replicated
from densenet_flax.storage.atomic import atomic_dir, writing

PLACES = ("device", "memory", "disk")
CACHE_MODES = ("auto", *PLACES, "off")
KEPT = 10**9  # bytes of a run's features, at most, that are kept for later runs
KEPT_IN_ALL = 4 * KEPT

Shapes = Mapping[str, jax.ShapeDtypeStruct]  # of the features at each cut, all images together


def size_of(shapes: Shapes) -> int:
    """Bytes that features of these shapes take."""
    return sum(int(np.prod(shape.shape)) * shape.dtype.itemsize for shape in shapes.values())


def check_mode(mode: str) -> None:
    """Refuses what is none of CACHE_MODES."""
    if mode not in CACHE_MODES:
        raise InputError(f"config.cache={mode!r}: expected one of {', '.join(CACHE_MODES)}")


def choose_place(size: int, mode: str, directory: Path | None) -> tuple[str, str]:
    """Where so many bytes go, the same in every process.

    Args:
      size: bytes.
      mode: one of CACHE_MODES. 'auto' takes the devices if they are accelerators and 40 % of
        their free memory is enough, else half of the free host memory, else 80 % of the free disk.
      directory: where files would go; None for no files.

    Returns:
      One of PLACES or 'off', and why it is 'off'.

    Raises:
      InputError: the mode is unknown, or 'disk' without a directory.
    """
    check_mode(mode)
    if mode == "disk" and directory is None:
        raise InputError("config.cache='disk': there is no directory to keep files in")
    if mode != "auto":
        return mode, "config.cache='off'"
    room = {
        "device": 0.4 * _free_on_devices(),
        "memory": 0.5 * _free_memory(),
        "disk": 0.8 * _free_on_disk(directory) if directory else 0.0,
    }
    for place, bytes_ in room.items():
        if all_processes(size <= bytes_):
            return place, ""
    there = ", ".join(f"{bytes_ / 1e9:.1f} GB ({place})" for place, bytes_ in room.items())
    return "off", f"it would take {size / 1e9:.1f} GB, and there is room for {there}"


class Features:
    """Features at each cut, of which batches of rows can be taken."""

    def __init__(self, arrays: Mapping[str, np.ndarray], place: str, mesh: Mesh):
        """Takes arrays `[N, …]` of every cut; those that go to the devices are copied there."""
        self._arrays: dict[str, Any] = dict(arrays)
        self.on_device = place == "device"
        if self.on_device:
            whole = replicated(mesh)
            for cut, array in arrays.items():
                self._arrays[cut] = jax.make_array_from_process_local_data(
                    whole, array, array.shape
                )
        self._gather = jax.jit(lambda array, rows: array[rows], out_shardings=over_batch(mesh))

    def __contains__(self, cut: str) -> bool:
        return cut in self._arrays

    def rows(self, cut: str, rows: np.ndarray) -> np.ndarray:
        """Features `[B, …]` on the host."""
        return self._arrays[cut][rows]

    def gather(self, cut: str, rows: jax.Array) -> jax.Array:
        """Features `[B, …]` on the devices, by rows that are spread over them."""
        return self._gather(self._arrays[cut], rows)


class Writer:
    """Takes features batch by batch, in order."""

    def __init__(self, shapes: Shapes, folder: Path | None):
        """Prepares for arrays of these shapes, in memory or in a folder."""
        self._arrays: dict[str, np.ndarray] = {}
        self._files: dict[str, IO[bytes]] = {}
        self._filled = dict.fromkeys(shapes, 0)
        for cut, shape in shapes.items():
            if folder is None:
                self._arrays[cut] = np.empty(shape.shape, shape.dtype)
            else:
                # As a stream and not through a mapping: a full disk is then an error, not a crash.
                self._files[cut] = open(folder / f"{cut}.npy", "wb")  # noqa: SIM115
                header = {
                    "descr": np.lib.format.dtype_to_descr(_stored(np.dtype(shape.dtype))),
                    "fortran_order": False,
                    "shape": shape.shape,
                }
                np.lib.format.write_array_header_1_0(self._files[cut], header)

    def add(self, cut: str, values: np.ndarray) -> None:
        """The next rows at a cut."""
        if self._files:
            self._files[cut].write(np.ascontiguousarray(values).tobytes())
            return
        start = self._filled[cut]
        self._arrays[cut][start : start + len(values)] = values
        self._filled[cut] = start + len(values)

    def close(self) -> dict[str, np.ndarray]:
        """The arrays in memory; none if they went to files."""
        for file in self._files.values():
            file.close()
        return self._arrays


@contextlib.contextmanager
def new_files(folder: Path) -> Iterator[Path]:
    """A folder for a `Writer` that gets its name when everything in it is whole.

    Raises:
      InputError: it cannot be written.
    """
    with writing(folder), atomic_dir(folder) as temporary:
        yield temporary


def keep_files(folder: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Keeps arrays that are in memory for later runs; the longest unused neighbours make room.

    A cache of convenience: a disk that is full or cannot be written is logged and nothing else.
    """
    shapes = {cut: jax.ShapeDtypeStruct(a.shape, a.dtype) for cut, a in arrays.items()}
    try:
        with new_files(folder) as temporary:
            writer = Writer(shapes, temporary)
            for cut, array in arrays.items():
                writer.add(cut, array)
            writer.close()
    except InputError as error:
        logging.warning("features are not kept for later runs: %s", error)
        return
    total = 0
    for other in sorted(folder.parent.iterdir(), key=_last_used, reverse=True):
        total += sum(_size(path) for path in other.glob("*.npy"))
        if total > KEPT_IN_ALL:
            shutil.rmtree(other, ignore_errors=True)  # who has it mapped keeps it


def open_files(folder: Path, shapes: Shapes) -> dict[str, np.ndarray] | None:
    """Maps what a run before has written; None if it is not there or not of these shapes."""
    found = {}
    for cut, shape in shapes.items():
        try:
            array = np.load(folder / f"{cut}.npy", mmap_mode="r")
        except (OSError, ValueError):
            return None
        if array.shape != shape.shape or array.dtype != _stored(np.dtype(shape.dtype)):
            return None
        found[cut] = array.view(shape.dtype)
    with contextlib.suppress(OSError):
        os.utime(folder)  # for `keep_files`: it has been of use
    return found


def _last_used(path: Path) -> float:
    with contextlib.suppress(OSError):
        return path.stat().st_mtime
    return 0.0


def _size(path: Path) -> int:
    with contextlib.suppress(OSError):
        return path.stat().st_size
    return 0


def _stored(dtype: np.dtype) -> np.dtype:
    """NumPy's own files know no bfloat16."""
    return np.dtype(np.uint16) if dtype == ml_dtypes.bfloat16 else dtype


def _free_on_devices() -> float:
    device = jax.local_devices()[0]
    stats = device.memory_stats() or {}
    if device.platform == "cpu" or "bytes_limit" not in stats:
        return 0.0  # a CPU's memory is the host's
    return float(stats["bytes_limit"] - stats.get("bytes_in_use", 0))


def _free_memory() -> float:
    try:
        return float(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except ValueError:  # macOS does not tell
        return float("inf")


def _free_on_disk(directory: Path) -> float:
    while not directory.exists():
        directory = directory.parent
    return float(shutil.disk_usage(directory).free)
