"""A command in a process of its own, which can be killed."""

import functools
import mmap
import os
import pkgutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from absl import logging

from densenet_flax.common.errors import InputError

DONE, REFUSED, FAILED = 0, 2, 3  # exit status of a command

# What a process was doing when it was killed: the last of these functions that it was in.
_PHASES = {
    "densenet_flax.experiments.run._train": "training",
    "densenet_flax.training.prefix_cache.PrefixCache._compute": "features",
    "densenet_flax.storage.checkpoint.Checkpoints._write": "saving",
    "densenet_flax.experiments.run.evaluate_run": "evaluation",
    "densenet_flax.evaluation.report.report.write_report": "report",
    "densenet_flax.data.synthetic.breakhis_tree._draw_all": "drawing tiles",
    "densenet_flax.data.sources.breakhis.BreakHisSource._prepare_records": "writing records",
    "densenet_flax.data.images.array_cache.write_images": "writing arrays",
    "densenet_flax.inference.batch.predict_files._Job.process_remaining": "prediction",
    "densenet_flax.inference.batch.predict_files._Job.write_tables": "writing tables",
    "densenet_flax.export.export._serialize": "export",
    "densenet_flax.export.export.replace_files": "replacing files",
}
_NAMES = ["start", *_PHASES.values()]


class Process:
    """A command in a process of its own."""

    def __init__(self, command: Callable[[Path], object], folder: Path, xla: Path):
        self._shared = mmap.mmap(-1, mmap.PAGESIZE)
        self._message = tempfile.TemporaryFile("w+")  # noqa: SIM115
        sys.stdout.flush()
        self.pid = os.fork()
        if not self.pid:
            os._exit(self._run(command, folder, xla))
        self.status: int | None = None
        self.cpu_seconds = 0.0

    def _run(self, command: Callable[[Path], object], folder: Path, xla: Path) -> int:
        status = FAILED
        try:
            logging.set_verbosity(logging.FATAL)
            nothing = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nothing, 1)
            os.dup2(nothing, 2)
            jax.config.update("jax_compilation_cache_dir", str(xla))
            jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
            # Else an exported program has the lines of this file from which it was called.
            jax.config.update("jax_traceback_in_locations_limit", 0)
            for number, function in enumerate(_PHASES, start=1):
                self._watch(function, number)
            command(folder)
            status = DONE
        except InputError as error:
            self._message.write(f"{error}")
            status = REFUSED
        except BaseException:
            self._message.write(traceback.format_exc())
        self._message.flush()
        return status

    def _watch(self, function: str, number: int) -> None:
        """Notes in shared memory whether the process is in a function."""
        owner_name, _, name = function.rpartition(".")
        owner = pkgutil.resolve_name(owner_name)
        wrapped = getattr(owner, name)

        @functools.wraps(wrapped)
        def wrapper(*arguments: Any, **options: Any) -> Any:
            self._shared[number] += 1
            try:
                return wrapped(*arguments, **options)
            finally:
                self._shared[number] -= 1

        setattr(owner, name, wrapper)

    @property
    def phase(self) -> str:
        return _NAMES[max(i for i in range(len(_NAMES)) if not i or self._shared[i])]

    @property
    def message(self) -> str:
        self._message.seek(0)
        return self._message.read()

    def wait(self) -> int:
        """Exit status; that of a signal is negative."""
        if self.status is None:
            _, status, usage = os.wait4(self.pid, 0)
            self.status = os.waitstatus_to_exitcode(status)
            self.cpu_seconds = usage.ru_utime + usage.ru_stime
        return self.status

    def kill_after(self, cpu_seconds: float) -> str | None:
        """Kills it when it used so much processor time; returns what it did, None if it ended."""
        clock = Path(f"/proc/{self.pid}/stat")
        while clock.read_text().rpartition(")")[2].split()[0] != "Z":
            used = sum(map(int, clock.read_text().rpartition(")")[2].split()[11:13]))
            if used / os.sysconf("SC_CLK_TCK") >= cpu_seconds:
                os.kill(self.pid, signal.SIGKILL)
                phase = self.phase
                return phase if self.wait() == -signal.SIGKILL else None
            time.sleep(0.002)
        self.wait()
        return None
