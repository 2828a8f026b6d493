"""Trees of many small arrays as a few vectors."""

# XLA compiles a small program for every array that a step reads or writes, and Adam's update of a
# bias of 32 numbers takes as long to compile as that of a million. DenseNet201 has 600 parameters,
# so its step and optimizer work on vectors, each of which holds all parameters of one group.

import dataclasses
import math
import re
from collections.abc import Callable, Hashable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from densenet_flax.common.trees import PyTree


@dataclasses.dataclass(frozen=True)
class _Layout:
    """Where the leaves of a tree are in its vectors."""

    treedef: jax.tree_util.PyTreeDef
    # For each leaf, in the order of the tree.
    shapes: tuple[tuple[int, ...], ...]
    groups: tuple[Hashable, ...]
    # Positions of the leaves in the tree, in the order of the vectors.
    order: tuple[int, ...]


_layouts: dict[_Layout, _Layout] = {}


@jax.tree_util.register_pytree_node_class
@dataclasses.dataclass(frozen=True)
class Raveled:
    """A tree of arrays as one vector for each group of leaves.

    JAX sees a tree whose leaves are the vectors, so optax works on it as on any parameters.

    Attributes:
      vectors: for each group its leaves one after the other, in row-major order. A scalar stands
        for a number that all leaves of the group share, such as a count of updates.
    """

    vectors: dict[Hashable, Any]
    layout: _Layout

    @classmethod
    def of(cls, tree: PyTree, groups: PyTree) -> "Raveled":
        """Ravels a tree of arrays; on the host if they are NumPy's.

        Args:
          tree: arrays, with `optax.MaskedNode` where there is nothing to ravel.
          groups: tree with a group, any hashable value, for each array and `MaskedNode`.
        """
        nodes, outer = jax.tree.flatten(tree, is_leaf=_is_masked)
        pairs = zip(nodes, outer.flatten_up_to(groups), strict=True)  # type: ignore[attr-defined]
        chosen = tuple(group for node, group in pairs if not _is_masked(node))
        entries, treedef = jax.tree_util.tree_flatten_with_path(tree)
        paths, leaves = [path for path, _ in entries], [leaf for _, leaf in entries]
        # The vectors have an order of their own, for the sake of XLA; see `_sort_key`.
        order = tuple(sorted(range(len(leaves)), key=lambda i: _sort_key(paths[i])))
        layout = _Layout(treedef, tuple(leaf.shape for leaf in leaves), chosen, order)

        parts: dict[Hashable, list[Any]] = {}
        for i in order:
            parts.setdefault(chosen[i], []).append(leaves[i].reshape(-1))
        # Under `jit` concatenation is part of the step; on the host it must not compile a program.
        on_host = all(isinstance(leaf, np.ndarray) for leaf in leaves)
        concatenate: Callable[[list[Any]], Any] = np.concatenate if on_host else jnp.concatenate
        # One object for equal layouts: each call of a compiled step compares them, and two objects
        # leaf by leaf.
        layout = _layouts.setdefault(layout, layout)
        return cls({group: concatenate(part) for group, part in parts.items()}, layout)

    def unravel(self) -> PyTree:
        """The tree. Where a group has a scalar, each of its leaves is that scalar."""
        offsets = dict.fromkeys(self.vectors, 0)
        leaves: list[Any] = [None] * len(self.layout.order)
        for i in self.layout.order:
            group, shape = self.layout.groups[i], self.layout.shapes[i]
            vector, start, size = self.vectors[group], offsets[group], math.prod(shape)
            offsets[group] += size
            leaves[i] = vector[start : start + size].reshape(shape) if vector.ndim else vector
        return jax.tree.unflatten(self.layout.treedef, leaves)

    def map(self, function: Callable[[Any, Any], Any]) -> "Raveled":
        """The same layout with `function(group, vector)` for each vector."""
        vectors = {group: function(group, vector) for group, vector in self.vectors.items()}
        return Raveled(vectors, self.layout)

    def contents(self) -> dict[Hashable, list[tuple[str, tuple[int, ...]]]]:
        """For each group the path, as text, and the shape of each leaf in its vector, in order."""
        layout = self.layout
        tree = jax.tree.unflatten(layout.treedef, range(len(layout.order)))
        names = [jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(tree)]
        contents: dict[Hashable, list[tuple[str, tuple[int, ...]]]] = {g: [] for g in self.vectors}
        for i in layout.order:
            contents[layout.groups[i]].append((names[i], layout.shapes[i]))
        return contents

    def tree_flatten(self):
        """For JAX."""
        return tuple(self.vectors.values()), (tuple(self.vectors), self.layout)

    @classmethod
    def tree_unflatten(cls, static, vectors):
        """For JAX."""
        groups, layout = static
        return cls(dict(zip(groups, vectors, strict=True)), layout)


def unravel_to_host(tree: PyTree) -> PyTree:
    """A tree with every `Raveled` in it unraveled, as NumPy arrays."""
    # On the host because each slice on a device would be a program of its own.
    on_host = jax.tree.map(np.asarray, tree)
    return jax.tree.map(
        lambda node: node.unravel() if is_raveled(node) else node, on_host, is_leaf=is_raveled
    )


def is_raveled(node: Any) -> bool:
    """Whether a node of a tree is a `Raveled`."""
    return isinstance(node, Raveled)


def _is_masked(node: Any) -> bool:
    return isinstance(node, optax.MaskedNode)


def _sort_key(path: tuple[Any, ...]) -> tuple[str, list[int | str]]:
    """The order of leaves in a vector: by name within the layer, then by layer."""
    # `['conv5_block2']['0_bn']['scale']` comes between the same leaf of blocks 1 and 3. The dense
    # block keeps such leaves in one array, and XLA takes that array as it is only where they are
    # next to each other, in the order of the layers (2 before 10).
    layer = re.split(r"(\d+)", jax.tree_util.keystr(path[:1]))
    return jax.tree_util.keystr(path[1:]), [int(s) if s.isdigit() else s for s in layer]
