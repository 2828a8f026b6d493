"""Which process works in a folder.

The operating system releases a lock when the process ends, however it ends. (The package `filelock`
does not promise that: where a file system has no locks it writes a marker file, which a killed
process leaves behind.)
"""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from absl import logging

from densenet_flax.common.errors import InputError
from densenet_flax.storage.atomic import writing

_FILE = ".lock"


class LockedError(InputError):
    """Another process holds the lock."""


@contextlib.contextmanager
def locked(folder: Path, in_use: str, file: str = _FILE) -> Iterator[None]:
    """Keeps other processes out of a folder, which is created if need be.

    Args:
      folder: the folder.
      in_use: what to say where another process has it.
      file: name of the file in it that is locked; '' locks the folder itself, which network file
        systems may not be able to, and removes it if it stays empty.

    Raises:
      LockedError: another process holds the lock.
      InputError: the folder cannot be written.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with writing(folder / file):
        # Without waiting, in case the file is a pipe.
        mode = os.O_RDWR | os.O_CREAT | os.O_NONBLOCK if file else os.O_RDONLY
        handle = os.open(folder / file, mode | os.O_CLOEXEC, 0o666)
    try:
        lock_file(handle, folder, in_use)
        yield
    finally:
        if not file:
            with contextlib.suppress(OSError):
                folder.rmdir()
        os.close(handle)


def open_locked(path: Path, in_use: str) -> BinaryIO:
    """Opens a file to read and append to, created if need be, and locks it until it is closed.

    Raises:
      InputError: another process has it locked, or it cannot be written.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not path.is_file():  # opening a pipe would wait for ever
            raise InputError(f"{path}: not a regular file; remove it")
        file = open(path, "a+b")  # noqa: SIM115
    # On the file itself: a lock file beside it would be left behind by a kill.
    try:
        lock_file(file.fileno(), path, in_use)
    except InputError:
        file.close()
        raise
    file.seek(0)
    return file


def close_locked(file: BinaryIO, path: Path) -> None:
    """Closes what `open_locked` opened, and removes it if nothing was written."""
    if not os.fstat(file.fileno()).st_size:
        path.unlink(missing_ok=True)
    file.close()


def lock_file(handle: int, path: Path, in_use: str) -> None:
    """Locks an open file until it is closed, or raises a `LockedError` that says `in_use`."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise LockedError(f"{path}: {in_use}") from error
    except OSError as error:
        logging.warning(
            "%s: cannot be locked here (%s); see that no other process writes it",
            path,
            error.strerror,
        )


def is_locked(folder: Path) -> bool:
    """Whether a process has locked the file `.lock` of a folder."""
    try:
        handle = os.open(folder / _FILE, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        pass
    finally:
        os.close(handle)
    return False
