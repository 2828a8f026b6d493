"""What a run states about itself, the `info` of a report, in JSON's types."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np


def to_json(value: Any) -> Any:
    """Converts a value to JSON's types; nothing that a configuration may hold makes it fail.

    Numbers that JSON cannot hold become None, and objects of other types their text.
    """
    # First, because np.float64 is a float as well; json rejects np.bool_ and np.int64.
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping) or hasattr(value, "items"):  # ConfigDict is no Mapping
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset | np.ndarray):
        return [to_json(item) for item in value]
    return str(value)
