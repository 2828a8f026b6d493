"""TFDS prepares data sets larger than memory without TensorFlow.

TFDS 4.9.10 sorts a split of more than 1 GB through files on disk, and opens those with TensorFlow's
file functions, though nothing else of an ArrayRecord's preparation needs TensorFlow.
"""

import contextlib
import errno
import importlib.util
import os
import types
from collections.abc import Iterator
from typing import IO, Any


@contextlib.contextmanager
def local_files() -> Iterator[None]:
    """Within it TFDS sorts through Python's files, unless TensorFlow is installed."""
    from tensorflow_datasets.core import shuffle

    if importlib.util.find_spec("tensorflow"):
        yield
        return

    def open_file(path: Any, mode: str) -> IO[bytes]:
        try:
            return open(path, mode)
        except OSError as error:
            if error.errno != errno.EMFILE:
                raise
            # A thousand are open at a time, as many as the usual limit has.
            shuffle._increase_open_files_limit()
            return open(path, mode)

    gfile = types.SimpleNamespace(GFile=open_file, exists=os.path.exists, remove=os.remove)
    errors = types.SimpleNamespace(ResourceExhaustedError=())  # nothing that could be raised
    before = shuffle.tf
    shuffle.tf = types.SimpleNamespace(io=types.SimpleNamespace(gfile=gfile), errors=errors)
    try:
        yield
    finally:
        shuffle.tf = before
