"""Files and folders that are either whole or absent, and write errors that a user can act on.

What is not whole yet has a name that begins with 'incomplete.', and is locked by the process that
writes it. What a killed process left behind is therefore known by its lock, and is removed.
"""

import contextlib
import fcntl
import functools
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from absl import logging

from densenet_flax.common.errors import WriteError

# The name of the target, which may be cut, then what `tempfile` adds and the target's suffix.
_INCOMPLETE = re.compile(r"incomplete\..+\.[a-z0-9_]{8}(\.[^.]*)?", re.DOTALL)
_TEMPFILE_LETTERS = 8


@contextlib.contextmanager
def writing(path: str | os.PathLike[str]) -> Iterator[None]:
    """Raises a `WriteError` where the operating system refuses to write to `path`."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise WriteError(
            f"{path}: cannot write here ({reason}); free some space, correct the "
            "permissions or choose another directory"
        ) from error


@contextlib.contextmanager
def atomic_dir(target: Path) -> Iterator[Path]:
    """A new folder beside `target`, renamed to it when the block ends without an error.

    Raises:
      WriteError: the operating system refuses to write there.
    """
    # Two processes may do this at once: names are unique and the rename is atomic. The second finds
    # `target` there and discards its own work, which is right because callers put everything that
    # the content depends on into the name.
    prefix = f"incomplete.{target.name}."

    def make() -> tuple[int, str]:
        folder = tempfile.mkdtemp(prefix=prefix, dir=target.parent)
        return os.open(folder, os.O_RDONLY), folder

    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_orphans_of(target.parent, prefix)
        lock, temporary = _make_locked(make)
    try:
        yield temporary
        temporary.chmod(0o777 & ~_umask())  # mkdtemp lets only the owner read
        with writing(target):
            try:
                temporary.rename(target)
            except OSError:
                if not target.is_dir():
                    raise
                logging.info("%s: another process has made it meanwhile", target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        os.close(lock)


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """A new file beside `path`, renamed to it when the block ends without an error.

    Raises:
      WriteError: the operating system refuses to write there.
    """
    lock, temporary = -1, None
    # Cut, as a name has 255 bytes at most, and a character may take four.
    prefix, suffix = f"incomplete.{path.name[:30]}.", path.suffix[:20]
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            _remove_orphans_of(path.parent, prefix, suffix)
            lock, temporary = _make_locked(lambda: tempfile.mkstemp(suffix, prefix, path.parent))
            yield temporary
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
            temporary.chmod(0o666 & ~_umask())  # mkstemp lets only the owner read
            os.replace(temporary, path)
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            os.close(lock)


def write_text(path: Path, text: str) -> None:
    """Writes `text` to `path`; a reader sees the old file or the new one, never a part."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def replace_files(directory: str | os.PathLike[str], contents: Mapping[str, bytes]) -> None:
    """Writes several files of one directory; all are complete before the first is replaced.

    Args:
      directory: created if need be.
      contents: content of each file by name. They are replaced in this order, so the file that
        people open should be the last: once it is new, everything beside it is new as well.

    Raises:
      WriteError: the directory cannot be written to; the old files are untouched.
    """
    with contextlib.ExitStack() as stack:
        # Contexts end, and so files are replaced, in the reverse order.
        for name, data in reversed(list(contents.items())):
            stack.enter_context(atomic_file(Path(directory) / name)).write_bytes(data)


def discard(folder: Path) -> None:
    """Removes a folder; other processes see it whole or not at all.

    Raises:
      WriteError: the operating system refuses.
    """
    with writing(folder), contextlib.suppress(FileNotFoundError):  # another process was first
        aside = Path(tempfile.mkdtemp(prefix=f"incomplete.{folder.name}.", dir=folder.parent))
        try:
            folder.rename(aside)
        finally:
            shutil.rmtree(aside, ignore_errors=True)


def is_incomplete(path: Path) -> bool:
    """Whether a file or folder has the name of one that is not whole yet."""
    return bool(_INCOMPLETE.fullmatch(path.name))


def remove_orphans(folder: Path) -> None:
    """Removes what killed processes left in a folder that holds files of this package alone."""
    with contextlib.suppress(OSError):
        for path in filter(is_incomplete, list(folder.iterdir())):
            _remove_unless_locked(path)


def _remove_orphans_of(folder: Path, prefix: str, suffix: str = "") -> None:
    """Removes what killed processes left of one file or folder."""
    length = len(prefix) + _TEMPFILE_LETTERS + len(suffix)
    for path in _incomplete_at_start(folder):
        name = path.name
        if len(name) == length and name.startswith(prefix) and name.endswith(suffix):
            _remove_unless_locked(path)


@functools.lru_cache(maxsize=64)  # a folder of a million overlays is listed once
def _incomplete_at_start(folder: Path) -> tuple[Path, ...]:
    """What in a folder is not whole before this process writes there."""
    return tuple(filter(is_incomplete, folder.iterdir()))


def _make_locked(make: Callable[[], tuple[int, str]]) -> tuple[int, Path]:
    """Makes a temporary file or folder, and locks it for as long as it is open.

    `make` returns it opened, and its path.
    """
    while True:
        handle, name = make()
        # Some file systems have no locks. Then nothing can be known to be left behind, either.
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        if os.path.exists(name):
            return handle, Path(name)
        os.close(handle)  # it was removed before it was locked


def _remove_unless_locked(path: Path) -> None:
    is_folder = path.is_dir()
    # On network file systems a file has to be open for writing to be locked.
    mode = os.O_RDONLY | os.O_DIRECTORY if is_folder else os.O_RDWR | os.O_NONBLOCK
    with contextlib.suppress(OSError):  # another process has locked it, or it is another user's
        handle = os.open(path, mode | os.O_NOFOLLOW)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if is_folder:
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink()
        finally:
            os.close(handle)


def _umask() -> int:
    mask = os.umask(0)  # can only be read by setting it
    os.umask(mask)
    return mask
