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
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

from tests.faults.commands import COMMANDS, Command, digests
from tests.faults.process import DONE, REFUSED, Process


class Faults:
    """What undisturbed commands leave, and the counts of what was tried."""

    def __init__(self, root: Path, seed: int, names: Sequence[str]):
        # All commands run in one folder, as some files state their path.
        self._names = names
        self._folder, self._straight, self._xla = root / "work", root / "straight", root / "xla"
        self._rng = random.Random(seed)
        self._expected: dict[str, dict[str, str]] = {}
        self._cpu_seconds: dict[str, float] = {}
        self._sizes: dict[str, int] = {}
        self.counts: Counter[tuple[str, ...]] = Counter()
        self.failures: list[str] = []

    def run_straight(self) -> None:
        """Runs each command undisturbed, twice: it has to leave the same both times."""
        needed = {"prepare", "train", *self._names}
        for name, command in ((n, c) for n, c in COMMANDS.items() if n in needed):
            self._begin(name)
            self._finish(name)
            self._expected[name] = self._digests(command)
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
        shares = sum(COMMANDS[name].share for name in self._names)
        for name in self._names:
            left = round(kills * COMMANDS[name].share / shares)
            while left > 0:
                self._begin(name)
                phases, is_done = [], False
                for _ in range(min(left, self._rng.randint(1, 6))):
                    process = self._start(name)
                    phase = process.kill_after(self._rng.uniform(0, self._cpu_seconds[name]))
                    if phase is None:  # it ended before
                        is_done = process.status == DONE
                        break
                    phases.append(phase)
                left -= len(phases)
                print(f"{name}: killed in {', '.join(phases) or 'nothing'}", flush=True)
                if (is_done or self._finish(name)) and self._compare(name, "kills"):
                    self.counts.update(("kill", name, phase) for phase in phases)

    def fill_disks(self, disks: int) -> None:
        """Runs commands on disks that are too small, and again when there is room."""
        for name in self._names:
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
                    # Where it had room, a second start is refused: the output is there.
                    is_done = outcome == "had room" or self._finish(name)
                    if is_done and self._compare(name, "a full disk") and outcome:
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
        for name in self._names:
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

    def _digests(self, command: Command) -> dict[str, str]:
        """What is in the folder, read by another process: this one must not start JAX's threads."""
        output = self._xla.parent / "digests.json"
        process = Process(
            lambda folder: output.write_text(json.dumps(digests(command, folder))),
            self._folder,
            self._xla,
        )
        return json.loads(output.read_text()) if process.wait() == DONE else {"": process.message}

    def _compare(self, name: str, fault: str) -> bool:
        expected = self._expected[name]
        results = self._digests(COMMANDS[name])
        names = {*expected, *results}
        different = sorted(key for key in names if expected.get(key) != results.get(key))
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
    parser.add_argument("--commands", default=",".join(COMMANDS), help="by default all")
    parser.add_argument("--kills", type=int, default=100, help="of all commands together")
    parser.add_argument("--disks", type=int, default=0, help="full disks of each command")
    parser.add_argument("--pairs", type=int, default=0, help="two starts at once of each command")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as root:
        faults = Faults(Path(root), options.seed, options.commands.split(","))
        with contextlib.suppress(KeyboardInterrupt):  # the table has what was tried until then
            faults.run_straight()
            faults.start_pairs(options.pairs)
            faults.kill(options.kills)
            faults.fill_disks(options.disks)
    print("\n| fault | command | where, or how it ended | times, all with the same bits after |")
    print("|---|---|---|---:|")
    for key, count in sorted(faults.counts.items()):
        print(f"| {' | '.join(key)} | {count} |")
    print(f"\n{len(faults.failures)} failures, seed {options.seed}")
    return bool(faults.failures)


if __name__ == "__main__":
    sys.exit(main())
