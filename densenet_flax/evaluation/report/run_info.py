"""What a run states about itself: the `info` of a report in JSON's types, and phrases from it."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from densenet_flax.common.types import JsonDict

UNKNOWN = "not recorded"


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


def config_value(run: JsonDict, section: str, key: str) -> Any:
    """A value of the run's configuration; None if the run has none, or another form of it."""
    values = (run.get("config") or {}).get(section)
    return values.get(key) if isinstance(values, Mapping) else None


def model_name(run: JsonDict) -> str:
    """Name of the network."""
    return str(config_value(run, "model", "name") or UNKNOWN)


def dataset_name(run: JsonDict) -> str:
    """Name of the data set."""
    return str(config_value(run, "data", "name") or UNKNOWN)


def split_rule(run: JsonDict) -> str | None:
    """How the images were split, such as 'patient, by case70, seed 0'."""
    split = run.get("split") or {}
    parts = [
        str(split.get("policy") or split.get("kind") or ""),
        f"by {split['group']}" if split.get("group") else "",
        f"seed {split['seed']}" if split.get("seed") is not None else "",
    ]
    return ", ".join(filter(None, parts)) or None


def one_line(value: object) -> str | None:
    """A mapping, or anything else, on one line; None if it is empty."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {item}" for key, item in value.items()) or None
    return str(value) if value else None
