"""What a training step changes, and trees divided into what trains and what does not."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import optax

from densenet_flax.training.raveled import Raveled


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """What a step changes. All that it does not change is kept apart and never copied.

    Trees are packed into vectors: a program that takes and gives a thousand arrays has as many
    small programs in it.

    Attributes:
      step: steps of the whole run so far, int32.
      params: what trains, `optax.MaskedNode` in place of what is frozen; packed.
      batch_stats: running statistics of the live BatchNorms, likewise.
      opt_state: the optimizer's, for what trains.
      ema: the average of `params`, or None where no average is kept.
    """

    step: jax.Array
    params: Raveled
    batch_stats: Raveled
    opt_state: Any
    ema: Raveled | None = None


def partition(tree: Any, mask: Any) -> tuple[Any, Any]:
    """Splits a tree by a mask into where it is True and where not; the gaps are `MaskedNode`s."""
    gap = optax.MaskedNode()
    chosen = jax.tree.map(lambda m, x: x if m else gap, mask, tree)
    rest = jax.tree.map(lambda m, x: gap if m else x, mask, tree)
    return chosen, rest


def merge(chosen: Any, rest: Any, mask: Any) -> Any:
    """The inverse of `partition`."""
    return jax.tree.map(lambda m, a, b: a if m else b, mask, chosen, rest)


def select_masked(mask: Any, found: Mapping[str, Any]) -> Any:
    """A tree like `mask` with what a tree of less holds where it is True, else a gap."""

    def leaf(path: tuple[Any, ...], wanted: bool) -> Any:
        if not wanted:
            return optax.MaskedNode()
        return functools.reduce(lambda node, entry: node[entry.key], path, found)

    return jax.tree_util.tree_map_with_path(leaf, mask)
