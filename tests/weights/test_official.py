"""Downloads, from a server on 127.0.0.1 that behaves badly."""

import contextlib
import gzip
import hashlib
import http.server
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from densenet_flax.common.errors import InputError
from densenet_flax.weights import http_download, official

CONTENT = os.urandom(3_000_000)
NAME = "fake.h5"


class Server(http.server.ThreadingHTTPServer):
    """Serves `CONTENT`, after making the listed faults, one for each request."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.faults = []
        self.requests = []
        self.delay = 0.0
        self.stops = False

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/base"


class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_GET(self):
        server = self.server
        span = self.headers.get("Range")
        server.requests.append((self.path, span))
        time.sleep(server.delay)
        fault = server.faults.pop(0) if server.faults else "none"
        start = int(span.removeprefix("bytes=").removesuffix("-")) if span else 0
        body = CONTENT
        if fault.startswith("drip"):
            self.drip(fault)
            return
        if fault.startswith("status "):
            self.send_error(int(fault.removeprefix("status ")))
            return
        if fault == "circle":
            self.send_response(302)
            self.send_header("Location", self.path)
            self.end_headers()
            return
        if fault == "gzip":
            body, span = gzip.compress(body), None
        if fault == "missing":
            self.send_error(404)
            return
        if fault == "redirect":
            self.send_response(302)
            self.send_header("Location", f"{server.url}/elsewhere/{NAME}")
            self.end_headers()
            return
        if fault == "page":
            body, span, start = b"<html>Please sign in</html>", None, 0
        if fault == "wrong":
            body = bytes(len(CONTENT))
        if fault == "ignores ranges" or fault.startswith("first"):
            span, start = None, 0
        if start >= len(body):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(body)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if fault == "another offset" and span:
            start += 5
        part = body[start:]
        self.send_response(206 if span else 200)
        is_length = fault.startswith("length ")
        length = fault.removeprefix("length ") if is_length else str(len(part))
        for value in length.split("|"):
            self.send_header("Content-Length", value)
        if fault == "gzip":
            self.send_header("Content-Encoding", "gzip")
        if fault.startswith("etag"):
            self.send_header("ETag", f'"{fault}"')
        if span:
            end = fault.removeprefix("range ") if fault.startswith("range ") else None
            end = end or f"{len(body) - 1}/{len(body)}"
            self.send_header("Content-Range", f"bytes {start}-{end}")
        self.end_headers()
        if fault in ("cut", "etag 1"):
            part = part[: len(part) // 2]
        if fault == "cut at once":
            part = b""
        if fault.startswith("first"):
            part = part[: int(fault.removeprefix("first "))]
        if fault == "longer":
            part += b"more"
        self.wfile.write(part)
        self.wfile.flush()
        if fault.startswith(("cut", "first", "etag 1")):
            self.connection.close()

    def drip(self, fault):
        """A byte at a time, of the headers or of the content, until the other end is gone."""
        with contextlib.suppress(OSError):
            self.wfile.write(b"HTTP/1.0 200 OK\r\nX: ")
            if fault == "drip":
                self.wfile.write(b"\r\n\r\n")
            while not self.server.stops:
                self.wfile.write(b"x")
                time.sleep(0.02)


@pytest.fixture
def server(monkeypatch):
    md5 = hashlib.md5(CONTENT).hexdigest()
    monkeypatch.setitem(official.OFFICIAL, "fake", official.Official(NAME, md5))
    server = Server()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server
    server.stops = True
    server.shutdown()
    server.server_close()
    thread.join()


def fetch(server, folder, **kwargs):
    return official.download("fake", folder, base_url=server.url, backoff=0.01, **kwargs)


def left(folder):
    return sorted(p.name for p in folder.iterdir() if p.suffix != ".lock")


def test_a_file_is_downloaded_once(server, tmp_path):
    path = fetch(server, tmp_path)
    assert path.read_bytes() == CONTENT
    assert fetch(server, tmp_path) == path
    assert server.requests == [(f"/base/{NAME}", None)]
    assert left(tmp_path) == [NAME]


def test_an_interrupted_download_resumes_where_it_stopped(server, tmp_path):
    server.faults = ["cut", "cut", "cut at once"]
    assert fetch(server, tmp_path).read_bytes() == CONTENT
    starts = [int(span.removeprefix("bytes=")[:-1]) if span else 0 for _, span in server.requests]
    assert starts[0] == 0 < starts[1] < starts[2] == starts[3]


def test_attempts_are_counted_only_without_progress(server, tmp_path):
    server.faults = ["cut"] * 5
    assert fetch(server, tmp_path, attempts=2).read_bytes() == CONTENT


def test_a_later_call_resumes_the_download(server, tmp_path):
    server.faults = ["cut", "cut at once"]
    with pytest.raises(InputError):
        fetch(server, tmp_path, attempts=1)
    with pytest.raises(InputError):
        fetch(server, tmp_path, attempts=1)
    assert left(tmp_path) == [f"{NAME}.part"]
    assert fetch(server, tmp_path).read_bytes() == CONTENT
    assert server.requests[-1][1] is not None


RANGES = ["ignores ranges", "another offset", "range many/9", "range 9999999/10", "etag 2", "gzip"]


@pytest.mark.parametrize("fault", RANGES)
def test_a_server_that_cannot_resume(fault, server, tmp_path):
    server.faults = ["etag 1" if fault == "etag 2" else "cut", fault]
    assert fetch(server, tmp_path).read_bytes() == CONTENT


def test_a_server_that_only_sends_the_beginning_is_given_up(server, tmp_path):
    """Sometimes more of it, sometimes less: that is no progress."""
    server.faults = ["first 50000", "first 90000"] * 20
    with pytest.raises(InputError, match="cannot be downloaded"):
        fetch(server, tmp_path, attempts=3)
    assert len(server.requests) < 9


@pytest.mark.parametrize("fault", ["drip", "drip headers"])
def test_a_server_that_drips_is_given_up(fault, server, tmp_path, monkeypatch):
    """It sends something before each time-out, and in a whole window next to nothing."""
    monkeypatch.setattr(http_download, "_WINDOW", 0.2)
    server.faults = [fault] * 2
    with pytest.raises(InputError, match="fewer than 65,536 bytes in 0 s"):
        fetch(server, tmp_path, attempts=2)
    assert len(server.requests) == 2
    # What did arrive is not what the file has there, and the threads that are left add nothing.
    assert fetch(server, tmp_path).read_bytes() == CONTENT


def test_all_attempts_together_take_a_day_at_most(server, tmp_path, monkeypatch):
    monkeypatch.setattr(http_download, "_MAX_SECONDS", 0.3)
    server.faults = ["drip"] * 9
    with pytest.raises(InputError, match="not complete after 0 hours"):
        fetch(server, tmp_path)
    assert len(server.requests) == 1


def test_a_partial_file_is_kept_only_where_the_server_can_resume(server, tmp_path):
    server.faults = ["first 90000", "first 50000", "first 0"]
    with pytest.raises(InputError, match="IncompleteRead"):
        fetch(server, tmp_path, attempts=2)
    assert left(tmp_path) == []


@pytest.mark.parametrize(
    "fault, message", [("circle", "TooManyRedirects"), ("length 99999999999", "far more")]
)
def test_what_is_wrong_for_good_is_not_asked_for_again(fault, message, server, tmp_path):
    server.faults = [fault] * 99
    with pytest.raises(InputError, match=message):
        fetch(server, tmp_path)
    assert len(server.requests) <= 31
    assert left(tmp_path) == []


@pytest.mark.parametrize(
    "length", ["²", "9" * 5000, "-1", "many", f"{len(CONTENT)}|{len(CONTENT)}"]
)
def test_a_malformed_content_length_is_ignored(length, server, tmp_path):
    server.faults = [f"length {length}"]
    assert fetch(server, tmp_path).read_bytes() == CONTENT


def test_a_partial_file_that_is_too_long_starts_over(server, tmp_path):
    (tmp_path / f"{NAME}.part").write_bytes(CONTENT + b"more")
    assert fetch(server, tmp_path).read_bytes() == CONTENT


def test_a_partial_file_that_is_complete_is_used(server, tmp_path):
    (tmp_path / f"{NAME}.part").write_bytes(CONTENT)
    assert fetch(server, tmp_path).read_bytes() == CONTENT


def test_a_redirect_is_followed(server, tmp_path):
    server.faults = ["redirect"]
    assert fetch(server, tmp_path).read_bytes() == CONTENT
    assert server.requests[-1][0] == f"/base/elsewhere/{NAME}"


def test_a_server_error_is_retried(server, tmp_path):
    server.faults = ["status 503", "status 429", "length 5|6", "longer"]
    assert fetch(server, tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize("fault", ["wrong", "page"])
def test_wrong_contents_are_retried_once_and_then_rejected(fault, server, tmp_path):
    server.faults = [fault]
    assert fetch(server, tmp_path).read_bytes() == CONTENT
    (tmp_path / NAME).unlink()
    server.faults = [fault] * 9
    with pytest.raises(InputError, match=r"md5 \w+ instead of") as error:
        fetch(server, tmp_path)
    assert "\n" not in str(error.value)
    assert left(tmp_path) == []


def test_a_404_is_not_retried_and_says_where_to_put_the_file(server, tmp_path):
    server.faults = ["missing"] * 9
    with pytest.raises(InputError, match="404") as error:
        fetch(server, tmp_path)
    assert str(tmp_path) in str(error.value)
    assert len(server.requests) == 1  # no use asking again


def test_offline_says_which_file_to_put_where(monkeypatch, tmp_path):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    with pytest.raises(InputError) as error:
        official.download("densenet201", base_url="http://127.0.0.1:9", attempts=2, backoff=0.01)
    message = str(error.value)
    assert "densenet201_weights_tf_dim_ordering_tf_kernels.h5" in message
    assert "1ceb130c1ea1b78c3bf6114dbdfd8807" in message
    assert str(tmp_path / "models") in message
    assert official.BASE_URL_VARIABLE in message
    assert "\n" not in message


def test_the_cache_comes_before_the_network(server, monkeypatch, tmp_path):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / NAME).write_bytes(CONTENT)
    assert official.download("fake", base_url="http://127.0.0.1:9") == tmp_path / "models" / NAME
    (tmp_path / "models" / NAME).write_bytes(b"damaged")
    monkeypatch.setenv(official.BASE_URL_VARIABLE, f"{server.url}/")
    assert official.download("fake").read_bytes() == CONTENT


def test_the_default_cache_is_keras_own(monkeypatch):
    monkeypatch.delenv("KERAS_HOME", raising=False)
    assert official.cache_directory() == Path.home() / ".keras" / "models"


@pytest.mark.parametrize("name", ["densenet161", "../../etc/passwd", ""])
def test_an_unknown_name_is_rejected(name, tmp_path):
    with pytest.raises(InputError, match="densenet201-notop"):
        official.download(name, tmp_path)


def test_an_unwritable_directory(server, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="cannot write here"):
        fetch(server, tmp_path / "file")


def test_an_endless_file_is_given_up(server, tmp_path, monkeypatch):
    monkeypatch.setattr(http_download, "_MAX_BYTES", 1 << 20)
    with pytest.raises(InputError, match="far more"):
        fetch(server, tmp_path, attempts=2)


CHILD = """
import sys
from densenet_flax.weights import http_download, official
official.OFFICIAL["fake"] = official.Official(sys.argv[1], sys.argv[2])
official.download("fake", sys.argv[3], base_url=sys.argv[4], backoff=0.01)
"""


def test_of_two_processes_one_downloads(server, tmp_path):
    server.faults, server.delay = ["cut", "cut", "cut"], 0.7  # long enough for them to meet
    md5 = hashlib.md5(CONTENT).hexdigest()
    arguments = [NAME, md5, str(tmp_path), server.url]
    children = [subprocess.Popen([sys.executable, "-c", CHILD, *arguments]) for _ in range(2)]
    assert [child.wait(60) for child in children] == [0, 0]
    assert (tmp_path / NAME).read_bytes() == CONTENT
    assert left(tmp_path) == [NAME]
    assert len(server.requests) == 4  # one of them fetched, the other waited


def test_names_and_hashes_are_those_in_keras():
    assert len({known.md5 for known in official.OFFICIAL.values()}) == 6
    keras = pytest.importorskip("keras", reason="Keras's own source is the reference")
    source = Path(sys.modules["keras.src.applications.densenet"].__file__).read_text()
    assert keras.__version__
    for known in official.OFFICIAL.values():
        assert known.file in source and known.md5 in source
    assert official.BASE_URL in source


def test_official_name_of_a_file(monkeypatch, tmp_path):
    md5 = hashlib.md5(CONTENT).hexdigest()
    monkeypatch.setitem(official.OFFICIAL, "fake", official.Official(NAME, md5))
    (tmp_path / "renamed").write_bytes(CONTENT)
    assert official.official_name(tmp_path / "renamed") == "fake"
    (tmp_path / "renamed").write_bytes(CONTENT[:-1])
    assert official.official_name(tmp_path / "renamed") == ""
