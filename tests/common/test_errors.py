"""Messages to users, whatever they quote."""

import io
import logging
import pickle

import pytest
from absl import logging as absl_logging

from densenet_flax.common import console
from densenet_flax.common.console import show_package
from densenet_flax.common.errors import InputError, errors_in


def test_a_message_is_one_line_of_bounded_length():
    assert str(InputError("a\nb \x1b[2J \udcff.png: wrong")) == "a b \\x1b[2J \\udcff.png: wrong"
    long = str(InputError(f"m.json: {'x' * 10**6}; get it again"))
    assert len(long) < 1200 and long.startswith("m.json: x") and long.endswith("x; get it again")


def test_a_message_survives_another_process_and_a_prefix():
    error = InputError("a\nb\\n")
    assert str(pickle.loads(pickle.dumps(error))) == str(error) == "a b\\n"
    try:
        with errors_in("x.json: "):
            raise error
    except InputError as prefixed:
        assert str(prefixed) == "x.json: a b\\n"


def test_what_is_logged_is_one_line_whatever_names_are_in_it():
    """Line ends, colors and changes of direction in names are shown and not done."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    show_package(handler)
    for path in (console.__file__, "/site-packages/jax/x.py"):
        arguments = ("skipped: %s, %d\n%%", ("a\nb\x1b[2J\u202egnp.exe", 3), None)
        handler.handle(logging.LogRecord("absl", logging.WARNING, path, 1, *arguments))
    ours, *theirs = stream.getvalue().splitlines()
    assert ours == r"skipped: a\nb\x1b[2J\u202egnp.exe, 3\n%"
    assert theirs[0] == "skipped: a"


@pytest.mark.parametrize("level", [logging.NOTSET, logging.ERROR])
def test_what_is_shown_leaves_the_logging_of_a_program_as_it_was(level):
    logger = absl_logging.get_absl_logger()
    before = logger.level, list(logger.handlers), logger.propagate
    logger.setLevel(level)
    try:
        with console.shown(verbose=True):
            assert logger.isEnabledFor(logging.INFO)
        with console.shown(verbose=False):
            assert not logger.isEnabledFor(logging.WARNING) and logger.isEnabledFor(logging.ERROR)
        assert (logger.level, logger.handlers, logger.propagate) == (level, *before[1:])
    finally:
        logger.setLevel(before[0])
