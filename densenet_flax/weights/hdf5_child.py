"""The child process of `keras_files`: reads an HDF5 file. A script that imports h5py alone.

Usage: hdf5_child.py FILE SECONDS BYTES: the file, or '-' for its bytes on standard input; the
processor time and the memory that reading it may take.
"""

import contextlib
import io
import os
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

import h5py

OUT_OF_MEMORY = 3  # exit status


@contextlib.contextmanager
def _ignoring_errors() -> Iterator[None]:
    """An exception is no crash: our own reader will meet it and say what is wrong."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:  # HDF5 says so in its own words
        if "memory" in str(error).lower() or "allocat" in str(error).lower():
            raise MemoryError from error


def _read_all(file: h5py.File, size: int) -> None:
    """Reads what `keras_files` may read: attributes and arrays, of `size` bytes in all."""
    seen = {file.id}

    def visit(item: h5py.Group | h5py.Dataset) -> None:
        for name in item.attrs:
            with _ignoring_errors():
                item.attrs[name]
        if isinstance(item, h5py.Dataset):
            # Not what lies in other files or unpacks to far more than the file: it is rejected.
            is_inside = not item.external and not item.is_virtual
            if is_inside and not item.dtype.hasobject and item.nbytes <= 20 * size:
                item[()]
            return
        for name in item:
            with _ignoring_errors():
                hard = isinstance(item.get(name, getlink=True), h5py.HardLink)
                if hard and item[name].id not in seen:
                    seen.add(item[name].id)
                    visit(item[name])

    visit(file)


def _limit(seconds: int, size: int) -> None:
    """Limits what this process may take from here on."""
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
    with contextlib.suppress(OSError, ValueError, IndexError):  # not every system has it
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + size + (1 << 28)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _main(source: str, seconds: str, max_bytes: str) -> None:
    _limit(int(seconds), int(max_bytes))
    try:
        with _ignoring_errors():
            content = sys.stdin.buffer.read() if source == "-" else None
            size = os.path.getsize(source) if content is None else len(content)
            with h5py.File(source if content is None else io.BytesIO(content), "r") as file:
                _read_all(file, size)
    except MemoryError:
        sys.exit(OUT_OF_MEMORY)


if __name__ == "__main__":
    _main(*sys.argv[1:])
