"""Exceptions for expected exits: input that the user can correct, and a request to stop."""

import contextlib
from collections.abc import Iterator


class InputError(ValueError):
    """Bad input: a file, a key or a flag that the user can correct.

    The message is one line that names the file, key or flag, what was expected and what to do.
    `main.py` and the command-line tools print it without a traceback and exit with status 1.
    """


@contextlib.contextmanager
def errors_in(subject: str) -> Iterator[None]:
    """Prefixes the messages of ValueErrors with the key or file that they are about."""
    try:
        yield
    except ValueError as error:
        raise InputError(f"{subject}{error}") from error


def one_line(message: object) -> str:
    """A message for a terminal: on one line, with control characters of names escaped."""
    text = " ".join(str(message).split())
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class Stopped(Exception):
    """The run was asked to stop, and has written a checkpoint from which it can resume."""
