"""Shared by the benchmarks and their peers. Imports no JAX at the top: a peer may lack it."""

import argparse
import importlib.metadata
import itertools
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent


class PeerError(Exception):
    """A peer ended without a result."""


def peer_parser(doc: str | None, peers: str) -> argparse.ArgumentParser:
    """Returns a parser with the options for the peers (by default these) and their interpreters."""
    parser = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    parser.add_argument(
        "--python", action="append", default=[], metavar="[PEER=]PATH", help="interpreter of a peer"
    )
    parser.add_argument(
        "--peers", default=peers, help="to run, in this order; peer or peer:precision (%(default)s)"
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
    """Runs `benchmarks/peers/<module>.py` in a separate process.

    Args:
      module: its name.
      options: passed as JSON, with `spawned`, the Unix time of the start.
      python: the interpreter; by default the current one.
      env: changes to the environment.
      progress: a label for the line on standard error that reports its end.

    Returns:
      The JSON object in the last line that the peer prints, and `process_seconds`, from start to
      exit.

    Raises:
      PeerError: it failed; the message has the end of its output.
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
    """Returns the options that `run_peer` passed to this process."""
    return json.loads(sys.argv[1])


def answer(result: Mapping[str, Any], libraries: Iterable[str]) -> None:
    """Prints a peer's result, with the versions of its libraries and its peak memory."""
    versions = {name: importlib.metadata.version(name) for name in libraries}
    print(json.dumps({"host_peak_gb": host_peak_gb(), **result, "versions": versions}), flush=True)


def host_peak_gb() -> float:
    """Returns the peak resident memory of this process in GB (1e9 bytes).

    On Linux `ru_maxrss` of a child includes the peak of its parent before the exec, so the
    kernel's high-water mark of this program is read instead.
    """
    try:
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024 / 1e9
    except (OSError, IndexError):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak * (1 if sys.platform == "darwin" else 1024) / 1e9


def interpreters(pairs: Sequence[str]) -> dict[str, str]:
    """Parses `['torch=/venv/bin/python']` into a mapping; '' is for all peers without a name."""
    paths = {}
    for pair in pairs:
        name, _, path = pair.rpartition("=")
        paths[name] = path
    return paths


def median(values: Iterable[float]) -> float:
    """Returns the median; NaN if there are no values."""
    values = list(values)
    return statistics.median(values) if values else float("nan")


def markdown(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Returns a Markdown table."""
    return "\n".join(markdown_lines(columns, rows))


def markdown_lines(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> Iterator[str]:
    """Yields the lines of a Markdown table, each as soon as its row is there."""
    for line in itertools.chain([columns, ["---"] * len(columns)], rows):
        yield "| " + " | ".join(str(cell) for cell in line) + " |"


def random_batch(model: Any, cut: str, n: int, pixels: int, mesh: Any) -> Any:
    """Puts on the devices what a step from `cut` of our network takes: images or features."""
    import numpy as np

    from densenet_flax.common.sharding import put_batch

    rng, shape = np.random.default_rng(0), (n, pixels, pixels, 3)
    if cut == "stem":
        x = rng.integers(0, 256, shape, np.uint8)
    else:
        x = np.abs(rng.normal(size=model.input_shape(cut, shape))).astype(np.dtype(model.dtype))
    label, ones = np.arange(n, dtype=np.int32) % 2, np.ones(n, np.float32)
    read = lambda rows: {"inputs": x[rows], "label": label[rows]}  # noqa: E731
    return put_batch(np.arange(n), ones, read, mesh)


def describe_versions(runs: Iterable[Mapping[str, Any]]) -> str:
    """Returns one line with the versions of Python and libraries of these runs."""
    versions: dict[str, str] = {}
    for run in runs:
        versions |= run["versions"]
    python = sys.version.split()[0]
    listed = ", ".join(f"{name} {version}" for name, version in sorted(versions.items()))
    return f"Python {python}, {listed}; {os.cpu_count()} CPU cores; {time.strftime('%Y-%m-%d')}"
