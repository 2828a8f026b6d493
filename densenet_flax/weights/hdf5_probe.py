"""Reads a whole HDF5 file in a process of its own, before ours does.

libhdf5 does not survive every damaged file: fuzzing found some that make it loop for ever and some
that crash the process. What happens to the child becomes one clear line here. The child takes about
a fifth of a second.
"""

import subprocess
import sys
from pathlib import Path

from densenet_flax.weights.safe_reading import damaged

_SECONDS = 20.0
_BYTES_PER_SECOND = 2e6  # of the slowest disk to wait for


def probe(path: Path, content: bytes | None = None) -> None:
    """Raises InputError if reading `path`, or its member `content`, crashes or never ends."""
    if not sys.executable:  # an embedded Python has none to start
        return
    size = path.stat().st_size if content is None else len(content)
    child = str(Path(__file__).with_name("hdf5_child.py"))
    # -P: no library shall import a module of this folder by mistake.
    command = [sys.executable, "-P", child, str(path.resolve()) if content is None else "-"]
    seconds = _SECONDS + size / _BYTES_PER_SECOND
    try:
        result = subprocess.run(
            command, input=content or b"", capture_output=True, timeout=seconds, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise damaged(path, "reading it does not end") from error
    if result.returncode < 0:  # a signal ended it
        raise damaged(path, "reading it crashes HDF5")
