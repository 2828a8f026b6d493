"""What a user sees while a run works: lines and progress bars, at a terminal or in a notebook."""

import contextlib
import copy
import logging as python_logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from absl import logging
from tqdm import tqdm

from densenet_flax.common.errors import printable

_PACKAGE = str(Path(__file__).parents[1])

_quiet = False


def in_notebook() -> bool:
    """Whether output goes below a cell of a notebook."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and hasattr(ipython.get_ipython(), "kernel")


def progress_bar(total: int | None, desc: str, unit: str = "img", **options: Any) -> tqdm:
    """A bar at a terminal and in a notebook; none in a log file, nor within `quiet`.

    In a notebook it is text, too, which needs no extension, is redrawn once a second, as each state
    may be kept in the file, and leaves with its end.
    """
    notebook = in_notebook()
    looks = {"leave": False, "mininterval": 1.0} if notebook else {}
    disable = True if _quiet else (False if notebook else None)  # None: if it is no terminal
    return tqdm(
        desc=desc,
        total=total,
        unit=unit,
        file=_stream(),
        dynamic_ncols=True,
        disable=disable,
        **{**looks, **options},
    )


@contextlib.contextmanager
def shown(verbose: bool) -> Iterator[None]:
    """Shows what this package logs, or neither that nor bars.

    For functions that a user calls in Python, where absl's messages are hidden.
    """
    global _quiet
    logger, verbosity, before = logging.get_absl_logger(), logging.get_verbosity(), _quiet
    handler = python_logging.StreamHandler(_stream())
    show_package(handler)
    propagate, level = logger.propagate, logger.level
    try:
        if verbose:
            logger.addHandler(handler)
            logger.propagate = False  # to a handler that would show the lines again
        logging.set_verbosity(logging.INFO if verbose else logging.ERROR)
        _quiet = not verbose
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate, _quiet = propagate, before
        logging.set_verbosity(verbosity)
        logger.setLevel(level)  # which it sets, too, where the program's own settings counted


def show_package(handler: python_logging.Handler) -> None:
    """Lets a handler show this package's messages without prefix, and warnings of libraries."""
    handler.setFormatter(_Formatter("%(message)s"))
    handler.addFilter(
        lambda record: (
            record.pathname.startswith(_PACKAGE) or record.levelno >= python_logging.WARNING
        )
    )


class _Formatter(python_logging.Formatter):
    """Keeps each message of this package on one line, whatever names are in it."""

    def format(self, record: python_logging.LogRecord) -> str:
        if record.pathname.startswith(_PACKAGE):
            record = copy.copy(record)
            record.msg, record.args = printable(record.getMessage()), None
        return super().format(record)


def _stream() -> TextIO:
    """Where lines and bars go: notebooks color what is written to stderr as an error."""
    return sys.stdout if in_notebook() else sys.stderr
