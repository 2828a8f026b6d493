"""What has to be set around TFDS while it prepares a data set."""

import contextlib
import errno
import importlib.util
import io
import os
import sys
import types
from collections.abc import Iterator
from typing import IO, Any


@contextlib.contextmanager
def local_files() -> Iterator[None]:
    """Makes TFDS prepare data sets larger than memory without TensorFlow.

    TFDS 4.9.10 sorts a split of more than 1 GB through files on disk and opens those with
    TensorFlow's file functions, though nothing else of an ArrayRecord's preparation needs
    TensorFlow. Here they are opened with Python's, unless TensorFlow is installed.
    """
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
            # TFDS opens a thousand files at a time, which is the usual limit of a process.
            shuffle._increase_open_files_limit()
            return open(path, mode)

    gfile = types.SimpleNamespace(GFile=open_file, exists=os.path.exists, remove=os.remove)
    errors = types.SimpleNamespace(ResourceExhaustedError=())  # `except ()` catches nothing
    original = shuffle.tf
    shuffle.tf = types.SimpleNamespace(io=types.SimpleNamespace(gfile=gfile), errors=errors)
    try:
        yield
    finally:
        shuffle.tf = original


@contextlib.contextmanager
def quiet_unless_terminal() -> Iterator[None]:
    """Keeps TFDS's progress bars and messages out of log files."""
    import tensorflow_datasets as tfds

    if sys.stderr.isatty():
        yield
        return
    tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        tfds.enable_progress_bar()
