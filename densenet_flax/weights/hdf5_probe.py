"""Reads a whole HDF5 file in a process of its own, before ours does.

libhdf5 does not survive every damaged file: fuzzing found some that make it loop for ever and some
that crash the process. What happens to the child becomes one clear line here. The child takes about
a fifth of a second.
"""

import subprocess
import sys
from pathlib import Path as FilePath

from densenet_flax.common.errors import InputError

_SECONDS = 20.0
_BYTES_PER_SECOND = 2e6  # of the slowest disk to wait for
_LARGEST_EXIT_STATUS = 255  # Windows reports a crash as a larger one, Unix as a negative one


def probe(path: FilePath, content: bytes | None = None) -> None:
    """Raises an `InputError` if reading the file crashes or does not end.

    Args:
      path: the file.
      content: the HDF5 file itself, where it is a member of `path`.
    """
    if not sys.executable:  # an embedded Python has none to start
        return
    size = path.stat().st_size if content is None else len(content)
    child = str(FilePath(__file__).with_name("hdf5_child.py"))
    # -P: this folder has a keras.py and a torch.py, which no library should import.
    command = [sys.executable, "-P", child, str(path.resolve()) if content is None else "-"]
    try:
        result = subprocess.run(
            command,
            input=b"" if content is None else content,
            capture_output=True,
            timeout=_SECONDS + size / _BYTES_PER_SECOND,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise InputError(
            f"{path}: reading it does not end; the file is damaged, get it again"
        ) from error
    if not 0 <= result.returncode <= _LARGEST_EXIT_STATUS:
        raise InputError(f"{path}: reading it crashes HDF5; the file is damaged, get it again")
