"""Where the features of the prefix cache are kept: on the devices, in memory or in files."""

import contextlib
import functools
import itertools
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import jax
import ml_dtypes
import numpy as np
from absl import logging
from jax.sharding import Mesh
from jaxtyping import Array, Int, Shaped

from densenet_flax.common.errors import InputError
from densenet_flax.common.sharding import all_processes, over_batch, replicated
from densenet_flax.storage.atomic import discard, is_incomplete, remove_orphans, writing
from densenet_flax.storage.checksums import cached_dir, is_intact

STORAGES = ("device", "memory", "disk")
CACHE_MODES = ("auto", *STORAGES, "off")

# Features that are computed on a device or in memory are also kept in files for later runs, up to
# so many bytes for one run and for all of them.
MAX_KEPT_BYTES = 10**9
MAX_KEPT_BYTES_IN_ALL = 4 * 10**9

Shapes: TypeAlias = Mapping[str, jax.ShapeDtypeStruct]  # of the features at each cut, [N, …]
AddRows: TypeAlias = Callable[[str, np.ndarray], object]  # takes a cut and its next features


def size_in_bytes(shapes: Shapes) -> int:
    """Bytes that features of these shapes take."""
    return sum(int(np.prod(shape.shape)) * shape.dtype.itemsize for shape in shapes.values())


def choose_storage(size: int, mode: str, directory: Path | None) -> tuple[str, str]:
    """Chooses where to keep features, the same in every process.

    Args:
      size: bytes.
      mode: one of CACHE_MODES. 'auto' takes the devices if they are accelerators and 40 % of
        their free memory is enough, else half of the free host memory, else 80 % of the free disk.
      directory: where files would go; None for no files.

    Returns:
      One of STORAGES or 'off', and why it is 'off'.

    Raises:
      InputError: the mode is unknown, or 'disk' without a directory.
    """
    if mode not in CACHE_MODES:
        raise InputError(f"config.cache={mode!r}: expected one of {', '.join(CACHE_MODES)}")
    if mode == "disk" and directory is None:
        raise InputError("config.cache='disk': there is no directory to keep files in")
    if mode != "auto":
        return mode, "config.cache='off'"
    room = {
        "device": 0.4 * _free_on_devices(),
        "memory": 0.5 * _free_memory(),
        "disk": 0.8 * _free_on_disk(directory) if directory else 0.0,
    }
    for storage, available in room.items():
        if all_processes(size <= available):
            return storage, ""
    listing = ", ".join(f"{available / 1e9:.1f} GB ({name})" for name, available in room.items())
    return "off", f"it would take {size / 1e9:.1f} GB, and there is room for {listing}"


def is_kept(size: int) -> bool:
    """Whether features of so many bytes are kept in files, too, for later runs."""
    return size <= MAX_KEPT_BYTES


class Features:
    """Features at each cut, from which batches of rows can be taken."""

    def __init__(self, arrays: Mapping[str, Shaped[np.ndarray, "N ..."]], storage: str, mesh: Mesh):
        """Takes the features at every cut; storage 'device' copies them to the devices."""
        self.on_device = storage == "device"
        self._arrays: dict[str, Any] = dict(arrays)
        if self.on_device:
            # The whole array on each device: an epoch takes its rows in any order.
            put = functools.partial(jax.make_array_from_process_local_data, replicated(mesh))
            self._arrays = {cut: put(array, array.shape) for cut, array in arrays.items()}
        # Each device takes the rows of its own part of the batch.
        self._gather = jax.jit(lambda array, rows: array[rows], out_shardings=over_batch(mesh))

    def take(self, cut: str, rows: Int[np.ndarray, " B"]) -> Shaped[np.ndarray, "B ..."]:
        """Rows of the features at a cut, on the host."""
        return self._arrays[cut][rows]

    def gather(self, cut: str, rows: Int[Array, " B"]) -> Shaped[Array, "B ..."]:
        """Rows of the features at a cut, on the devices, split over them as `rows` is."""
        return self._gather(self._arrays[cut], rows)


def array_filler(arrays: Mapping[str, Shaped[np.ndarray, "N ..."]]) -> AddRows:
    """Returns a function that fills arrays with rows, in order."""
    filled = dict.fromkeys(arrays, 0)

    def add(cut: str, rows: Shaped[np.ndarray, "B ..."]) -> None:
        arrays[cut][filled[cut] : filled[cut] + len(rows)] = rows
        filled[cut] += len(rows)

    return add


@contextlib.contextmanager
def file_writer(folder: Path, shapes: Shapes) -> Iterator[AddRows]:
    """A function that writes rows, in order, to a folder that is complete or absent."""
    with writing(folder), cached_dir(folder) as temporary, contextlib.ExitStack() as stack:
        files = {}
        for cut, shape in shapes.items():
            # A stream and not a mapping, with which a full disk would end the process.
            files[cut] = stack.enter_context((temporary / f"{cut}.npy").open("wb"))
            descr = np.lib.format.dtype_to_descr(_stored_dtype(shape.dtype))
            header = {"descr": descr, "fortran_order": False, "shape": shape.shape}
            np.lib.format.write_array_header_1_0(files[cut], header)
        yield lambda cut, rows: files[cut].write(np.ascontiguousarray(rows).tobytes())


def keep_files(folder: Path, arrays: Mapping[str, Shaped[np.ndarray, "N ..."]]) -> None:
    """Writes arrays to a folder for later runs; the least recently used other folders make room."""
    shapes = {cut: jax.ShapeDtypeStruct(a.shape, a.dtype) for cut, a in arrays.items()}
    try:
        with file_writer(folder, shapes) as add:
            for cut, array in arrays.items():
                add(cut, array)
    except InputError as error:  # a run can do without
        logging.warning("features are not kept for later runs: %s", error)
        return
    remove_orphans(folder.parent)  # of other features, too
    total = 0
    with contextlib.suppress(FileNotFoundError, InputError):  # another process makes room too
        whole = itertools.filterfalse(is_incomplete, folder.parent.iterdir())
        for kept in sorted(whole, key=lambda kept: kept.stat().st_mtime, reverse=True):
            total += sum(path.stat().st_size for path in kept.glob("*.npy"))
            if total > MAX_KEPT_BYTES_IN_ALL:
                discard(kept)  # a process that has mapped a file keeps it


def open_files(folder: Path, shapes: Shapes) -> dict[str, np.ndarray] | None:
    """Maps the files of an earlier run; None if there are none, or they are damaged."""
    return map_files(folder, shapes) if is_intact(folder) else None


def map_files(folder: Path, shapes: Shapes) -> dict[str, np.ndarray] | None:
    """Maps files without a check of their content; None if they have other shapes."""
    arrays = {}
    for cut, shape in shapes.items():
        try:
            array = np.load(folder / f"{cut}.npy", mmap_mode="r")
        except (OSError, ValueError):
            return None
        if array.shape != shape.shape or array.dtype != _stored_dtype(shape.dtype):
            return None
        arrays[cut] = array.view(shape.dtype)
    with contextlib.suppress(OSError):
        os.utime(folder)  # the time of the last use, for `keep_files`
    return arrays


def _stored_dtype(dtype: np.dtype) -> np.dtype:
    """The dtype in a .npy file, a format that does not know bfloat16."""
    return np.dtype(np.uint16) if dtype == ml_dtypes.bfloat16 else np.dtype(dtype)


def _free_on_devices() -> float:
    device = jax.local_devices()[0]
    stats = device.memory_stats() or {}
    if device.platform == "cpu" or "bytes_limit" not in stats:
        return 0.0  # the memory of a CPU is that of the host
    return float(stats["bytes_limit"] - stats.get("bytes_in_use", 0))


def _free_memory() -> float:
    try:
        return float(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except ValueError:  # macOS does not report it
        return float("inf")


def _free_on_disk(directory: Path) -> float:
    while not directory.exists():
        directory = directory.parent
    return float(shutil.disk_usage(directory).free)
