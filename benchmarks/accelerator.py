"""Figures of one accelerator, as Markdown: parity, speed, memory, a profile, and the peers.

    bash benchmarks/accelerator.sh --peers=torch,keras > figures.md

Runs on a GPU, a TPU or a CPU; `--small` takes a tiny network and seconds. Each section is a process
with a time of its own: what it has printed counts, and where it fails or is too slow, one line says
so and the next section runs. The whole ends within `--minutes`.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.common import ROOT

# Title and share of the time, in the order of importance. A section may use what earlier ones left.
SECTIONS = {
    "device": ("Device and versions", 0.04),
    "parity": ("Parity with the CPU backend", 0.16),
    "forward": ("Forward pass", 0.16),
    "step": ("Training step", 0.24),
    "profile": ("Profile of the step", 0.1),
    "peers": ("Forward pass from host to host, and the peers", 0.15),
    "recipe": ("The recipe on 2,000 images", 0.15),
}
GOALS = (
    "Goals, in bfloat16 on an H100: a forward pass over 6,000 images/s and at least 1.5 times timm "
    "with torch.compile; training of the whole network over 1,200 images/s; the recipe at least 3 "
    "times as fast as PyTorch's."
)


def run_section(
    title: str, command: Sequence[str], seconds: float, env: Mapping[str, str] | None = None
) -> bool:
    """Runs a command that prints Markdown, passes its lines on, and ends it after its time.

    Returns:
      Whether it ended well; else its last line says what happened.
    """
    print(f"\n## {title}\n", flush=True)
    with tempfile.TemporaryFile("w+") as errors:
        # A group of its own, so that the processes that it started end with it.
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            cwd=ROOT,
            env={**os.environ, **(env or {})},
            start_new_session=True,
        )
        late = threading.Event()

        def end() -> None:
            late.set()
            os.killpg(process.pid, signal.SIGKILL)

        timer = threading.Timer(max(seconds, 0.1), end)
        timer.start()
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
        code = process.wait()
        timer.cancel()
        if late.is_set():
            print(f"\n*{title}: stopped after its {seconds:.0f} s.*", flush=True)
        elif code:
            errors.seek(0)
            lines = errors.read().strip().splitlines() or [f"exit status {code}"]
            print(f"\n*{title}: failed: {lines[-1][:300]}*", flush=True)
    return not code


def option_parser(doc: str | None) -> argparse.ArgumentParser:
    """Returns a parser of the options, which the sections are given, too."""
    parser = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    add = parser.add_argument
    add("--small", action="store_true", help="a tiny network and few images, for a CPU")
    add("--minutes", type=float, default=8, help="for everything (%(default)s)")
    add("--sections", default=",".join(SECTIONS), help="(%(default)s)")
    add("--peers", default="", help="torch and keras, where they are installed")
    add("--torch-python", default=sys.executable, help="interpreter with torch and timm")
    add("--keras-python", default=sys.executable, help="interpreter with Keras and JAX")
    add("--trace", type=Path, default=ROOT / "runs" / "trace", help="keeps the profile")
    return parser


def main() -> None:
    """Runs all sections."""
    parser = option_parser(__doc__)
    args = parser.parse_args()
    names = args.sections.split(",")
    if unknown := set(names) - set(SECTIONS):
        parser.error(f"--sections: {', '.join(unknown)}; expected some of {', '.join(SECTIONS)}")
    deadline = time.monotonic() + 60 * args.minutes
    print(f"# Figures of one accelerator, {time.strftime('%Y-%m-%d')}\n\n{GOALS}", flush=True)
    failed = []
    with tempfile.TemporaryDirectory() as cache:
        # Programs that several sections run are compiled once.
        env = {"JAX_COMPILATION_CACHE_DIR": os.environ.get("JAX_COMPILATION_CACHE_DIR", cache)}
        for number, name in enumerate(names):
            title, _ = SECTIONS[name]
            left = deadline - time.monotonic()
            share = SECTIONS[name][1] / sum(SECTIONS[later][1] for later in names[number:])
            module = "benchmarks.accelerator_sections"
            command = [sys.executable, "-m", module, name, *sys.argv[1:]]
            if not run_section(title, command, share * left, env):
                failed.append(name)
    if failed:
        sys.exit(f"without all figures: {', '.join(failed)}")


if __name__ == "__main__":
    main()
