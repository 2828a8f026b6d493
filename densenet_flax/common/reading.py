"""Reading files of others: regular ones only, of a bounded size, or one line that says why.

Whatever has the name of a file may be a pipe that blocks for ever, a device without an end, or
larger than memory.
"""

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from densenet_flax.common.errors import InputError

# Of a table, a list of names or a configuration: a CSV of ten million rows.
MAX_TEXT_BYTES = 2**30

_BLOCK = 2**20
_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


@contextlib.contextmanager
def reading(name: object) -> Iterator[None]:
    """Raises an `InputError` where the operating system refuses to read a file."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(f"{name}: cannot be read ({reason})") from error


def read_file(path: Path, name: object = None, *, max_bytes: int, larger: str = "") -> bytes:
    """Returns the content of a regular file.

    Args:
      path: the file, or a link to one.
      name: what messages call it; by default its path.
      max_bytes: the most that is read. Nothing is read of a file that is larger.
      larger: what a larger file probably is, for the message.

    Raises:
      InputError: it is not a regular file, too large, or cannot be read.
    """
    name = name or path
    with reading(name):
        check_regular(path, name)
        # Without waiting, in case a pipe has taken the file's place since.
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            size = os.fstat(file.fileno()).st_size
            data = b""
            if size <= max_bytes:
                data = file.read(size + 1)
            # A file may be longer than its size says (those in /proc are), or grow meanwhile.
            while size < len(data) <= max_bytes and (more := file.read(_BLOCK)):
                data += more
    actual = max(size, len(data))
    if actual > max_bytes:
        raise InputError(
            f"{name}: has {actual / 1e6:,.0f} MB, at most {max_bytes / 1e6:,.0f} MB are read"
            + (f"; {larger}" if larger else "")
        )
    return data


def check_regular(path: Path, name: object) -> None:
    """Raises an `InputError` if a path leads to no regular file; an OSError if to nothing."""
    try:
        mode = os.stat(path).st_mode
    except ValueError as error:  # a path with a zero byte
        raise InputError(f"{name}: cannot be read ({error})") from error
    if not stat.S_ISREG(mode):
        kind = next((text for is_kind, text in _KINDS if is_kind(mode)), "something else")
        raise InputError(f"{name}: is {kind} and not a file")
