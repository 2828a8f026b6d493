"""The script for a machine with an accelerator, on a CPU with a tiny network."""

import argparse
import sys

import pytest

from benchmarks import accelerator, accelerator_sections


@pytest.fixture
def args(tmp_path):
    return argparse.Namespace(small=True, peers="torch", trace=tmp_path / "trace")


@pytest.mark.parametrize("name", accelerator.SECTIONS)
def test_every_section_prints_its_figures(name, args, monkeypatch):
    monkeypatch.setattr(accelerator_sections, "IMPLEMENTATIONS", ("reference",))
    lines = list(accelerator_sections.SECTIONS[name](args))
    rows = [line.strip("| ").split(" | ") for line in lines if line.startswith("|")][2:]
    if name == "parity":
        assert [row[0] for row in rows] == ["float32", "bfloat16"]
        # Against itself: nothing, and the rounding of bfloat16.
        assert float(rows[0][2]) < 1e-5 and float(rows[0][3]) < 1e-4
        assert 1e-4 < float(rows[1][2]) < 0.1
    elif name in ("forward", "step"):
        assert len(rows) == {"forward": 2, "step": 3}[name]
        speed = {"forward": 4, "step": 5}[name]
        assert all(float(row[speed]) > 0 for row in rows)
    elif name == "profile":
        assert rows and list(args.trace.rglob("*.xplane.pb"))
    else:
        assert lines


def test_the_longest_kernels_are_those_of_the_devices_streams():
    def event(name, thread, pid=1, dur=1e6):
        return {"ph": "X", "name": name, "pid": pid, "tid": thread, "dur": dur}

    def label(kind, name, pid, tid=0):
        return {"ph": "M", "name": kind, "pid": pid, "tid": tid, "args": {"name": name}}

    events = [
        label("process_name", "/device:GPU:0", 1),
        label("process_name", "/host:CPU", 2),
        label("thread_name", "Stream #13(Compute)", 1, 7),
        label("thread_name", "XLA Modules", 1, 8),
        event("gemm", 7),
        event("gemm", 7, dur=2e6),
        event("fusion", 7),
        event("jit_step", 8, dur=9e6),
        event("python", 7, pid=2, dur=9e6),
    ]
    total, longest = accelerator_sections.longest_kernels({"traceEvents": events})
    assert total == 4 and longest == [("gemm", 2, 3.0), ("fusion", 1, 1.0)]


def test_a_section_that_fails_or_is_late_is_one_line(capfd):
    run = accelerator.run_section
    fails = "print('| 1 |', flush=True); raise ValueError('no such kernel')"
    assert not run("A", [sys.executable, "-c", fails], 60)
    late = "import time; print('| 2 |', flush=True); time.sleep(60)"
    assert not run("B", [sys.executable, "-c", late], 2)
    assert run("C", [sys.executable, "-c", "print('| 3 |')"], 60)
    lines = [line for line in capfd.readouterr().out.splitlines() if line]
    assert lines == [
        "## A",
        "| 1 |",
        "*A: failed: ValueError: no such kernel*",
        "## B",
        "| 2 |",
        "*B: stopped after its 2 s.*",
        "## C",
        "| 3 |",
    ]
