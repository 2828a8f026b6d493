"""Downloads a large file over HTTP, so that neither a bad line nor a bad server spoils it.

Connections that carry these 80 MB from hospitals and clusters break. `pooch` would be the library
for this, and checks hashes and renames atomically too; but it starts over after every interruption
(no `Range` requests), retries a 404 like a timeout, reads whatever a server sends without a limit,
and would still need a lock. The tests hold all of that against a server that misbehaves.
"""

import contextlib
import os
import re
import threading
import time
from pathlib import Path

import requests
from absl import logging

from densenet_flax.common.console import progress_bar
from densenet_flax.weights.safe_reading import file_hash

_MAX_BYTES = 1 << 30  # no official file has a tenth of that
_CHUNK_BYTES = 1 << 14  # what an interruption can lose
_TIMEOUT = 30.0  # seconds without a byte
# A server that sends a byte now and then runs into no timeout: in each window, from the first
# look-up of its name on, it has to send some.
_WINDOW = 60.0  # seconds
_MIN_BYTES = 1 << 16  # in a window, and what counts as progress
_MAX_SECONDS = 24 * 3600.0  # of all attempts together
_MAX_WRONG_FILES = 2
# What asking again does not change: a circle of redirects, or one to 'file:'.
_FINAL_ERRORS = (
    requests.TooManyRedirects,
    requests.exceptions.InvalidSchema,
    requests.exceptions.InvalidURL,
    requests.exceptions.MissingSchema,
)


class DownloadError(Exception):
    """A file cannot be downloaded; the message is the reason."""


class _FinalError(DownloadError):
    """Trying again would not help."""


def download_file(url: str, target: Path, md5: str, *, attempts: int, backoff: float) -> None:
    """Downloads `url` to `target`, which appears only when it is complete and right.

    What was received stays beside it as `.part`, for this process or a later one to resume, unless
    the server has shown that it cannot. The caller holds a lock, and has made the directory;
    `attempts` and `backoff` as in `download`.

    Raises:
      DownloadError: the server does not answer, has no such file, sends another one, or sends so
        little that it would never end.
      OSError: it cannot be written.
    """
    transfer = _Transfer(url, target.with_name(f"{target.name}.part"))
    end = time.monotonic() + _MAX_SECONDS
    failures, wrong_files, most = 0, 0, transfer.size()
    while True:
        try:
            transfer.receive(end)
            received = file_hash(transfer.part, "md5")
            if received == md5:
                os.replace(transfer.part, target)
                return
            reason = f"its contents have md5 {received} instead of {md5}"
            # Starting over helps against a bad line, but not where the server has another file.
            transfer.part.unlink()
            wrong_files += 1
        except _FinalError:
            transfer.part.unlink(missing_ok=True)
            raise
        except DownloadError as error:
            reason = str(error)
            # Progress is more than there ever was: a server that ignores `Range` may send a
            # longer beginning now and then for ever.
            if transfer.size() >= most + _MIN_BYTES:
                failures, most = 0, transfer.size()
        failures += 1
        is_late = time.monotonic() >= end
        if failures >= attempts or wrong_files >= _MAX_WRONG_FILES or is_late:
            if not (transfer.can_resume and transfer.size()):
                transfer.part.unlink(missing_ok=True)
            raise DownloadError(reason)
        logging.warning("%s: %s; trying again", url, reason)
        time.sleep(backoff * 2 ** (failures - 1))


class _Transfer:
    """A file on its way from a server, over as many requests as it takes.

    Attributes:
      part: what has been received.
      can_resume: False once the server sent what it cannot continue.
      etag: what the server calls this version of the file; '' if it does not say.
    """

    def __init__(self, url: str, part: Path):
        self.url, self.part = url, part
        self.can_resume, self.etag = True, ""

    def size(self) -> int:
        """Number of bytes that have been received."""
        return self.part.stat().st_size if self.part.exists() else 0

    def receive(self, end: float) -> None:
        """Appends what is still missing, by one request that may take until `end`.

        Raises:
          DownloadError: whatever is wrong with the answer, or too little came in a window.
          OSError: it cannot be written.
        """
        request = _Request(self)
        # A thread of its own, because no timeout of `requests` ends a server that drips: it may do
        # so with its headers, too. As a daemon it does not keep the process from ending.
        thread = threading.Thread(target=request.run, daemon=True)
        thread.start()
        try:
            while thread.is_alive():
                before, window = request.received, min(_WINDOW, max(0, end - time.monotonic()))
                thread.join(window)
                if thread.is_alive() and time.monotonic() >= end:
                    raise DownloadError(f"not complete after {_MAX_SECONDS / 3600:.0f} hours")
                if thread.is_alive() and request.received < before + _MIN_BYTES:
                    raise DownloadError(f"fewer than {_MIN_BYTES:,} bytes in {window:.0f} s")
        finally:
            request.cancel()
        if request.error is not None:
            raise request.error


class _Request:
    """One request for what a file still lacks. `run` is called in a thread.

    Attributes:
      received: bytes of it so far.
      error: what ended it, if it was not the end of the file.
    """

    def __init__(self, transfer: _Transfer):
        self._transfer, self._start = transfer, transfer.size()
        self._lock, self._is_canceled = threading.Lock(), False
        self.received = 0
        self.error: Exception | None = None

    def cancel(self) -> None:
        """Leaves the file alone from here on, whatever still arrives."""
        with self._lock:
            self._is_canceled = True

    def run(self) -> None:
        """Appends to the file; keeps the error if there is one."""
        try:
            self._run()
        except DownloadError as error:
            self.error = error
        # Bad answers raise more than `requests` documents. Its own errors are OSErrors as well.
        except Exception as error:
            is_network = isinstance(error, requests.RequestException | ConnectionError)
            if isinstance(error, OSError) and not is_network:
                self.error = error
                return
            kind = _FinalError if isinstance(error, _FINAL_ERRORS) else DownloadError
            text = " ".join(str(error).split())[:160]
            self.error = kind(f"{type(error).__name__}: {text}")

    def _run(self) -> None:
        start = self._start
        # Not compressed: a range counts bytes of what is sent.
        headers = {"Accept-Encoding": "identity", **({"Range": f"bytes={start}-"} if start else {})}
        url = self._transfer.url
        with requests.get(url, headers=headers, stream=True, timeout=_TIMEOUT) as response:
            if response.status_code == 416:  # no such range: the part is complete, or wrong
                # 'bytes */SIZE' says which.
                if response.headers.get("Content-Range", "").rpartition("/")[2] != str(start):
                    raise self._start_over("the server cannot resume")
                return
            _check_status(response)
            is_encoded = response.headers.get("Content-Encoding", "identity").lower() != "identity"
            total = self._check_range(response, is_encoded)
            if total is not None and total > _MAX_BYTES:
                raise _FinalError(f"the server has {total:,} bytes, far more than such a file")
            resumes = response.status_code == 206
            # Bytes of what was unpacked say nothing of where to resume; nor does a server that
            # sends all of the file where a range was asked for.
            self._transfer.can_resume = not is_encoded and (resumes or not start)
            self._write(response, start if resumes else 0, total)
        size = self._transfer.size()
        if total is not None and size < total:
            raise DownloadError(f"cut after {size:,} of {total:,} bytes")
        if total is not None and size > total:
            raise self._start_over(f"{size:,} bytes of a file of {total:,}")

    def _check_range(self, response: requests.Response, is_encoded: bool) -> int | None:
        """Returns the size of the whole file, if the answer states it."""
        etag, known = response.headers.get("ETag", ""), self._transfer.etag
        self._transfer.etag = etag
        if response.status_code != 206:
            length = response.headers.get("Content-Length", "")
            # Servers may also send none, or a number that cannot be one.
            return int(length) if re.fullmatch("[0-9]{1,15}", length) and not is_encoded else None
        content_range = response.headers.get("Content-Range", "").strip()
        match = re.fullmatch(r"bytes ([0-9]{1,15})-([0-9]{1,15})/([0-9]{1,15}|\*)", content_range)
        if not match or int(match[1]) != self._start or is_encoded:
            raise self._start_over("the server resumes at another byte")
        if known and etag and known != etag:
            raise self._start_over("the server has another file now")
        # A server may send less than was asked for; the next request asks for the rest.
        return int(match[2]) + 1 if match[3] == "*" else int(match[3])

    def _start_over(self, reason: str) -> DownloadError:
        with self._lock:
            if not self._is_canceled:
                self._transfer.part.unlink(missing_ok=True)
        return DownloadError(f"{reason}; starting over")

    def _write(self, response: requests.Response, start: int, total: int | None) -> None:
        with contextlib.ExitStack() as stack:
            with self._lock:
                if self._is_canceled:
                    return
                # Without a buffer, which would be written when the file is closed, canceled or not.
                file = stack.enter_context(
                    open(self._transfer.part, "ab" if start else "wb", buffering=0)
                )
            name = self._transfer.part.stem
            bar = progress_bar(total, name, "B", initial=start, unit_scale=True)
            stack.enter_context(bar)
            for chunk in response.iter_content(_CHUNK_BYTES):
                with self._lock:
                    if self._is_canceled:
                        return
                    file.write(chunk)
                self.received += len(chunk)
                bar.update(len(chunk))
                if start + self.received > _MAX_BYTES:
                    raise _FinalError("the server sends far more than such a file has")


def _check_status(response: requests.Response) -> None:
    status = response.status_code
    if status not in (200, 206):
        # A server that is busy or broken may answer otherwise later.
        is_final = status < 500 and status not in (408, 425, 429)
        kind = _FinalError if is_final else DownloadError
        raise kind(f"the server answers {status} {response.reason}")
