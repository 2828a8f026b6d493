"""How processes find each other, and the one line of a run that cannot go on."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from densenet_flax.common import processes
from densenet_flax.common.errors import InputError
from tests.common.test_sharding import free_port

ROOT = Path(__file__).parents[2]


def run_program(text):
    return subprocess.run(
        [sys.executable, "-c", text], cwd=ROOT, capture_output=True, text=True, timeout=120
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("host0:9900", None, 1), "--processes=N"),
        (("host0:9900", 2, None), "--process=0…N-1"),
        (("host0:9900", 2, 2), "expected a number from 0 to 1"),
        (("host0", 2, 0), "expected address:port"),
        (("host0:port", 2, 0), "expected address:port"),
        (("host0:99000", 2, 0), "expected address:port"),
        (("no-such-host.invalid:9900", 2, 1), "cannot be reached within 0.1 s"),
        ((f"127.0.0.1:{free_port()}", 2, 1), "cannot be reached within 0.1 s (Connection refused)"),
    ],
)
def test_what_names_no_run_is_refused(arguments, message):
    with pytest.raises(InputError, match=re.escape(message)):
        processes.start_processes(*arguments, timeout=0.1)


def test_a_process_that_never_comes_is_one_line():
    done = run_program(
        "from densenet_flax.common.processes import joined_processes\n"
        f"with joined_processes('127.0.0.1:{free_port()}', 2, 0, timeout=1):\n    pass"
    )
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "not all of the 2 processes came within 1 s" in line
    assert "--coordinator_timeout" in line


@pytest.mark.parametrize(
    ("written", "names"),
    [
        ("(stopped sending heartbeats):\n1\nThe tasks have crashed.", "process 1 of"),
        ("(stopped sending heartbeats):\n1, 12\nThe tasks have crashed.", "process 1, 12 of"),
        ('{grpc_status:14, grpc_message:"Socket closed"}', "process 0 of"),
    ],
)
def test_the_lost_process_is_named(written, names):
    assert processes._lost_process(written).startswith(names)


def test_an_error_is_known_to_come_from_a_lost_process():
    def raised_from(error, cause):
        error.__cause__ = cause
        return error

    gloo = ValueError("UNKNOWN: Gloo AllGather failed: Connection closed by peer")
    assert processes._is_communication_error(gloo)
    assert processes._is_communication_error(raised_from(InputError("cannot be read"), gloo))
    assert not processes._is_communication_error(InputError("no barrier of patients: data.csv"))
    assert not processes._is_communication_error(KeyError("x"))


HELD = """
import os
from densenet_flax.common.held_stderr import HeldStderr
held = HeldStderr(lambda text: "one line" if "lost" in text else None)
"""


def test_an_abort_that_is_explained_is_one_line_and_another_stays_what_it_is():
    explained = run_program(HELD + "os.write(2, b'F1: lost\\n    @ stack trace\\n'); os.abort()")
    assert (explained.returncode, explained.stderr) == (1, "one line\n")
    other = run_program(HELD + "os.write(2, b'F1: check failed\\n'); os.abort()")
    assert (other.returncode, other.stderr) == (-6, "F1: check failed\n")


def test_nothing_that_was_written_is_lost():
    text = "import sys; print('python', file=sys.stderr); os.write(2, b'x' * 300_000)\n"
    done = run_program(HELD + text + "held.release(); os.write(2, b' end')")
    assert done.returncode == 0
    assert done.stderr == "python\n" + "x" * 300_000 + " end"


def test_after_the_release_an_abort_is_what_it_was_before():
    enabled = "import faulthandler; faulthandler.enable()\n"
    done = run_program(enabled + HELD + "held.release(); os.write(2, b'lost\\n'); os.abort()")
    assert done.returncode == -6
    assert done.stderr.startswith("lost\nFatal Python error: Aborted")


def test_a_reader_that_is_gone_holds_up_nothing():
    text = "import time; os.write(2, b'x'); time.sleep(0.8); os.write(2, b'x' * 300_000)"
    program = [sys.executable, "-c", HELD + text]
    with subprocess.Popen(program, cwd=ROOT, stderr=subprocess.PIPE) as process:
        process.stderr.close()
        assert process.wait(60) == 0
