"""The official ImageNet files of `keras.applications`: in Keras's cache, or fetched and checked."""

import contextlib
import dataclasses
import os
import time
from collections.abc import Iterator
from pathlib import Path as FilePath
from typing import IO

import requests
import tqdm
from absl import logging

from densenet_flax.common.errors import InputError
from densenet_flax.weights.source import file_hash

BASE_URL = "https://storage.googleapis.com/tensorflow/keras-applications/densenet/"
BASE_URL_VARIABLE = "DENSENET_FLAX_WEIGHTS_URL"

_LARGEST = 1 << 30
_CHUNK = 1 << 14  # what a cut connection can lose
_TIMEOUT = 30.0


class _Refused(Exception):
    """It is no use trying again."""


@dataclasses.dataclass(frozen=True)
class Official:
    """A file of `keras.applications`, trained on ImageNet."""

    file: str
    md5: str
    classes: int


def _official(network: str, top: str, notop: str) -> dict[str, Official]:
    stem = f"{network}_weights_tf_dim_ordering_tf_kernels"
    return {
        network: Official(f"{stem}.h5", top, 1000),
        f"{network}-notop": Official(f"{stem}_notop.h5", notop, 0),
    }


OFFICIAL: dict[str, Official] = {
    **_official(
        "densenet121", "9d60b8095a5708f2dcce2bca79d332c7", "30ee3e1110167f948a6b9946edeeb738"
    ),
    **_official(
        "densenet169", "d699b8f76981ab1b30698df4c175e90b", "b8c4d4c20dd625c148057b9ff1c1176b"
    ),
    **_official(
        "densenet201", "1ceb130c1ea1b78c3bf6114dbdfd8807", "c13680b51ded0fb44dff2d8f86ac8bb1"
    ),
}


def known_file(path: FilePath) -> str:
    """Name in `OFFICIAL` of the file with these contents; '' if it is none of them."""
    md5 = file_hash(path, "md5")
    return next((name for name, official in OFFICIAL.items() if official.md5 == md5), "")


def cache_directory() -> FilePath:
    """Where Keras keeps its models: `$KERAS_HOME/models`, or `~/.keras/models`."""
    home = os.environ.get("KERAS_HOME")
    return (FilePath(home) if home else FilePath.home() / ".keras") / "models"


def download(
    name: str,
    directory: str | os.PathLike[str] | None = None,
    *,
    base_url: str | None = None,
    attempts: int = 5,
    backoff: float = 1.0,
) -> FilePath:
    """Path of an official file, fetched only if it is not there with the right contents.

    A download that was cut continues where it stopped, the file takes its name only when its md5 is
    right, and of several processes that want it one fetches while the others wait.

    Args:
      name: 'densenet121', 'densenet169', 'densenet201', or one of these with '-notop'.
      directory: where to look and keep it; by default Keras's cache, which Keras will find too.
      base_url: where the files lie; by default `$DENSENET_FLAX_WEIGHTS_URL`, or Keras's server.
      attempts: how often to try again without any progress.
      backoff: seconds before the second attempt; doubled each time.

    Raises:
      InputError: the name is unknown, the file cannot be fetched, or the server sends another one.
    """
    if name not in OFFICIAL:
        raise InputError(f"{name!r}: no official file; choose from {', '.join(OFFICIAL)}")
    official = OFFICIAL[name]
    target = (FilePath(directory) if directory else cache_directory()) / official.file
    if _is_right(target, official):
        return target
    url = (base_url or os.environ.get(BASE_URL_VARIABLE) or BASE_URL).rstrip("/")
    url = f"{url}/{official.file}"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _locked(target):
            if not _is_right(target, official):
                _fetch(url, target, official, attempts, backoff)
    except OSError as error:
        raise InputError(
            f"{target}: cannot write here ({error.strerror or error}); free some space, mend the "
            "permissions or set KERAS_HOME to another directory"
        ) from error
    return target


def _is_right(path: FilePath, official: Official) -> bool:
    if not path.is_file():
        return False
    if file_hash(path, "md5") == official.md5:
        return True
    logging.warning("%s is damaged (its md5 is wrong); fetching it anew", path)
    return False


def _fetch(url: str, target: FilePath, official: Official, attempts: int, backoff: float) -> None:
    part = target.with_name(f"{target.name}.part")
    failures, wrong = 0, 0
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            _fetch_rest(url, part, target)
            found = file_hash(part, "md5")
            if found == official.md5:
                os.replace(part, target)
                return
            reason = f"its contents have md5 {found} instead of {official.md5}"
            part.unlink()
            wrong += 1
        except _Refused as error:
            part.unlink(missing_ok=True)
            raise _unreachable(url, target, official, str(error)) from error
        except requests.RequestException as error:
            reason = _reason(error)
            if part.exists() and part.stat().st_size > before:
                failures = 0  # it moves: keep going
        failures += 1
        if failures >= attempts or wrong >= 2:
            raise _unreachable(url, target, official, reason)
        logging.warning("%s: %s; trying again", url, reason)
        time.sleep(backoff * 2 ** (failures - 1))


def _fetch_rest(url: str, part: FilePath, target: FilePath) -> None:
    """Appends to `part` what it still lacks."""
    start = part.stat().st_size if part.exists() else 0
    # Not compressed: a range counts bytes of what is sent.
    headers = {"Accept-Encoding": "identity", **({"Range": f"bytes={start}-"} if start else {})}
    with requests.get(url, headers=headers, stream=True, timeout=_TIMEOUT) as response:
        if response.status_code == 416:  # there is no such range: `part` is whole, or wrong
            if response.headers.get("Content-Range", "").rpartition("/")[2] != str(start):
                part.unlink()
                raise requests.ConnectionError("the server cannot continue; starting anew")
            return
        if 400 <= response.status_code < 500 and response.status_code not in (408, 425, 429):
            raise _Refused(f"the server answers {response.status_code} {response.reason}")
        response.raise_for_status()
        continues = response.status_code == 206
        sent_from = response.headers.get("Content-Range", "").removeprefix("bytes ")
        if continues and not sent_from.startswith(f"{start}-"):
            part.unlink()
            raise requests.ConnectionError("the server continues at another place; starting anew")
        length = response.headers.get("Content-Length", "")
        total = int(length) + (start if continues else 0) if length.isdigit() else None
        bar = tqdm.tqdm(
            desc=target.name,
            initial=start if continues else 0,
            total=total,
            unit="B",
            unit_scale=True,
            disable=None,
        )
        with bar, open(part, "ab" if continues else "wb") as file:
            for chunk in response.iter_content(_CHUNK):
                file.write(chunk)
                bar.update(len(chunk))
                if file.tell() > _LARGEST:
                    raise _Refused("the server sends far more than such a file has")
        if total is not None and part.stat().st_size < total:
            raise requests.ConnectionError(f"cut after {part.stat().st_size:,} of {total:,} bytes")


def _reason(error: requests.RequestException) -> str:
    if isinstance(error, requests.HTTPError) and error.response is not None:
        return f"the server answers {error.response.status_code} {error.response.reason}"
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"


def _unreachable(url: str, target: FilePath, official: Official, reason: str) -> InputError:
    return InputError(
        f"{url}: cannot be fetched ({reason}); get {official.file} elsewhere, check that its md5 "
        f"is {official.md5} and put it into {target.parent}, or set {BASE_URL_VARIABLE} to a mirror"
    )


@contextlib.contextmanager
def _locked(target: FilePath) -> Iterator[None]:
    """Holds the lock of `target`; it ends with the process, so none is ever left behind."""
    with open(target.with_name(f"{target.name}.lock"), "ab") as file:
        _lock(file)
        yield


def _lock(file: IO[bytes]) -> None:
    try:
        import fcntl
    except ImportError:  # Windows, where a file can only be locked by bytes
        import msvcrt

        file.seek(0)
        while True:
            with contextlib.suppress(OSError):
                msvcrt.locking(file.fileno(), msvcrt.LK_LOCK, 1)  # type: ignore[attr-defined]
                return
    else:
        fcntl.flock(file, fcntl.LOCK_EX)
