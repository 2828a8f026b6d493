"""The other process of `hdf5_probe`: reads an HDF5 file. A script that imports h5py alone."""

import contextlib
import io
import os
import sys
from typing import Any

import h5py


def _read_all(file: h5py.File, size: int) -> None:
    seen = {file.id}

    def visit(item: Any) -> None:
        for name in item.attrs:
            with contextlib.suppress(Exception):
                item.attrs[name]
        if isinstance(item, h5py.Dataset):
            if not item.external and not item.is_virtual and item.nbytes <= 20 * size:
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
        if name == "-":
            content = sys.stdin.buffer.read()
            with h5py.File(io.BytesIO(content), "r") as file:
                _read_all(file, len(content))
        else:
            with h5py.File(name, "r") as file:
                _read_all(file, os.path.getsize(name))


if __name__ == "__main__":
    _main(sys.argv[1])
