"""Files and folders that are either whole or absent, and write errors a user can act on."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from densenet_flax.common.errors import InputError


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


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """A new file beside `path` that takes its name when the block ends without an error.

    Raises:
      InputError: the operating system refuses to write there.
    """
    temporary = None
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(
                prefix=f"incomplete.{path.name[:100]}.", suffix=path.suffix, dir=path.parent
            )
            os.close(handle)
            temporary = Path(name)
            yield temporary
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
            temporary.chmod(0o666 & ~_umask())  # mkstemp makes files that only their owner reads
            os.replace(temporary, path)
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes `text` to `path` so that a reader sees the old file or the new, never half of one."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def replace_files(directory: str | os.PathLike[str], contents: Mapping[str, bytes]) -> None:
    """Writes several files of one directory; all are complete before the first is replaced.

    Args:
      directory: where the files go; made if it does not exist.
      contents: file name -> bytes. They are replaced in this order, so put the file that people
        open last: once it is new, everything beside it is new as well.

    Raises:
      InputError: the directory cannot be written to; the old files are untouched.
    """
    with contextlib.ExitStack() as stack:
        # Left in the order opposite to that of entering.
        for name, data in reversed(list(contents.items())):
            stack.enter_context(atomic_file(Path(directory) / name)).write_bytes(data)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
