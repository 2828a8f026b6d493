"""Only regular files of a bounded size are read; anything else is one line."""

import os
import socket
from pathlib import Path

import pytest

from densenet_flax.common.errors import InputError
from densenet_flax.common.reading import read_file


def test_content_up_to_the_limit(tmp_path):
    path = tmp_path / "a"
    for size in (0, 99, 100):
        path.write_bytes(b"x" * size)
        assert read_file(path, max_bytes=100) == b"x" * size
    path.write_bytes(b"x" * 101)
    with pytest.raises(InputError, match="the table: has 0 MB, at most 0 MB are read; a slide"):
        read_file(path, "the table", max_bytes=100, larger="a slide")


def test_a_file_of_5_gb_is_refused_before_it_is_read(tmp_path):
    path = tmp_path / "slide.tif"
    with open(path, "wb") as file:
        file.truncate(5 << 30)
    with pytest.raises(InputError, match=r"slide\.tif: has 5,369 MB, at most 1 MB"):
        read_file(path, max_bytes=10**6)


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="a file without a size")
def test_files_that_do_not_know_their_size():
    assert b"Name:" in read_file(Path("/proc/self/status"), max_bytes=10**6)
    with pytest.raises(InputError, match="at most 0 MB are read"):
        read_file(Path("/proc/self/status"), max_bytes=10)


def test_what_is_no_regular_file_is_named_and_not_opened(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a socket's path may be 100 characters
    os.mkfifo("pipe")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
    os.symlink("/dev/zero", "zero")
    os.symlink("nowhere", "broken")
    for name, kind in {
        "pipe": "is a named pipe and not a file",
        "socket": "is a socket and not a file",
        "zero": "is a device and not a file",
        ".": "is a folder and not a file",
        "broken": r"cannot be read \(No such file",
        "zero\0byte": "cannot be read",
    }.items():
        with pytest.raises(InputError, match=kind):
            read_file(Path(name), max_bytes=100)
