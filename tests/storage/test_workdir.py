"""Files of a work directory to which anything may have happened: one line, or nothing changes."""

import json
import os

import pytest

from densenet_flax.common.errors import InputError
from densenet_flax.storage.json_files import read_json_object, write_json_object
from densenet_flax.storage.trained_model import read_operating_point
from densenet_flax.storage.workdir import Workdir

CONTENT = {"step": 18, "threshold": 0.5, "notes": ["a", {"b": None}]}
TEXTS = ("", "[]", "null", "1e999", '"text"', '{"a":' * 500 + "1" + "}" * 500, "{}", '{"crc32": 1}')


def _replace(path, kind):
    path.unlink(missing_ok=True)
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "dangling link":
        path.symlink_to(path.with_name("nowhere"))
    elif kind == "not UTF-8":
        path.write_bytes(b"\xff\xfe")
    else:
        path.write_text(kind)


READERS = {
    "config.json": lambda workdir: workdir.require_config(),
    "extensions.json": lambda workdir: workdir.read_extensions(),
    "operating_point.json": lambda workdir: read_operating_point(workdir.operating_point),
}


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("kind", [*TEXTS, "folder", "pipe", "dangling link", "not UTF-8"])
def test_a_file_that_is_something_else_is_one_line(tmp_path, name, kind):
    _replace(tmp_path / name, kind)
    if (name, kind) == ("config.json", "{}"):  # whose keys are compared with the experiment's
        return
    with pytest.raises(InputError, match=name) as error:
        READERS[name](Workdir(tmp_path))
    assert "\n" not in str(error.value) and len(str(error.value)) < 500


def test_any_change_of_a_value_is_found_and_none_of_the_layout(tmp_path):
    path = tmp_path / "x.json"
    write_json_object(path, CONTENT, indent=2)
    text = path.read_text()
    assert read_json_object(path, "") == CONTENT
    path.write_text(json.dumps(json.loads(text)))
    assert read_json_object(path, "") == CONTENT
    for old, new in (("18", "19"), ("0.5", "0.25"), ('"a"', '"c"'), ("null", "true")):
        path.write_text(text.replace(old, new))
        with pytest.raises(InputError, match=r"its checksum differs.*remove the line 'crc32'"):
            read_json_object(path, "")
    path.write_text(json.dumps({**CONTENT, "step": 19}))  # as earlier versions wrote it
    assert read_json_object(path, "")["step"] == 19


@pytest.mark.parametrize("name", ["metrics.jsonl", "timing.jsonl"])
def test_a_log_keeps_its_lines_and_names_what_is_not_one(tmp_path, name, caplog):
    workdir = Workdir(tmp_path)
    lines = [json.dumps({"step": step}) for step in range(5)]
    others = ["[]", "null", '{"step": "2"}', '{"step": 1e999}', "[" * 5000, "\0" * 20]
    content = "\n".join([*lines[:2], *others, *lines[2:], '{"st'])
    (tmp_path / name).write_text(content)
    workdir.rewind(3)
    assert (tmp_path / name).read_text().splitlines() == lines[:4]
    assert f"{name}: {len(others)} lines cannot be read" in caplog.text
    for kind in ("folder", "pipe", "dangling link"):
        (tmp_path / name).unlink()
        _replace(tmp_path / name, kind)
        with pytest.raises(InputError, match=rf"{name}: "):
            workdir.rewind(3)
        if kind != "dangling link":
            with pytest.raises(InputError, match=rf"{name}: cannot write here"):
                workdir._append(name, {"step": 1})
        if kind == "folder":
            (tmp_path / name).rmdir()
            (tmp_path / name).write_text("")


def test_orphans_are_removed_with_the_lock_and_a_second_run_is_refused(tmp_path):
    workdir = Workdir(tmp_path / "run")
    for folder in ("", "report", "prefix_cache", "data"):
        (workdir.path / folder).mkdir(exist_ok=True)
        (workdir.path / folder / "incomplete.x.json.abcd0123.json").write_text("half")
    with workdir.lock():
        assert not list(workdir.path.rglob("incomplete.*"))
        with pytest.raises(InputError, match="another run is using"), workdir.lock():
            pass
    with workdir.lock():
        pass


@pytest.mark.parametrize("kind", ["folder", "pipe"])
def test_a_lock_that_is_no_file(tmp_path, kind):
    _replace(tmp_path / ".lock", kind)
    if kind == "pipe":
        with Workdir(tmp_path).lock():
            return
    with pytest.raises(InputError, match=r"\.lock: cannot write here"), Workdir(tmp_path).lock():
        pass
