"""Messages to users, whatever they quote."""

import pickle

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
