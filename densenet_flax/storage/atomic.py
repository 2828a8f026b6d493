"""Files and folders that are either whole or absent, and write errors that a user can act on."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from densenet_flax.common.errors import InputError


@contextlib.contextmanager
def writing(path: str | os.PathLike[str]) -> Iterator[None]:
    """Raises an `InputError` where the operating system refuses to write to `path`."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(
            f"{path}: cannot write here ({reason}); free some space, correct the "
            "permissions or choose another directory"
        ) from error


@contextlib.contextmanager
def atomic_dir(target: Path) -> Iterator[Path]:
    """A new folder beside `target`, renamed to it when the block ends without an error.

    Raises:
      InputError: the operating system refuses to write there.
    """
    # Two processes may do this at once: names are unique and the rename is atomic. The second finds
    # `target` there and discards its own work, which is right because callers put everything that
    # the content depends on into the name.
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f"incomplete.{target.name}.", dir=target.parent))
    try:
        yield temporary
        temporary.chmod(0o777 & ~_umask())  # mkdtemp lets only the owner read
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
    """A new file beside `path`, renamed to it when the block ends without an error.

    Raises:
      InputError: the operating system refuses to write there.
    """
    temporary = None
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            # In a name of 255 bytes, of which a character may take four.
            prefix = f"incomplete.{path.name[:30]}."
            handle, name = tempfile.mkstemp(path.suffix[-10:], prefix, path.parent)
            os.close(handle)
            temporary = Path(name)
            yield temporary
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
            temporary.chmod(0o666 & ~_umask())  # mkstemp lets only the owner read
            os.replace(temporary, path)
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


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
      InputError: the directory cannot be written to; the old files are untouched.
    """
    with contextlib.ExitStack() as stack:
        # Contexts end, and so files are replaced, in the reverse order.
        for name, data in reversed(list(contents.items())):
            stack.enter_context(atomic_file(Path(directory) / name)).write_bytes(data)


def _umask() -> int:
    mask = os.umask(0)  # can only be read by setting it
    os.umask(mask)
    return mask
