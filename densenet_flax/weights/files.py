"""Writing one file so that it is either whole or absent."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path as FilePath

from densenet_flax.files import writing


@contextlib.contextmanager
def atomic_file(path: FilePath) -> Iterator[FilePath]:
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
            temporary = FilePath(name)
            yield temporary
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
            mask = os.umask(0)
            os.umask(mask)
            temporary.chmod(0o666 & ~mask)
            os.replace(temporary, path)
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
