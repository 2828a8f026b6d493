"""Checksums of what is kept on disk, so that bits that rot are found and not used.

CRC-32, which the standard library computes at 1.7 GB/s on one core: it finds every change of one
bit, and all but one in 4e9 of any others. It is no protection against somebody who changes files
on purpose.

A JSON file has its checksum as a key (`json_files`), a checkpoint in its `meta` (`checkpoint`), a
line of a prediction's journal at its end. A folder of a cache has the file `checksums.json`.
"""

import contextlib
import os
import zlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from absl import logging

from densenet_flax.common.errors import InputError
from densenet_flax.common.reading import check_regular, reading
from densenet_flax.storage.atomic import atomic_dir, discard
from densenet_flax.storage.json_files import read_json_object, write_json_object

CHECKSUMS_FILE = "checksums.json"

_BLOCK = 2**22  # bytes; blocks of a file are read and checked in parallel
_LARGE = 10**10  # bytes that take long enough to say so


class DamagedFiles(InputError):
    """Files are not as they were written."""


@contextlib.contextmanager
def cached_dir(target: Path) -> Iterator[Path]:
    """As `atomic_dir`, for a folder of a cache: the checksums of its files are added at the end."""
    with atomic_dir(target) as temporary:
        yield temporary
        write_checksums(temporary)


def is_intact(folder: Path) -> bool:
    """Whether a folder of a cache is there and as it was written; a damaged one is removed.

    Every file is read once.

    Raises:
      InputError: it is damaged and cannot be removed.
    """
    if not folder.is_dir():
        return False
    try:
        check_files(folder)
    except DamagedFiles as error:
        logging.warning("%s; this part of the cache is removed and made again", error)
        discard(folder)
        return False
    return True


def write_checksums(folder: Path, names: Iterable[str] = ()) -> None:
    """Writes the checksums of files in a folder, by default of all."""
    all_names = sorted({path.name for path in folder.iterdir()} - {CHECKSUMS_FILE})
    names = tuple(names) or all_names
    files = {name: _describe(folder / name) for name in names}
    write_json_object(folder / CHECKSUMS_FILE, {"files": files})


def check_files(folder: Path, names: Iterable[str] = ()) -> None:
    """Checks the files of a folder that `write_checksums` was called for.

    Those that earlier versions wrote get checksums now.

    Raises:
      DamagedFiles: one is not as it was.
    """
    if not os.path.lexists(folder / CHECKSUMS_FILE):
        logging.info("%s: an earlier version wrote it, without checksums; they are added", folder)
        with contextlib.suppress(InputError):  # the folder may be read-only
            write_checksums(folder, names)
        return
    try:
        files = read_json_object(folder / CHECKSUMS_FILE, "nothing beside it can be checked")[
            "files"
        ]
        for name, expected in files.items():
            if _describe(folder / name) != expected:
                raise DamagedFiles(f"{folder / name}: not the bytes that were written")
    except DamagedFiles:
        raise
    except (InputError, KeyError, AttributeError) as error:
        raise DamagedFiles(f"{folder}: damaged ({error})") from error


def _describe(path: Path) -> dict[str, Any]:
    """The size of a file, and the CRC-32 of each block; without its content in memory."""
    with reading(path):
        check_regular(path, path)
        with open(path, "rb") as file, ThreadPoolExecutor(os.cpu_count()) as pool:
            size = os.fstat(file.fileno()).st_size
            if size >= _LARGE:
                logging.info("%s: computing checksums of %.0f GB", path, size / 1e9)
            handle = file.fileno()
            checksum = lambda start: zlib.crc32(os.pread(handle, _BLOCK, start))  # noqa: E731
            return {"bytes": size, "crc32": list(pool.map(checksum, range(0, size, _BLOCK)))}
