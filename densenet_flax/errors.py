"""The one exception that is the user's to mend."""


class InputError(ValueError):
    """Bad input: a file, a key or a flag that the user can correct.

    The message is one line that names the culprit, says what was expected and what to do.
    `main.py` and the command line tools print it without a traceback and exit with status 1.
    """
