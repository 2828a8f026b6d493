"""The names of a network's units in order, and the part of a variable tree that belongs to them."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any


def unit_names(blocks: Sequence[int]) -> tuple[str, ...]:
    """The units of a backbone in order, from 'stem' to 'norm'."""
    line = ["stem"]
    for stage, count in enumerate(blocks, start=2):
        line += [f"conv{stage}_block{i}" for i in range(1, count + 1)]
        line += [f"pool{stage}"] if stage < len(blocks) + 1 else ["norm"]
    return tuple(line)


def param_key(unit: str) -> str:
    """The top-level name of a unit in the trees of parameters and statistics."""
    return {"stem": "conv1", "norm": "bn"}.get(unit, unit)


def select_units(tree: Mapping[str, Any], units: Collection[str]) -> dict[str, Any]:
    """The part of a tree of parameters or statistics that belongs to these units."""
    keys = {param_key(unit) for unit in units}
    return {key: value for key, value in tree.items() if key in keys}
