"""What the benchmarks and their peers share. Peers may lack JAX, so this needs NumPy alone."""

import argparse
import importlib.metadata
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent


class PeerError(Exception):
    """A peer ended without a result."""


def peer_parser(doc: str | None, peers: str) -> argparse.ArgumentParser:
    """A parser that takes which peers to run, by default these, and with which interpreters."""
    parser = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    parser.add_argument(
        "--python", action="append", default=[], metavar="[PEER=]PATH", help="interpreter of a peer"
    )
    parser.add_argument(
        "--peers", default=peers, help="in their order; peer or peer:precision (%(default)s)"
    )
    return parser


def run_peer(
    module: str,
    options: Mapping[str, Any],
    *,
    python: str = "",
    env: Mapping[str, str] | None = None,
    progress: str = "",
) -> dict[str, Any]:
    """Runs `benchmarks/peers/<module>.py` in a process of its own.

    Args:
      module: its name.
      options: handed over as JSON; the peer also finds `spawned`, the Unix time of its start.
      python: the interpreter; by default the one that runs.
      env: changes to the environment.
      progress: of the line that tells on standard error that it is done.

    Returns:
      What the peer prints as its last line, and `process_seconds`, from start to exit.

    Raises:
      PeerError: it failed; with the end of what it printed.
    """
    started = time.time()
    text = json.dumps({**options, "spawned": started})
    done = subprocess.run(
        [python or sys.executable, "-m", f"benchmarks.peers.{module}", text],
        cwd=ROOT,
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
    )
    ended = time.time()
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        raise PeerError(f"{module} {text} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    print(f"{module} {progress}: {ended - started:.0f} s", file=sys.stderr, flush=True)
    return {"process_seconds": ended - started, **json.loads(lines[-1])}


def peer_options() -> dict[str, Any]:
    """What `run_peer` hands over."""
    return json.loads(sys.argv[1])


def answer(result: Mapping[str, Any], libraries: Iterable[str]) -> None:
    """Prints a peer's result, with the versions of its libraries and its peak of memory."""
    versions = {name: importlib.metadata.version(name) for name in libraries}
    print(json.dumps({"host_peak_gb": host_peak_gb(), **result, "versions": versions}), flush=True)


def host_peak_gb() -> float:
    """Peak resident memory of this process, 1e9 bytes.

    Linux counts the parent's peak into `ru_maxrss` of a child, so there the kernel's own high-water
    mark of this program is read.
    """
    try:
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024 / 1e9
    except (OSError, IndexError):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak * (1 if sys.platform == "darwin" else 1024) / 1e9


def interpreters(pairs: Sequence[str]) -> dict[str, str]:
    """`['torch=/venv/bin/python']` as a mapping; a pair without a name is for all peers."""
    paths = {}
    for pair in pairs:
        name, _, path = pair.rpartition("=")
        paths[name] = path
    return paths


def median(values: Iterable[float]) -> float:
    """The median, NaN of nothing."""
    values = list(values)
    return statistics.median(values) if values else float("nan")


def markdown(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def describe_versions(runs: Iterable[Mapping[str, Any]]) -> str:
    """One line: the versions that the runs were made with."""
    versions: dict[str, str] = {}
    for run in runs:
        versions |= run["versions"]
    python = sys.version.split()[0]
    listed = ", ".join(f"{name} {version}" for name, version in sorted(versions.items()))
    return f"Python {python}, {listed}; {os.cpu_count()} CPU cores; {time.strftime('%Y-%m-%d')}"
