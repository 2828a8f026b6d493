"""Writing files so that an interruption leaves the old ones whole."""

import os
from collections.abc import Mapping
from pathlib import Path

from densenet_flax.errors import InputError


def replace_files(directory: str | os.PathLike[str], contents: Mapping[str, bytes]) -> None:
    """Writes several files of one directory; all are complete before the first is replaced.

    Args:
        directory: Where the files go; made if it does not exist.
        contents: File name -> bytes. They are replaced in this order, so put the file that
            people open last: once it is new, everything beside it is new as well.

    Raises:
        InputError: The directory cannot be written to; the old files are untouched.
    """
    directory = Path(directory)
    # Not tempfile: its files are readable by their owner only, and os.replace would keep that.
    staged = {name: directory / f".{name}.{os.getpid()}.tmp" for name in contents}
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for name, data in contents.items():
            staged[name].write_bytes(data)
        for name, temporary in staged.items():
            os.replace(temporary, directory / name)
    except OSError as error:
        raise InputError(
            f"{directory}: cannot write here ({error.strerror or error}); free some space, mend "
            "the permissions or choose another directory"
        ) from error
    finally:
        for temporary in staged.values():
            # Where the directory itself is the trouble, so is cleaning up in it.
            if temporary.parent.is_dir():
                temporary.unlink(missing_ok=True)
