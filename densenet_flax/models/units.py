"""The names of a network's units in order, and the variables that belong to them."""

from collections.abc import Collection, Mapping, Sequence

from densenet_flax.common.trees import PyTree


def unit_names(blocks: Sequence[int]) -> tuple[str, ...]:
    """Lists the units of a backbone in order, from 'stem' to 'norm'.

    Args:
      blocks: layers in each dense block.
    """
    names = ["stem"]
    for number, count in enumerate(blocks, start=2):  # Keras's conv1 is the stem
        names += [f"conv{number}_block{i}" for i in range(1, count + 1)]
        names += [f"pool{number}"] if number < len(blocks) + 1 else ["norm"]
    return tuple(names)


def param_key(unit: str) -> str:
    """Returns the key of a unit in `params` and `batch_stats`."""
    return {"stem": "conv1", "norm": "bn"}.get(unit, unit)


def select_units(tree: Mapping[str, PyTree], units: Collection[str]) -> dict[str, PyTree]:
    """Selects the part of `params` or `batch_stats` that belongs to these units."""
    keys = {param_key(unit) for unit in units}
    return {key: value for key, value in tree.items() if key in keys}
