"""Programs of this package as processes of their own, and `python main.py` on a tiny network."""

import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from multiprocessing.context import ForkServerContext
from pathlib import Path

from tests.helpers.deprecations import warn_of_logged_deprecations

ROOT = Path(__file__).parents[2]
CONFIG = "tests/configs/tiny.py"


def fork_context() -> ForkServerContext:
    """Processes of it are forks of one that has imported the package, which takes seconds."""
    context = multiprocessing.get_context("forkserver")
    # Not main.py, which defines flags; the imports that it leaves out until they are needed.
    imported = ["tests.experiments.killed_run", "densenet_flax.export"]
    context.set_forkserver_preload([*imported, "densenet_flax.evaluation.report.report"])
    return context


class Program:
    """`python WORDS` in a fork: all but the imports is as in a process that a user starts."""

    def __init__(self, *words, cwd=ROOT, env=None):
        self.args = [str(word) for word in words]
        self._folder = tempfile.TemporaryDirectory()
        arguments = (self.args, str(cwd), self._folder.name, env or {})
        self._process = fork_context().Process(target=_run_python, args=arguments)
        self._process.start()

    def wait(self, timeout=300) -> subprocess.CompletedProcess[str]:
        """Waits for the end, and kills the process where that is late."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            self._process.kill()
            self._process.join()
        out, err = (Path(self._folder.name, name).read_text() for name in ("stdout", "stderr"))
        self._folder.cleanup()
        return subprocess.CompletedProcess(self.args, self._process.exitcode, out, err)


def _run_python(words: list[str], cwd: str, folder: str, env: dict[str, str]) -> None:
    os.environ.update(env)
    warn_of_logged_deprecations()
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(f"{folder}/{name}", os.O_WRONLY | os.O_CREAT | os.O_APPEND), descriptor)
    # Else the program would start again to tune the host, by the command line of the fork's parent.
    os.environ.setdefault("GLIBC_TUNABLES", "")
    os.chdir(cwd)
    if words[0] == "-m":
        sys.argv = words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = words
        runpy.run_path(words[0], run_name="__main__")


def make_cache(folder: Path) -> Path:
    """A `cache_dir` for runs whose compiled programs are those of all tests."""
    shared = Path(os.environ["JAX_COMPILATION_CACHE_DIR"])
    shared.mkdir(parents=True, exist_ok=True)
    (folder / "xla").symlink_to(shared)
    return folder


def arguments_of(workdir, cache_dir, *more, config=CONFIG):
    flags = (f"--config={config}", f"--workdir={workdir}", f"--config.cache_dir={cache_dir}")
    return ["main.py", *flags, *more]


def run(workdir, cache_dir, *more, config=CONFIG):
    return Program(*arguments_of(workdir, cache_dir, *more, config=config)).wait()


def start(workdir, cache_dir, *more):
    """As a user starts it, without a fork; its log lines are on `stderr`."""
    words = [sys.executable, *arguments_of(workdir, cache_dir, *more)]
    return subprocess.Popen(words, cwd=ROOT, stderr=subprocess.PIPE, text=True)
