"""Reading files from anywhere: whatever is wrong with one becomes an `InputError` of one line."""

import contextlib
import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TypeAlias

from densenet_flax.common.errors import InputError

StrPath: TypeAlias = str | os.PathLike[str]

# Weights hardly compress: a file that unpacks to more than this times its size is a bomb. Small
# files get some room, for headers and padding.
_MAX_EXPANSION = 20
_EXPANSION_ROOM = 1 << 24


@contextlib.contextmanager
def reading(path: StrPath, part: str = "") -> Iterator[None]:
    """Turns whatever a library raises while it reads `path` into an `InputError` of one line."""
    where = f"{part}: " if part else ""
    try:
        yield
    except InputError as error:
        # Errors from deeper inside may name the file already.
        if str(path) in str(error):
            raise
        raise InputError(f"{path}: {where}{error}") from error
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file; check the path") from error
    except PermissionError as error:
        raise InputError(f"{path}: no permission to read it; change its permissions") from error
    except IsADirectoryError as error:
        raise InputError(f"{path}: a directory; give a weights file") from error
    except MemoryError as error:
        raise InputError(f"{path}: {part or 'the file'} does not fit into memory") from error
    # Readers of damaged files raise anything: struct.error, KeyError, RecursionError, …
    except Exception as error:
        reason = re.sub(r"\s+", " ", str(error)).strip()[:200] or type(error).__name__
        raise InputError(
            f"{path}: {where}cannot be read ({reason}); the file is damaged or cut short, "
            "get it again"
        ) from error


def damaged(path: Path, fault: str) -> InputError:
    """The error for a file whose content contradicts itself."""
    return InputError(f"{path}: {fault}; the file is damaged, get it again")


def check_expansion(path: Path, stored: int, unpacked: int) -> None:
    """Raises InputError for a file that claims to hold far more bytes than are stored."""
    if unpacked > max_expansion(stored):
        raise InputError(
            f"{path}: {stored:,} bytes that unpack to {unpacked:,}; no weights file does that, "
            "do not trust where it came from"
        )


def max_expansion(stored: int) -> int:
    """The most bytes that a file of `stored` bytes may unpack to."""
    return _MAX_EXPANSION * stored + _EXPANSION_ROOM


def file_hash(path: Path, algorithm: str = "sha256") -> str:
    """Hexadecimal hash of a file."""
    with reading(path), open(path, "rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()
