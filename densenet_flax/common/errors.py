"""What ends a program on purpose: input that the user can mend, and being asked to stop."""

import contextlib
from collections.abc import Iterator


class InputError(ValueError):
    """Bad input: a file, a key or a flag that the user can correct.

    The message is one line that names the culprit, says what was expected and what to do.
    `main.py` and the command line tools print it without a traceback and exit with status 1.
    """


@contextlib.contextmanager
def errors_in(subject: str) -> Iterator[None]:
    """Puts the key or the file that errors are about before the messages of ValueErrors."""
    try:
        yield
    except ValueError as error:
        raise InputError(f"{subject}{error}") from error


class Stopped(Exception):
    """The run was asked to stop, has written a checkpoint and can go on from it."""
