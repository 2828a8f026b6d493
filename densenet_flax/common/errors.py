"""What ends a program on purpose: input that the user can mend, and being asked to stop."""


class InputError(ValueError):
    """Bad input: a file, a key or a flag that the user can correct.

    The message is one line that names the culprit, says what was expected and what to do.
    `main.py` and the command line tools print it without a traceback and exit with status 1.
    """


class Stopped(Exception):
    """The run was asked to stop, has written a checkpoint and can go on from it."""
