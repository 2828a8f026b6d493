"""Trees of arrays stacked for a scan and taken apart again, with few small programs."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from densenet_flax.common.trees import PyTree

_FUSED_OPERANDS = 8  # arrays that XLA's CPU backend concatenates in one small program


def stack(trees: Sequence[PyTree]) -> PyTree:
    """Stacks trees of one structure along a new first axis of every leaf."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def unstack(tree: PyTree, count: int) -> list[PyTree]:
    """Undoes `stack`; the parts of a leaf lie one behind the other in one buffer."""

    def split(leaf: Array) -> list[Array]:
        # The barrier keeps XLA from slicing the stacked leaf once for every user of a part.
        flat = jax.lax.optimization_barrier(leaf.reshape(-1))
        return [part.reshape(leaf.shape[1:]) for part in jnp.split(flat, count)]

    return list_of_trees(jax.tree.map(split, tree), count)


def list_of_trees(tree_of_lists: PyTree, count: int) -> list[PyTree]:
    """Transposes; unlike `jax.tree.transpose` also where the tree has no leaves."""
    is_list = lambda node: isinstance(node, list)  # noqa: E731
    return [
        jax.tree.map(lambda leaves, k=k: leaves[k], tree_of_lists, is_leaf=is_list)
        for k in range(count)
    ]


def contiguous(arrays: Sequence[Array]) -> list[Array]:
    """Returns equal arrays that are parts of a few buffers, in this order.

    Raveling arrays that are slices of something costs XLA's CPU backend a program for each. Of
    arrays that have come through here it takes whole buffers.
    """
    parts: list[Array] = []
    for start in range(0, len(arrays), _FUSED_OPERANDS):
        group = arrays[start : start + _FUSED_OPERANDS]
        buffer = jnp.concatenate([array.reshape(-1) for array in group])
        buffer = jax.lax.optimization_barrier(buffer)  # or XLA simplifies it away
        ends = np.cumsum([array.size for array in group])[:-1].tolist()
        split = jnp.split(buffer, ends)
        parts += [part.reshape(array.shape) for part, array in zip(split, group, strict=True)]
    return parts
