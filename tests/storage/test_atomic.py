import os
import signal
import subprocess
import sys

import pytest

from densenet_flax.common.errors import InputError
from densenet_flax.storage import atomic as files
from tests.helpers.program import ROOT


def test_a_folder_is_whole_or_absent(tmp_path):
    target = tmp_path / "deep" / "target"
    with files.atomic_dir(target) as folder:
        (folder / "a").write_text("a")
        assert not target.exists() and folder.parent == target.parent
    assert (target / "a").read_text() == "a"
    with pytest.raises(ZeroDivisionError), files.atomic_dir(tmp_path / "other") as folder:
        (folder / "a").write_text("a")
        raise ZeroDivisionError
    assert [path.name for path in tmp_path.iterdir()] == ["deep"]


def test_the_first_folder_wins(tmp_path):
    target = tmp_path / "target"
    with files.atomic_dir(target) as late:
        (late / "late").write_text("")
        with files.atomic_dir(target) as early:
            (early / "early").write_text("")
    assert [path.name for path in target.iterdir()] == ["early"]
    assert list(tmp_path.iterdir()) == [target]


def test_a_file_is_old_or_new(tmp_path, monkeypatch):
    path = tmp_path / "file"
    files.write_text(path, "old")
    files.write_text(path, "new")
    assert path.read_text() == "new"

    def refuse(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(InputError, match=r"file: cannot write here \(No space left on device\)"):
        files.write_text(path, "newer")
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


def test_others_may_read(tmp_path):
    mask = os.umask(0o022)
    try:
        files.write_text(tmp_path / "file", "")
        with files.atomic_dir(tmp_path / "folder"):
            pass
    finally:
        os.umask(mask)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o644
    assert (tmp_path / "folder").stat().st_mode & 0o777 == 0o755


def test_an_unfinished_file_is_removed_after_any_error(tmp_path):
    with pytest.raises(ZeroDivisionError), files.atomic_file(tmp_path / "x") as temporary:
        temporary.write_bytes(b"half")
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())


def test_what_a_killed_process_left_is_removed_and_what_a_living_one_writes_is_not(tmp_path):
    """A child dies while it writes files and a folder."""
    names = ("x.csv", "network.safetensors", "notes.markdown")  # as long as `tempfile`'s letters
    code = (
        "import contextlib, os, pathlib, signal; from densenet_flax.storage import atomic\n"
        f"folder = pathlib.Path({str(tmp_path)!r})\n"
        "with contextlib.ExitStack() as stack, atomic.atomic_dir(folder / 'folder'):\n"
        f"    [stack.enter_context(atomic.atomic_file(folder / name)) for name in {names}]\n"
        "    os.kill(os.getpid(), signal.SIGKILL)"
    )
    child = subprocess.run([sys.executable, "-c", code], cwd=ROOT)
    assert child.returncode == -signal.SIGKILL
    orphans = set(tmp_path.iterdir())
    assert len(orphans) == 4 and all(map(files.is_incomplete, orphans))
    (tmp_path / "incomplete.notes.txt").write_text("of the user")
    for name in names:
        with files.atomic_file(tmp_path / name) as temporary:
            left = orphans & set(tmp_path.iterdir())
            assert temporary.exists() and not [path for path in left if name in path.name]
            assert len(left) == 3 - names.index(name)
            temporary.write_text("whole")
    with files.atomic_file(tmp_path / "y") as temporary:
        files.remove_orphans(tmp_path)
        temporary.write_text("whole")
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == sorted(["incomplete.notes.txt", "y", *names])


def test_permissions_follow_the_umask(tmp_path):
    mask = os.umask(0o027)
    try:
        with files.atomic_file(tmp_path / "x") as temporary:
            temporary.write_bytes(b"whole")
    finally:
        os.umask(mask)
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o640
