"""What is done to the host process for XLA's CPU backend, all of it in one context manager.

The rest of the package knows nothing of it: it records events with `jax.monitoring` where one kind
of work ends and another begins, and `tuned_host` listens.
"""

import contextlib
import ctypes
import os
import platform
import sys
from collections.abc import Iterator
from pathlib import Path

# Recorded by the trainer, the checkpoint writer and the evaluation.
STAGE_BEGINS = "/densenet_flax/stage_begins"
CHECKPOINT_WRITTEN = "/densenet_flax/checkpoint_written"
EVALUATION_BEGINS = "/densenet_flax/evaluation_begins"
_EVENTS = (STAGE_BEGINS, CHECKPOINT_WRITTEN, EVALUATION_BEGINS)
_COMPILED = "/jax/core/compile/backend_compile_duration"  # recorded by JAX
_LONG_COMPILATION = 1.0  # seconds; shorter ones leave little behind

# While steps are traced in the background, tracing holds the GIL, and every array that goes to a
# device meanwhile may wait this long to get it back: at Python's 5 ms, nine seconds a start.
_SWITCH_INTERVAL = 1e-4

_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
# Large blocks come from the heap, in pages of 2 MB, and go back only when malloc_trim is called.
_TUNABLES = (
    "glibc.malloc.hugetlb=1:glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=1099511627776"
)


@contextlib.contextmanager
def tuned_host(*, restart: bool = True) -> Iterator[None]:
    """Runs a program under the memory and thread settings that XLA's CPU backend wants.

    With `restart` to be entered once, early: under glibc 2.35 or newer **the program starts again
    from its first line**, with huge pages, unless `GLIBC_TUNABLES` is set. XLA takes gigabytes of
    temporaries from glibc at each step and returns them after it. By default each is then mapped
    again, page by page of 4 kB, which takes a third of a training step on two CPU cores. glibc
    reads its tunables only when a process starts, so the process replaces itself, in a fifth of a
    second.

    Inside the context, threads switch every 0.1 ms, and free memory is returned to the system when
    a long compilation, a checkpoint or a phase of the run ends: what a compiler leaves is in small
    blocks, more than a gigabyte in all, among which large temporaries find no room.
    """
    if restart and "GLIBC_TUNABLES" not in os.environ and _has_tunables():
        os.environ["GLIBC_TUNABLES"] = _TUNABLES
        sys.stdout.flush()
        os.execv(sys.executable, sys.orig_argv)

    import jax.monitoring  # after the restart: importing it takes seconds

    def on_event(event: str, **_: str | int) -> None:
        if event in _EVENTS:
            _trim()

    def on_duration(event: str, duration_secs: float, **_: str | int) -> None:
        if event == _COMPILED and duration_secs >= _LONG_COMPILATION:
            _trim()

    interval = sys.getswitchinterval()
    sys.setswitchinterval(_SWITCH_INTERVAL)
    jax.monitoring.register_event_listener(on_event)
    jax.monitoring.register_event_duration_secs_listener(on_duration)
    try:
        yield
    finally:
        jax.monitoring.unregister_event_listener(on_event)
        jax.monitoring.unregister_event_duration_listener(on_duration)
        sys.setswitchinterval(interval)


def _trim() -> None:
    """Returns free memory to the system, where the C library is glibc."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim:
        trim(0)


def _has_tunables() -> bool:
    """Whether this is glibc 2.35 or newer, and the kernel gives huge pages on request."""
    name, version = platform.libc_ver()
    if sys.platform != "linux" or name != "glibc" or not sys.executable:
        return False
    numbers = [int(part) for part in version.split(".")[:2] if part.isdigit()]
    return numbers >= [2, 35] and _PAGES.is_file() and "[never]" not in _PAGES.read_text()
