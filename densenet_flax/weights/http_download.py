"""Downloads a large file over HTTP, so that neither a bad line nor a bad server spoils it.

Connections that carry these 80 MB from hospitals and clusters break. `pooch` would be the library
for this, and checks hashes and renames atomically too; but it starts over after every interruption
(no `Range` requests), retries a 404 like a timeout, reads whatever a server sends without a limit,
and would still need a lock. The tests hold all of that against a server that misbehaves.
"""

import os
import re
import time
from pathlib import Path

import requests
import tqdm
import urllib3
from absl import logging

from densenet_flax.weights.safe_reading import file_hash

_MAX_BYTES = 1 << 30  # no official file has a tenth of that
_CHUNK_BYTES = 1 << 14  # what an interruption can lose
_TIMEOUT = 30.0  # seconds without a byte
_MAX_WRONG_FILES = 2


class DownloadError(Exception):
    """A file cannot be downloaded; the message is the reason."""


class _FinalError(DownloadError):
    """Trying again would not help."""


def download_file(url: str, target: Path, md5: str, *, attempts: int, backoff: float) -> None:
    """Downloads `url` to `target`, which appears only when it is complete and right.

    What was received stays beside it as `.part`, for this process or a later one to resume. The
    caller holds a lock, and has made the directory; `attempts` and `backoff` as in `download`.

    Raises:
      DownloadError: the server does not answer, has no such file, or sends another one.
      OSError: it cannot be written.
    """
    part = target.with_name(f"{target.name}.part")
    failures, wrong_files, most = 0, 0, _size(part)
    while True:
        try:
            _receive(url, part, target.name)
            received = file_hash(part, "md5")
            if received == md5:
                os.replace(part, target)
                return
            reason = f"its contents have md5 {received} instead of {md5}"
            # Starting over helps against a bad line, but not where the server has another file.
            part.unlink()
            wrong_files += 1
        except _FinalError:
            part.unlink(missing_ok=True)
            raise
        except (DownloadError, requests.RequestException, urllib3.exceptions.HTTPError) as error:
            kind = "" if isinstance(error, DownloadError) else f"{type(error).__name__}: "
            reason = f"{kind}{' '.join(str(error).split())[:160]}"
            # Progress is more than there ever was: a server that ignores `Range` may send a
            # longer beginning now and then for ever.
            if _size(part) > most:
                failures, most = 0, _size(part)
        failures += 1
        if failures >= attempts or wrong_files >= _MAX_WRONG_FILES:
            raise DownloadError(reason)
        logging.warning("%s: %s; trying again", url, reason)
        time.sleep(backoff * 2 ** (failures - 1))


def _receive(url: str, part: Path, name: str) -> None:
    """Appends to `part` what it still lacks, by one request."""
    start = _size(part)
    # Not compressed: a range counts bytes of what is sent.
    headers = {"Accept-Encoding": "identity", **({"Range": f"bytes={start}-"} if start else {})}
    with requests.get(url, headers=headers, stream=True, timeout=_TIMEOUT) as response:
        if response.status_code == 416:  # there is no such range: `part` is complete, or wrong
            # 'bytes */SIZE' says which.
            if response.headers.get("Content-Range", "").rpartition("/")[2] != str(start):
                part.unlink()
                raise requests.ConnectionError("the server cannot resume; starting over")
            return
        if response.status_code >= 400:
            is_final = response.status_code < 500 and response.status_code not in (408, 425, 429)
            fault = f"the server answers {response.status_code} {response.reason}"
            raise (_FinalError if is_final else DownloadError)(fault)
        # A server that does not know ranges answers 200 with all of it: `part` is written again.
        resumes = response.status_code == 206
        content_range = response.headers.get("Content-Range", "").removeprefix("bytes ")
        if resumes and not content_range.startswith(f"{start}-"):
            part.unlink(missing_ok=True)
            raise requests.ConnectionError("the server resumes at another byte; starting over")
        received = start if resumes else 0
        length = response.headers.get("Content-Length", "")
        # Servers may also send none, or a number that cannot be one.
        total = received + int(length) if re.fullmatch("[0-9]{1,15}", length) else None
        bytes_unit = {"unit": "B", "unit_scale": True}
        bar = tqdm.tqdm(desc=name, initial=received, total=total, disable=None, **bytes_unit)
        with bar, open(part, "ab" if resumes else "wb") as file:
            for chunk in response.iter_content(_CHUNK_BYTES):
                file.write(chunk)
                bar.update(len(chunk))
                if file.tell() > _MAX_BYTES:
                    raise _FinalError("the server sends far more than such a file has")
        if total is not None and _size(part) < total:
            raise requests.ConnectionError(f"cut after {_size(part):,} of {total:,} bytes")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
