"""The official ImageNet files of `keras.applications`: in Keras's cache, or downloaded."""

import dataclasses
import fcntl
import os
from pathlib import Path

from absl import logging

from densenet_flax.common.errors import InputError
from densenet_flax.weights.http_download import DownloadError, download_file
from densenet_flax.weights.safe_reading import StrPath, file_hash

BASE_URL = "https://storage.googleapis.com/tensorflow/keras-applications/densenet/"
BASE_URL_VARIABLE = "DENSENET_FLAX_WEIGHTS_URL"

_MD5 = {
    "densenet121": "9d60b8095a5708f2dcce2bca79d332c7",
    "densenet121-notop": "30ee3e1110167f948a6b9946edeeb738",
    "densenet169": "d699b8f76981ab1b30698df4c175e90b",
    "densenet169-notop": "b8c4d4c20dd625c148057b9ff1c1176b",
    "densenet201": "1ceb130c1ea1b78c3bf6114dbdfd8807",
    "densenet201-notop": "c13680b51ded0fb44dff2d8f86ac8bb1",
}


@dataclasses.dataclass(frozen=True)
class Official:
    """A file of `keras.applications`, trained on ImageNet."""

    file: str
    md5: str


def _file_name(name: str) -> str:
    network, _, notop = name.partition("-")
    return f"{network}_weights_tf_dim_ordering_tf_kernels{notop and '_notop'}.h5"


OFFICIAL = {name: Official(_file_name(name), md5) for name, md5 in _MD5.items()}


def official_name(path: Path) -> str:
    """Name in `OFFICIAL` of the file with these contents; '' if it is none of them."""
    md5 = file_hash(path, "md5")
    return next((name for name, official in OFFICIAL.items() if official.md5 == md5), "")


def cache_directory() -> Path:
    """Where Keras keeps its models: `$KERAS_HOME/models`, or `~/.keras/models`."""
    return Path(os.environ.get("KERAS_HOME") or Path.home() / ".keras", "models")


def download(
    name: str,
    directory: StrPath | None = None,
    *,
    base_url: str | None = None,
    attempts: int = 5,
    backoff: float = 1.0,
) -> Path:
    """Path of an official file, downloaded only if it is not there with the right contents.

    An interrupted download resumes where it stopped, the file takes its name only when its md5 is
    right, and of several processes that want it one downloads while the others wait.

    Args:
      name: 'densenet121', 'densenet169', 'densenet201', or one of these with '-notop'.
      directory: where to look and keep it; by default Keras's cache, where Keras finds it too.
      base_url: of a mirror; by default `$DENSENET_FLAX_WEIGHTS_URL`, or Keras's server.
      attempts: how often to try again without any progress.
      backoff: seconds before the second attempt; doubled each time.

    Raises:
      InputError: the name is unknown, or the file cannot be downloaded or has another md5.
    """
    if name not in OFFICIAL:
        raise InputError(f"{name!r}: no official file; choose from {', '.join(OFFICIAL)}")
    official = OFFICIAL[name]
    target = (Path(directory) if directory else cache_directory()) / official.file
    if _is_intact(target, official):
        return target
    server = base_url or os.environ.get(BASE_URL_VARIABLE) or BASE_URL
    url = f"{server.rstrip('/')}/{official.file}"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # The operating system releases the lock when the process ends, however it ends, which
        # `filelock` does not promise; see `storage.workdir`.
        with open(target.with_name(f"{target.name}.lock"), "ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not _is_intact(target, official):  # another process may have downloaded it
                download_file(url, target, official.md5, attempts=attempts, backoff=backoff)
    except DownloadError as error:
        raise InputError(
            f"{url}: cannot be downloaded ({error}); get {official.file} elsewhere, check that its "
            f"md5 is {official.md5} and put it into {target.parent}, or set {BASE_URL_VARIABLE} to "
            "a mirror"
        ) from error
    except OSError as error:
        raise InputError(
            f"{target}: cannot write here ({error.strerror or error}); free some space, change the "
            "permissions or set KERAS_HOME to another directory"
        ) from error
    return target


def _is_intact(path: Path, official: Official) -> bool:
    if not path.is_file():
        return False
    if file_hash(path, "md5") == official.md5:
        return True
    logging.warning("%s is damaged (its md5 is wrong); downloading it again", path)
    return False
