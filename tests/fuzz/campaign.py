"""Reads inputs in worker processes with limits, and counts what becomes of them.

A worker is a fork that reads thousands of inputs one after the other. Its address space is limited;
a timer of the operating system ends it where an input takes too much processor time, also inside of
a C library; and the parent ends it where it waits for ever. What ended a worker is known by the
number of the input, which is in shared memory before the input is read.
"""

import contextlib
import dataclasses
import importlib
import json
import mmap
import os
import pickle
import re
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from absl import logging

from densenet_flax.common.errors import InputError
from tests.fuzz.target import Files, Mutant, Target, make_mutant

CPU_SECONDS = 10.0  # for one input
WALL_SECONDS = 120.0
WALL_SECONDS_GUARDED = 900.0  # a reader with a child process has its own, shorter limits
MEMORY = 2 * 2**30  # bytes of address space beyond those of the program
MAX_MESSAGE = 1500

ACCEPTED, REFUSED = "accepted", "refused"
TRACEBACK, HANG, SIGNAL, MEMORY_FAULT = "traceback", "hang", "signal", "memory"
WRONG = "wrong acceptance"
FAULTS = (TRACEBACK, HANG, SIGNAL, MEMORY_FAULT, WRONG)

_KEPT_PER_FAULT = 3
# In shared memory: the next number, whether it is being read, accepted, refused, peak in kB.
_PROGRESS = struct.Struct("q q q q q")
_MEMORY_DISK = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


@dataclasses.dataclass(frozen=True)
class Fault:
    """An input that was not read as it should be."""

    target: str
    number: int
    outcome: str
    detail: str

    @property
    def signature(self) -> str:
        """Equal for what is probably one fault of the package: numbers and quotes left out."""
        last = self.detail.splitlines()[-1] if self.detail else ""
        general = re.sub(r"[0-9]+|['\"].*", "", last)[:80]
        return f"{self.target} {self.outcome} {general}"


@dataclasses.dataclass
class Counts:
    """What became of the inputs of one target."""

    outcomes: Counter[str] = dataclasses.field(default_factory=Counter)
    seconds: float = 0.0
    peak_mb: float = 0.0

    def add(self, other: "Counts") -> None:
        self.outcomes += other.outcomes
        self.seconds += other.seconds
        self.peak_mb = max(self.peak_mb, other.peak_mb)

    @property
    def inputs(self) -> int:
        return self.outcomes.total()


@dataclasses.dataclass(frozen=True)
class Limit:
    """When a worker ends."""

    numbers: range
    seconds: float = float("inf")


def make_samples(target: Target) -> dict[str, Files]:
    """The undamaged samples, written in a process of its own: it may start threads."""
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            os.close(reader)
            with tempfile.TemporaryDirectory() as folder, open(writer, "wb") as pipe:
                target.make(Path(folder))
                pickle.dump(_read_samples(Path(folder)), pipe)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    os.close(writer)
    with open(reader, "rb") as pipe:
        content = pipe.read()
    if os.waitpid(pid, 0)[1]:
        raise RuntimeError(f"{target.name}: its samples could not be made")
    return pickle.loads(content)


def _read_samples(folder: Path) -> dict[str, Files]:
    samples: dict[str, dict[str, bytes]] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            name, *parts = path.relative_to(folder).parts
            samples.setdefault(name, {})["/".join(parts) or name] = path.read_bytes()
    return samples


def run_target(
    target: Target, samples: Mapping[str, Files], seed: int, limit: Limit
) -> tuple[Counts, list[Fault], int]:
    """Reads inputs until the limit; also returns the number of the next one."""
    counts, faults, start = Counts(), [], time.monotonic()
    number = limit.numbers.start
    while number < limit.numbers.stop and time.monotonic() - start < limit.seconds:
        left = Limit(range(number, limit.numbers.stop), limit.seconds - time.monotonic() + start)
        some, some_faults, number = _run_worker(target, samples, seed, left, guarded=False)
        counts.add(some)
        faults += some_faults
    if target.unguarded:
        suspects, faults = faults, []
        for suspect in suspects:
            one = Limit(range(suspect.number, suspect.number + 1))
            some, confirmed, _ = _run_worker(target, samples, seed, one, guarded=True)
            counts.add(some)
            counts.outcomes[suspect.outcome] -= 1
            faults += confirmed
    counts.seconds = time.monotonic() - start
    return counts, faults, number


def _run_worker(
    target: Target, samples: Mapping[str, Files], seed: int, limit: Limit, *, guarded: bool
) -> tuple[Counts, list[Fault], int]:
    shared = mmap.mmap(-1, mmap.PAGESIZE)
    _PROGRESS.pack_into(shared, 0, limit.numbers.start, 0, 0, 0, 0)
    # Of the parent, as a worker that is ended leaves its files behind.
    with tempfile.TemporaryDirectory(dir=_MEMORY_DISK) as folder:
        record = Path(folder, "record")
        record.touch()
        pid = os.fork()
        if not pid:
            try:
                _Worker(target, samples, seed, shared, Path(folder), guarded).run(limit)
                os._exit(0)
            except BaseException:
                record.write_text(traceback.format_exc())
                os._exit(1)
        status = _wait(pid, shared, WALL_SECONDS_GUARDED if guarded else WALL_SECONDS)
        text = record.read_text()
    number, is_reading, accepted, refused, peak = _PROGRESS.unpack_from(shared)
    if status and not is_reading:
        raise RuntimeError(f"{target.name}: the worker failed outside of an input:\n{text}")
    counts = Counts(Counter({ACCEPTED: accepted, REFUSED: refused}), peak_mb=peak / 1024)
    if status > 0:  # what ends a program and is no `Exception`
        faults = [Fault(target.name, number, TRACEBACK, text[-1500:])]
    else:
        faults = [Fault(target.name, *json.loads(line)) for line in text.splitlines()]
    if status < 0:
        outcome = HANG if -status in (signal.SIGPROF, signal.SIGKILL) else SIGNAL
        faults.append(Fault(target.name, number, outcome, signal.Signals(-status).name))
    counts.outcomes += Counter(fault.outcome for fault in faults)
    return counts, faults, number + bool(status)


def _wait(pid: int, shared: mmap.mmap, wall_seconds: float) -> int:
    """Waits for a worker; kills it if it is at one input for too long. Returns its exit code."""
    seen, since = None, time.monotonic()
    try:
        while True:
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                return os.waitstatus_to_exitcode(status)
            number = _PROGRESS.unpack_from(shared)[0]
            if number != seen:
                seen, since = number, time.monotonic()
            elif time.monotonic() - since > wall_seconds:
                os.kill(pid, signal.SIGKILL)
            time.sleep(0.02)
    except KeyboardInterrupt:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise


class _Worker:
    """What a worker process does."""

    def __init__(
        self,
        target: Target,
        samples: Mapping[str, Files],
        seed: int,
        shared: mmap.mmap,
        folder: Path,
        guarded: bool,
    ):
        self._target, self._samples, self._seed, self._shared = target, samples, seed, shared
        self._folder, self._guarded = folder, guarded
        self._accepted = self._refused = self._peak = 0

    def run(self, limit: Limit) -> None:
        self._be_silent()
        root = self._folder / "samples"
        with contextlib.ExitStack() as stack:
            if self._target.unguarded and not self._guarded:
                stack.enter_context(self._target.unguarded())
            record = stack.enter_context(open(self._folder / "record", "a"))
            written = {name: self._read(root, name, files) for name, files in self._samples.items()}
            self._set_limits()
            start, number = time.monotonic(), limit.numbers.start
            while number < limit.numbers.stop and time.monotonic() - start < limit.seconds:
                mutant = make_mutant(self._target, self._samples, self._seed, number)
                self._report(number, is_reading=True)
                signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
                fault = self._try(root, mutant, written[mutant.sample])
                signal.setitimer(signal.ITIMER_PROF, 0)
                if fault:
                    record.write(json.dumps([number, *fault]) + "\n")
                    record.flush()
                number += 1
                self._report(number, is_reading=False)

    def _be_silent(self) -> None:
        """What libraries print of damaged files is much; Ctrl-C is for the parent."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        warnings.simplefilter("ignore")
        logging.set_verbosity(logging.FATAL)
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, 1)
        os.dup2(nothing, 2)

    def _read(self, root: Path, name: str, files: Files) -> Any:
        """Reads the undamaged sample, which has to be accepted."""
        write_files(root / name, files)
        return self._target.read(root / name)

    def _set_limits(self) -> None:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

    def _report(self, number: int, *, is_reading: bool) -> None:
        if not number % 64:  # it takes as long as some of the readers
            self._peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        progress = number, is_reading, self._accepted, self._refused, self._peak
        _PROGRESS.pack_into(self._shared, 0, *progress)

    def _try(self, root: Path, mutant: Mutant, written: Any) -> tuple[str, str] | None:
        """Reads an input; returns the outcome and its detail if that is a fault."""
        target, folder = self._target, root / mutant.sample
        if target.starts_anew:
            shutil.rmtree(folder, ignore_errors=True)
        write_files(folder, {**self._samples[mutant.sample], mutant.path: mutant.data})
        try:
            read = target.read(folder)
        except InputError as error:
            fault = _message_fault(error, folder)
            self._refused += not fault
            return fault
        except MemoryError:
            return MEMORY_FAULT, traceback.format_exc()[-1500:]
        except Exception:
            return TRACEBACK, traceback.format_exc()[-1500:]
        fault = target.accepts(written, read)
        if not fault and mutant.mutator in target.exact:
            fault = target.matches(written, read)
        self._accepted += not fault
        return (WRONG, f"{mutant.mutator.__name__}: {fault}") if fault else None


def _message_fault(error: InputError, folder: Path) -> tuple[str, str] | None:
    """What is wrong with a refusal, which should be a line that names the file."""
    message, cause = str(error), error.__cause__
    while cause is not None:
        if isinstance(cause, MemoryError):
            return MEMORY_FAULT, message[:300]
        cause = cause.__cause__
    if len(message.splitlines()) != 1 or len(message) > MAX_MESSAGE:
        return TRACEBACK, f"a message of {len(message)} characters: {message[:300]!r}"
    if str(folder) not in message:
        return TRACEBACK, f"a message without the file: {message}"
    return None


def write_files(folder: Path, files: Files) -> None:
    """Writes the files of a sample into a folder."""
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        # A new file: the old one may still be mapped.
        path.unlink(missing_ok=True)
        path.write_bytes(data)


def save_finding(
    folder: Path, target: Target, samples: Mapping[str, Files], seed: int, fault: Fault
) -> Path:
    """Writes the input and what became of it into a folder of its own."""
    mutant = make_mutant(target, samples, seed, fault.number)
    finding = folder / f"{target.name.replace('/', '-')}-{seed}-{fault.number}"
    finding.mkdir(parents=True, exist_ok=True)
    (finding / Path(mutant.path).name).write_bytes(mutant.data)
    record = {
        **dataclasses.asdict(fault),
        "seed": seed,
        "sample": mutant.sample,
        "path": mutant.path,
        "mutator": mutant.mutator.__name__,
        "replay": f"python -m tests.fuzz --replay={finding}",
    }
    (finding / "finding.json").write_text(json.dumps(record, indent=1) + "\n")
    return finding


class Campaign:
    """The counts and findings of several targets."""

    def __init__(self, targets: Mapping[str, Target], seed: int, findings: Path | None):
        self.targets, self._seed, self._findings = targets, seed, findings
        self.samples: dict[str, dict[str, Files]] = {}
        self.counts = {name: Counts() for name in targets}
        self.faults: list[Fault] = []
        self._next = dict.fromkeys(targets, 0)
        self._signatures: Counter[str] = Counter()

    def run(self, name: str, inputs: int | None = None, seconds: float = float("inf")) -> None:
        """Reads so many more inputs of a target, or for so many seconds."""
        target = self.targets[name]
        if name not in self.samples:
            try:
                for module in target.imports:
                    importlib.import_module(module)
            except ImportError as error:
                print(f"{name}: left out ({error})", file=sys.stderr)
                return
            self.samples[name] = make_samples(target)
        first = self._next[name]
        limit = Limit(range(first, first + (inputs or 10**12)), seconds)
        counts, faults, self._next[name] = run_target(target, self.samples[name], self._seed, limit)
        self.counts[name].add(counts)
        for fault in faults:
            self.faults.append(fault)
            self._signatures[fault.signature] += 1
            if self._findings and self._signatures[fault.signature] <= _KEPT_PER_FAULT:
                path = save_finding(self._findings, target, self.samples[name], self._seed, fault)
                last = fault.detail.splitlines()[-1] if fault.detail else ""
                print(f"{fault.outcome}: {path} ({last[:200]})", file=sys.stderr, flush=True)

    def table(self, key: Callable[[Target], str] = lambda target: target.kind) -> str:
        """The counts as a Markdown table, a row for each kind of target."""
        rows: dict[str, Counts] = {}
        for name, counts in self.counts.items():
            for row in (key(self.targets[name]), "all"):
                rows.setdefault(row, Counts()).add(counts)
        rows["all"] = rows.pop("all")
        columns = ("inputs", ACCEPTED, REFUSED, *FAULTS, "peak MB", "inputs/s")
        lines = [f"| | {' | '.join(columns)} |", f"|---{'|---:' * len(columns)}|"]
        for name, counts in rows.items():
            numbers = [counts.outcomes[outcome] for outcome in (ACCEPTED, REFUSED, *FAULTS)]
            cells = [f"{number:,}" for number in (counts.inputs, *numbers)]
            speed = counts.inputs / counts.seconds if counts.seconds else 0.0
            lines.append(f"| {name} | {' | '.join(cells)} | {counts.peak_mb:,.0f} | {speed:,.0f} |")
        return "\n".join(lines)
