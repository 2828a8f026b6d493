"""Exceptions for expected exits: input that the user can correct, and a request to stop."""

import contextlib
from collections.abc import Iterator

# Of a message: what begins it names the file, and what ends it says what to do.
_MAX_BEGINNING, _MAX_END = 800, 300


class InputError(ValueError):
    """Bad input: a file, a key or a flag that the user can correct.

    The message is one line that names the file, key or flag, what was expected and what to do.
    `main.py` and the command-line tools print it without a traceback and exit with status 1.
    """

    def __init__(self, message: object):
        """Takes a message that may quote anything: a name with a newline, a page of a file."""
        text = one_line(message)
        if len(text) > _MAX_BEGINNING + _MAX_END:
            text = f"{text[:_MAX_BEGINNING]} … {text[-_MAX_END:]}"
        super().__init__(text)


class WriteError(InputError):
    """A file cannot be written: a full disk, say, which ends a job, however many inputs it has."""


@contextlib.contextmanager
def errors_in(subject: str) -> Iterator[None]:
    """Prefixes the messages of ValueErrors with the key or file that they are about."""
    try:
        yield
    except ValueError as error:
        raise InputError(f"{subject}{error}") from error


@contextlib.contextmanager
def path_errors() -> Iterator[None]:
    """Makes an `InputError` of a path that cannot even be looked up, for a whole program.

    The folder above it may be closed to this user, or a name too long.
    """
    try:
        yield
    except OSError as error:
        if error.filename is None:  # it is about no path
            raise
        raise InputError(
            f"{error.filename}: {error.strerror}; check this path and its permissions"
        ) from error
    except RuntimeError as error:
        if "home directory" not in str(error):  # of `Path.expanduser`
            raise
        raise InputError(
            "a path begins with '~' and no user's name; write the folder in full"
        ) from error


def one_line(message: object) -> str:
    """A message for a terminal: on one line, with control characters of names escaped."""
    # Two spaces in a name stay: names that differ in them alone have to be told apart.
    return printable(" ".join(line.strip() for line in str(message).splitlines() if line.strip()))


def printable(text: object) -> str:
    """A text as a terminal can show it: new lines and control characters in it are escaped.

    Those of names could move the cursor, color what follows, or turn the order of letters.
    """
    text = str(text)
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class Stopped(Exception):
    """The run was asked to stop, and has written a checkpoint from which it can resume."""
