"""Files and folders that are either whole or absent, and write errors a user can act on."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from densenet_flax.errors import InputError


@contextlib.contextmanager
def writing(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turns an operating system's refusal to write under `path` into an `InputError`."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(
            f"{path}: cannot write here ({reason}); free some space, mend the permissions "
            "or choose another directory"
        ) from error


@contextlib.contextmanager
def atomic_dir(target: Path) -> Iterator[Path]:
    """A new folder beside `target` that takes its name when the block ends without an error.

    Two processes may do this at once: names are unique and the rename is atomic. Whoever comes
    second finds `target` there and throws its own work away, which is right because callers name
    `target` by everything its content depends on.
    """
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f"incomplete.{target.name}.", dir=target.parent))
    try:
        yield temporary
        temporary.chmod(0o777 & ~_umask())  # mkdtemp makes folders that only their owner can read
        with writing(target):
            try:
                temporary.rename(target)
            except OSError:
                if not target.is_dir():
                    raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Writes `text` to `path` so that a reader sees the old file or the new, never half of one."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f"incomplete.{path.name}.", dir=path.parent)
        temporary = Path(name)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            temporary.chmod(0o666 & ~_umask())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
