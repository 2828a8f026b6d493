"""Preparing TFDS data sets without TensorFlow, and reading their images still encoded."""

import contextlib
import errno
import functools
import importlib.util
import io
import os
import sys
import types
from collections.abc import Iterator, Sequence
from typing import IO, Any, TypeAlias

from densenet_flax.common.errors import InputError
from densenet_flax.data.images.stream import Row

# The features of one example; its image is encoded.
Record: TypeAlias = dict[str, Any]

# TFDS is imported in the functions that need it: that takes half a second, which a run with
# prepared images saves.


def open_split(builder: Any, split: str, image_key: str) -> Sequence[Record]:
    """Opens a split of a prepared data set for random access; images stay encoded."""
    import tensorflow_datasets as tfds

    return builder.as_data_source(split=split, decoders={image_key: tfds.decode.SkipDecoding()})


def read_record_image(folder: str, image_key: str, row: Row) -> bytes:
    """Returns the encoded image of record `number` of the split `source`, 'train' if not said.

    Raises:
      InputError: the data set in `folder` cannot be read.
    """
    with read_errors(folder):
        records = _open_prepared(folder, row.get("source", "train"), image_key)
        return records[row["number"]][image_key]


@contextlib.contextmanager
def read_errors(name: object) -> Iterator[None]:
    """Raises an `InputError` for whatever TFDS raises, which documents no exceptions."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"{name}: cannot be read ({reason}); prepare it again") from error


@functools.lru_cache(maxsize=16)  # opened once in each process
def _open_prepared(folder: str, split: str, image_key: str) -> Sequence[Record]:
    import tensorflow_datasets as tfds

    return open_split(tfds.builder_from_directory(folder), split, image_key)


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
