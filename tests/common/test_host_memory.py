"""The settings of the host process: made, listened for, and undone."""

import ctypes
import os
import platform
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from densenet_flax.common import host_memory
from densenet_flax.common.host_memory import tuned_host

glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a matter of glibc's malloc")
EVENTS = (
    host_memory.STAGE_BEGINS,
    host_memory.CHECKPOINT_WRITTEN,
    host_memory.EVALUATION_BEGINS,
)


@pytest.fixture(autouse=True)
def keep_this_process(monkeypatch):
    """A test must not start pytest again."""
    monkeypatch.setenv("GLIBC_TUNABLES", os.environ.get("GLIBC_TUNABLES", ""))


@pytest.fixture
def trims(monkeypatch):
    calls = []
    monkeypatch.setattr(host_memory, "_trim", lambda: calls.append(1))
    return calls


def resident_megabytes() -> float:
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


@glibc
def test_memory_between_blocks_in_use_is_returned():
    """Of its own accord, glibc returns only what is free at the end of its heap."""
    library = ctypes.CDLL(None)
    library.malloc.restype = ctypes.c_void_p
    library.free.argtypes = [ctypes.c_void_p]
    size, count = 100_000, 2_000  # below the size that is mapped by itself
    blocks = [library.malloc(size) for _ in range(count)]
    for block in blocks:
        ctypes.memset(block, 1, size)
    last = blocks.pop()
    for block in blocks:
        library.free(block)
    with tuned_host():
        before = resident_megabytes()
        jax.monitoring.record_event(host_memory.STAGE_BEGINS)
        after = resident_megabytes()
    library.free(last)
    assert before - after > 150


@pytest.mark.parametrize("event", EVENTS)
def test_memory_is_trimmed_at_the_end_of_a_phase(event, trims):
    with tuned_host():
        jax.monitoring.record_event(event)
        jax.monitoring.record_event("/jax/another/event")
    assert len(trims) == 1
    jax.monitoring.record_event(event)
    assert len(trims) == 1  # nobody listens any more


def test_memory_is_trimmed_after_a_compilation(trims, monkeypatch):
    """JAX records the event that is listened for, under the name that it has in this version."""
    monkeypatch.setattr(host_memory, "_LONG_COMPILATION", 0.0)
    with tuned_host():
        jax.jit(lambda x: x * 7 + 3).lower(1.5).compile()
    assert trims


def test_short_compilations_are_left_alone(trims, monkeypatch):
    monkeypatch.setattr(host_memory, "_LONG_COMPILATION", 1e9)
    with tuned_host():
        jax.jit(lambda x: x * 7 + 4).lower(1.5).compile()
    assert not trims


def test_the_switch_interval_is_restored():
    before = sys.getswitchinterval()
    with pytest.raises(KeyError), tuned_host():
        assert sys.getswitchinterval() == pytest.approx(1e-4)
        raise KeyError
    assert sys.getswitchinterval() == before


PROGRAM = """
import os, sys
from densenet_flax.common import host_memory
print("start", flush=True)
with host_memory.tuned_host():
    print(os.environ.get("GLIBC_TUNABLES"), sys.argv[1:])
"""


@pytest.mark.skipif(not host_memory._has_tunables(), reason="needs glibc 2.35 and huge pages")
@pytest.mark.parametrize("given", [None, "glibc.malloc.check=0"])
def test_the_program_restarts_once_with_huge_pages(given, tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    environment.pop("GLIBC_TUNABLES", None)
    if given:  # whoever has set it keeps what they have
        environment["GLIBC_TUNABLES"] = given
    done = subprocess.run(
        [sys.executable, str(tmp_path / "program.py"), "one argument"],
        capture_output=True,
        text=True,
        env=environment,
    )
    lines = done.stdout.splitlines()
    assert done.returncode == 0, done.stderr
    assert lines[:-1] == ["start"] * (1 if given else 2)
    assert lines[-1] == f"{given or host_memory._TUNABLES} ['one argument']"
