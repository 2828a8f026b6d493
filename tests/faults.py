"""Kills, full disks and two starts at once: the same command again gives the same bits.

    python -m tests.faults --kills=100
    unshare -rm python -m tests.faults --kills=0 --disks=12 --pairs=3    # mounts small disks

Not a test of the suite, which has a few of each: it takes an hour on two cores. Every command of
`main.py` runs on drawn tiles with a small network, in a process that ends by SIGKILL when
it has used a random share of the processor time that the undisturbed command takes, or on a disk
that is too small at a random point, or beside another one of its kind. Then the same command runs
again to its end, and every file and checkpoint that it leaves is compared with those of the
undisturbed command. The processes are forks of this one, which has imported the package: an import
takes longer than a run.
"""

import argparse
import contextlib
import functools
import hashlib
import json
import mmap
import os
import pkgutil
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from densenet_flax.common.errors import InputError
from densenet_flax.data.loading import open_dataset
from densenet_flax.experiments import run
from densenet_flax.experiments.from_config import resolve
from densenet_flax.export.export import export_classifier
from densenet_flax.inference.batch.outputs import OutputOptions
from densenet_flax.inference.batch.predict_files import predict
from densenet_flax.models.densenet import NETWORKS, DenseNet
from densenet_flax.storage.checkpoint import Checkpoints
from tests.configs import tiny

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


class Command(NamedTuple):
    """A command: what it needs in its folder, what it does there, and what it leaves."""

    needs: tuple[str, ...]
    start: Callable[[Path], object]
    results: tuple[str, ...]  # patterns
    share: float  # of all kills


def _config(folder: Path) -> ConfigDict:
    NETWORKS["smallest"] = functools.partial(DenseNet, blocks=(1, 1, 1, 2), growth_rate=8)
    config = tiny.get_config()
    config.model.name = "smallest"
    config.cache_dir = str(folder / "cache")
    config.ema_decay = 0.9
    config.stages.head.duration = config.stages.finetune.duration = "6 epochs"
    config.stages.finetune.restore_best = True
    config.explain = ""
    return config


def _prepare(folder: Path) -> None:
    experiment = resolve(_config(folder))
    open_dataset(experiment.data, experiment.cache_directory)


def _predict(folder: Path) -> None:
    options = OutputOptions(
        folder / "out" / "table.csv", folder / "out" / "maps", folder / "out" / "features.npy"
    )
    os.chdir(folder)  # the table has the paths as they are given
    predict("run", "cache/drawn", options, batch_size=3)


_CACHE = ("cache/**/*.png", "cache/**/images.npy", "cache/**/rows.json")
_REPORT = ("run/report/predictions.csv", "run/report/*.png")
COMMANDS = {
    "prepare": Command((), _prepare, _CACHE, 0.15),
    "train": Command(
        ("cache",),
        lambda folder: run.train_and_evaluate(_config(folder), str(folder / "run")),
        ("run/*.json", "run/metrics.jsonl", "run/checkpoints", *_REPORT, *_CACHE),
        0.4,
    ),
    "evaluate": Command(
        ("cache", "run"),
        lambda folder: run.evaluate(_config(folder), str(folder / "run")),
        ("run/*.json", "run/checkpoints", *_REPORT),
        0.15,
    ),
    "predict": Command(("cache", "run"), _predict, ("out/**/*",), 0.15),
    "export": Command(
        ("cache", "run"),
        lambda folder: export_classifier(str(folder / "run"), folder / "out"),
        ("out/*",),
        0.15,
    ),
}


# Processes.


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


def _digests(command: Command, folder: Path, xla: Path) -> dict[str, str]:
    """A digest of each file and checkpoint that a command leaves, read in a process of its own."""
    output = xla.parent / "digests.json"

    def read(folder: Path) -> None:
        digests = {}
        for pattern in command.results:
            for path in sorted(folder.glob(pattern)):
                # Folders of the cache are named by the times of the files in them, too.
                name = re.sub("[0-9a-f]{16,}", "KEY", str(path.relative_to(folder)))
                if "incomplete." in name:
                    continue
                if name.endswith("checkpoints"):
                    digests |= _checkpoint_digests(path)
                elif path.is_file():
                    digests[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        output.write_text(json.dumps(digests))

    process = Process(read, folder, xla)
    if process.wait() != DONE:
        return {"unreadable results": process.message}
    return json.loads(output.read_text())


def _checkpoint_digests(folder: Path) -> dict[str, str]:
    digests = {}
    checkpoints = Checkpoints(folder)
    for step in checkpoints.steps:
        restored = checkpoints.restore(step)
        digest = hashlib.sha256(json.dumps(restored.meta).encode())
        for path, leaf in jax.tree.leaves_with_path((restored.variables, restored.train)):
            digest.update(f"{path} {leaf.dtype} {leaf.shape}".encode())
            digest.update(np.ascontiguousarray(leaf).tobytes())
        digests[f"checkpoint {step}"] = digest.hexdigest()
    return digests


# Faults.


class Faults:
    """What undisturbed commands leave, and the counts of what was tried."""

    def __init__(self, root: Path, seed: int):
        # All commands run in one folder, as some files state their path.
        self._folder, self._straight, self._xla = root / "work", root / "straight", root / "xla"
        self._rng = random.Random(seed)
        self._expected: dict[str, dict[str, str]] = {}
        self._cpu_seconds: dict[str, float] = {}
        self._sizes: dict[str, int] = {}
        self.counts: Counter[tuple[str, ...]] = Counter()
        self.failures: list[str] = []

    def run_straight(self) -> None:
        """Runs each command undisturbed, twice: it has to leave the same both times."""
        for name, command in COMMANDS.items():
            self._begin(name)
            self._finish(name)
            self._expected[name] = _digests(command, self._folder, self._xla)
            for part in {"prepare": ("cache",), "train": ("run",)}.get(name, ()):
                shutil.copytree(self._folder / part, self._straight / part)
            self._begin(name)
            self._cpu_seconds[name] = self._finish(name)
            files = [path for path in self._folder.rglob("*") if path.is_file()]
            self._sizes[name] = sum(path.stat().st_size for path in files)
            self._compare(name, "undisturbed")
            print(
                f"{name}: {self._cpu_seconds[name]:.1f} s of processor time, "
                f"{self._sizes[name] / 1e6:.1f} MB, {len(self._expected[name])} results",
                flush=True,
            )

    def kill(self, kills: int) -> None:
        """Kills commands, up to six times each before one is left to end."""
        for name, command in COMMANDS.items():
            left = round(kills * command.share)
            while left > 0:
                self._begin(name)
                phases = []
                for _ in range(min(left, self._rng.randint(1, 6))):
                    process = self._start(name)
                    phase = process.kill_after(self._rng.uniform(0, self._cpu_seconds[name]))
                    if phase is None:
                        break
                    phases.append(phase)
                left -= len(phases)
                print(f"{name}: killed in {', '.join(phases) or 'nothing'}", flush=True)
                if self._finish(name) and self._compare(name, "kills"):
                    self.counts.update(("kill", name, phase) for phase in phases)

    def fill_disks(self, disks: int) -> None:
        """Runs commands on disks that are too small, and again when there is room."""
        for name in COMMANDS:
            for _ in range(disks):
                with self._disk() as resize:
                    self._begin(name)
                    used = sum(p.stat().st_blocks * 512 for p in self._folder.rglob("*"))
                    resize(used + int(self._rng.uniform(0, 1.2) * self._sizes[name]))
                    process = self._start(name)
                    outcome = {DONE: "had room", REFUSED: "one line"}.get(process.wait(), "")
                    if not outcome:
                        self._fail(name, f"a full disk ended with {process.status}", process)
                    resize(4 * self._sizes[name] + 2**27)
                    if self._finish(name) and self._compare(name, "a full disk") and outcome:
                        self.counts["full disk", name, outcome] += 1

    @contextlib.contextmanager
    def _disk(self) -> Iterator[Callable[[int], None]]:
        """A file system in memory at the folder of the commands; yields what gives it a size."""
        mount = ["mount", "-t", "tmpfs", "-o", "size=1G", "tmpfs", str(self._folder)]
        self._folder.mkdir(parents=True, exist_ok=True)
        subprocess.run(mount, check=True)
        try:
            yield lambda size: _call("mount", "-o", f"remount,size={size}", str(self._folder))
        finally:
            subprocess.run(["umount", "--lazy", str(self._folder)], check=True)

    def start_pairs(self, pairs: int) -> None:
        """Starts each command twice at once."""
        for name in COMMANDS:
            for _ in range(pairs):
                self._begin(name)
                both = []
                for _ in range(2):
                    both.append(self._start(name))
                    time.sleep(self._rng.uniform(0, 0.3))
                statuses = sorted(process.wait() for process in both)
                if statuses not in ([DONE, DONE], [DONE, REFUSED]):
                    self._fail(name, f"two at once ended with {statuses}", *both)
                elif self._compare(name, "two at once"):
                    outcome = "one of them refused" if statuses[1] else "both done"
                    self.counts["two at once", name, outcome] += 1

    def _begin(self, name: str) -> None:
        """Puts into the empty folder what a command needs."""
        if self._folder.exists():
            for child in self._folder.iterdir():
                shutil.rmtree(child) if child.is_dir() else child.unlink()
        for part in COMMANDS[name].needs:
            left_out = shutil.ignore_patterns("report") if name == "evaluate" else None
            shutil.copytree(self._straight / part, self._folder / part, ignore=left_out)
        self._folder.mkdir(parents=True, exist_ok=True)

    def _start(self, name: str) -> Process:
        return Process(COMMANDS[name].start, self._folder, self._xla)

    def _finish(self, name: str) -> float:
        """Runs a command to its end; returns its processor time, 0 if it failed."""
        process = self._start(name)
        if process.wait() == DONE:
            return process.cpu_seconds
        self._fail(name, f"the last start ended with {process.status}", process)
        return 0.0

    def _compare(self, name: str, fault: str) -> bool:
        expected = self._expected[name]
        found = _digests(COMMANDS[name], self._folder, self._xla)
        names = {*expected, *found}
        different = sorted(key for key in names if expected.get(key) != found.get(key))
        # What nobody needs any more; the file of a lock stays.
        orphans = [str(p) for p in self._folder.rglob("*") if p.name.startswith("incomplete.")]
        if different:
            self._fail(name, f"after {fault}: {', '.join(different[:5])} differ")
        if orphans:
            self.counts["orphans", name, fault] += len(orphans)
        return not different

    def _fail(self, name: str, what: str, *processes: Process) -> None:
        messages = "; ".join(process.message[-1500:] for process in processes if process.message)
        self.failures.append(f"{name}: {what} {messages}")
        print(f"FAILED {self.failures[-1]}", flush=True)


def _call(*command: str) -> None:
    subprocess.run(command, check=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--kills", type=int, default=100, help="of all commands together")
    parser.add_argument("--disks", type=int, default=0, help="full disks of each command")
    parser.add_argument("--pairs", type=int, default=0, help="two starts at once of each command")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as root:
        faults = Faults(Path(root), options.seed)
        faults.run_straight()
        faults.kill(options.kills)
        faults.start_pairs(options.pairs)
        faults.fill_disks(options.disks)
    print("\n| fault | command | where, or how it ended | times, all with the same bits after |")
    print("|---|---|---|---:|")
    for key, count in sorted(faults.counts.items()):
        print(f"| {' | '.join(key)} | {count} |")
    print(f"\n{len(faults.failures)} failures, seed {options.seed}")
    return bool(faults.failures)


if __name__ == "__main__":
    sys.exit(main())
