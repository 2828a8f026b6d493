"""Checks of JSON values from files that nobody vouches for."""

import math
import reprlib
from collections.abc import Mapping
from typing import Any

from densenet_flax.common.errors import InputError


def expect_valid(key: str, value: Any, is_valid: bool, expected: str) -> None:
    """Raises an `InputError` that names the key, its value and what was expected."""
    if not is_valid:
        shown = reprlib.repr(as_list(value))  # as JSON has it, and not a page of it
        raise InputError(f"weights info: {key} is {shown}; expected {expected}")


def is_object(value: Any) -> bool:
    """Whether it is a JSON object."""
    return isinstance(value, Mapping) and all(isinstance(key, str) for key in value)


def is_integer(value: Any, low: int, high: float = math.inf) -> bool:
    """Whether it is an integer in this range; true and false are none."""
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def is_number(value: Any, low: float, high: float) -> bool:
    """Whether it is a number in this range, so neither NaN nor infinite."""
    return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high


def are_strings(values: Any) -> bool:
    """Whether it is a tuple of strings."""
    return isinstance(values, tuple) and all(isinstance(value, str) for value in values)


def as_tuple(value: Any) -> Any:
    """A list as a tuple; anything else as it is."""
    return tuple(value) if isinstance(value, list) else value


def as_list(value: Any) -> Any:
    """A tuple as a list; anything else as it is."""
    return list(value) if isinstance(value, tuple) else value
