"""The arguments `--config.key=value` of a command line, told apart from its other flags."""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

_OVERRIDE = re.compile(r"--?(no)?config\.([^=]*)(?:=(.*))?", re.DOTALL)
_NEXT_IS_VALUE = re.compile(r"[^-]|-[\d.]|$", re.DOTALL)  # and not the next flag


class Override(NamedTuple):
    """A key of the configuration, with dots, and the text or the value that it was given."""

    key: str
    value: Any


def split_overrides(arguments: Sequence[str]) -> tuple[list[str], list[Override]]:
    """Takes `--config.key=value`, `--config.key value`, `--config.key` and `--noconfig.key` out.

    Returns:
      The other arguments, and the overrides in their order.
    """
    rest, others, overrides = list(arguments), [], []
    while rest and rest[0] != "--":
        argument = rest.pop(0)
        match = _OVERRIDE.fullmatch(argument)
        if not match:
            others.append(argument)
            continue
        negated, key, text = match.groups()
        if text is None and not negated and rest and _NEXT_IS_VALUE.match(rest[0]):
            text = rest.pop(0)
        overrides.append(Override(key, ("false" if negated else "true") if text is None else text))
    return others + rest, overrides
