"""The child process of `keras_files`: reads an HDF5 file. A script that imports h5py alone.

Usage: hdf5_child.py FILE, or '-' for the file's bytes on standard input.
"""

import contextlib
import io
import os
import sys

import h5py


def _read_all(file: h5py.File, size: int) -> None:
    """Reads what `keras_files` may read: attributes and arrays, of `size` bytes in all."""
    seen = {file.id}

    def visit(item: h5py.Group | h5py.Dataset) -> None:
        for name in item.attrs:
            with contextlib.suppress(Exception):
                item.attrs[name]
        if isinstance(item, h5py.Dataset):
            # Not what lies in other files or unpacks to far more than the file: it is rejected.
            is_inside = not item.external and not item.is_virtual
            if is_inside and not item.dtype.hasobject and item.nbytes <= 20 * size:
                item[()]
            return
        for name in item:
            with contextlib.suppress(Exception):
                hard = isinstance(item.get(name, getlink=True), h5py.HardLink)
                if hard and item[name].id not in seen:
                    seen.add(item[name].id)
                    visit(item[name])

    visit(file)


def _main(name: str) -> None:
    # An exception is no crash: our own reader will meet it and say what is wrong.
    with contextlib.suppress(Exception):
        content = sys.stdin.buffer.read() if name == "-" else None
        size = os.path.getsize(name) if content is None else len(content)
        with h5py.File(name if content is None else io.BytesIO(content), "r") as file:
            _read_all(file, size)


if __name__ == "__main__":
    _main(sys.argv[1])
