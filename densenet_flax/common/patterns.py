r"""Regular expressions of users and of weight files, which find classes and patients in paths.

Some never end: `(a+)+$` takes centuries on a name of 60 letters. `re` looks for signals while it
searches, so a timer ends it, and patterns mean what they always meant. Weighed against that:
google-re2 takes linear time, but `\w` and `\d` are ASCII there and look-around is missing, so that
runs would find other patients or none; `regex` has a time limit, but allocates what `a{4000000000}`
says when it compiles it.
"""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from types import FrameType

from densenet_flax.common.errors import InputError

# Of a pattern: far beyond any real one. One of megabytes would take long to compile.
MAX_LENGTH = 1000
# Processor time of a search through many paths, a hundred times what common patterns take.
_SECONDS, _SECONDS_PER_PATH = 2.0, 1e-3
_INTERVAL = 0.05  # seconds between two looks at the time


def pattern_fault(pattern: str) -> str:
    """Returns why a text cannot be used as a pattern; '' if it can."""
    if len(pattern) > MAX_LENGTH:
        return f"it has {len(pattern)} characters, at most {MAX_LENGTH} are read"
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        return str(error) or type(error).__name__
    return ""


def first_matches(pattern: str, paths: Sequence[str], key: str) -> list[str]:
    r"""Returns the first group of the first match in each path, or the whole match; '' if none.

    Where a path has no match it is searched with '/' in front, so that a pattern such as `/(\w+)_`
    also finds a name that no folder is above.

    Args:
      pattern: a regular expression.
      paths: of files.
      key: what messages call the pattern.

    Raises:
      InputError: the search takes too long.
    """
    if threading.current_thread() is not threading.main_thread():
        return _in_another_process(pattern, paths, key)
    limit = _SECONDS + _SECONDS_PER_PATH * len(paths)
    search = re.compile(pattern).search
    matches = []
    path = ""
    try:
        with _processor_time(limit):
            for path in paths:
                match = search(path) or search(f"/{path}")
                matches.append((match[min(1, match.re.groups)] or "") if match else "")
    except _TimeIsUpError:
        raise InputError(
            f"{key}={pattern!r}: takes too long, such as on {path}; repeat nothing that repeats "
            "itself"
        ) from None
    return matches


def _in_another_process(pattern: str, paths: Sequence[str], key: str) -> list[str]:
    """As `first_matches`, in the main thread of a new process: other threads get no signals."""
    done = subprocess.run(
        [sys.executable, "-c", f"from {__name__} import _answer; _answer()"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p or os.getcwd() for p in sys.path)},
        input=json.dumps([pattern, list(paths), key]).encode(),
        stdout=subprocess.PIPE,
        check=True,
    )
    matches, error = json.loads(done.stdout)
    if error:
        raise InputError(error)
    return matches


def _answer() -> None:
    """Searches for what standard input has, and prints the matches and the error."""
    try:
        answer = [first_matches(*json.load(sys.stdin)), ""]
    except InputError as error:
        answer = [[], str(error)]
    print(json.dumps(answer))


class _TimeIsUpError(Exception):
    """A block took its time."""


@contextlib.contextmanager
def _processor_time(seconds: float) -> Iterator[None]:
    """Raises `_TimeIsUpError` in a block of the main thread that takes more processor time."""
    end = time.thread_time() + seconds

    def check(number: int, frame: FrameType | None) -> None:
        # The timer counts other threads, too.
        if time.thread_time() > end:
            raise _TimeIsUpError

    previous = signal.signal(signal.SIGVTALRM, check)
    signal.setitimer(signal.ITIMER_VIRTUAL, _INTERVAL, _INTERVAL)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, previous)
