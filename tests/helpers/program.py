"""`python main.py` on the tiny configuration."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
CONFIG = "tests/configs/tiny.py"


def command(workdir, cache_dir, *arguments, config=CONFIG):
    return [
        sys.executable,
        "main.py",
        f"--config={config}",
        f"--workdir={workdir}",
        f"--config.cache_dir={cache_dir}",
        *arguments,
    ]


def start(workdir, cache_dir, *arguments):
    """The process; its log lines are on `stderr`."""
    words = command(workdir, cache_dir, *arguments)
    return subprocess.Popen(words, cwd=ROOT, stderr=subprocess.PIPE, text=True)


def run(workdir, cache_dir, *arguments, config=CONFIG):
    return run_words(command(workdir, cache_dir, *arguments, config=config))


def run_words(words):
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=300)
