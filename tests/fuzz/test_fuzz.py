"""No damaged file ends in anything but one line; see `tests.fuzz.__main__` for hours of it."""

import json
import subprocess
import sys

from tests.helpers.program import ROOT


def run(*words):
    return subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True)


def test_damaged_files_of_every_kind(tmp_path):
    words = ("--inputs=30", "--each", f"--findings={tmp_path}")
    done = run("-m", "tests.fuzz", *words)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_fuzzer_finds_every_fault():
    done = run("-m", "tests.fuzz.faulty_readers")
    assert done.returncode == 0, done.stderr
    outcomes = {
        name: {k: n for k, n in o.items() if n} for name, o in json.loads(done.stdout).items()
    }
    assert outcomes == {
        "refuses": {"refused": 2},
        "refuses something": {"traceback": 2},
        "accepts": {"wrong acceptance": 2},
        "raises": {"traceback": 2},
        "exits": {"traceback": 2},
        "loops": {"hang": 2},
        "sleeps": {"hang": 2},
        "crashes": {"signal": 2},
        "fills": {"memory": 2},
        "hides": {"memory": 2},
    }
