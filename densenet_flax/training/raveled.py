"""Many arrays as few vectors, where hundreds of small ones would each cost a program."""

import dataclasses
import math
import re
from collections.abc import Callable, Hashable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax


@dataclasses.dataclass(frozen=True)
class _Form:
    """How a tree lies in its vectors.

    Attributes:
      structure: of the tree.
      shapes: of its leaves, in the tree's order.
      names: of the vectors that they are in, likewise.
      order: numbers of the leaves, as they follow each other in the vectors.
    """

    structure: Any
    shapes: tuple[tuple[int, ...], ...]
    names: tuple[Hashable, ...]
    order: tuple[int, ...]


@jax.tree_util.register_pytree_node_class
@dataclasses.dataclass(frozen=True)
class Raveled:
    """A tree of arrays as vectors, each of the leaves that bear one name.

    To JAX it is a tree of its vectors, so that optax works on it as on any parameters.

    Attributes:
      vectors: by name, the leaves one behind the other, each in row-major order; or, from
        something that counts for all leaves of a name, a scalar. Leaves whose paths differ in the
        first key alone are neighbours, in the order of the numbers in it.
      form: of the tree.
    """

    vectors: dict[Hashable, Any]
    form: _Form

    @classmethod
    def of(cls, tree: Any, names: Any) -> "Raveled":
        """Packs a tree of arrays; on the host if they are NumPy's.

        Args:
          tree: arrays, perhaps with `optax.MaskedNode` in places, where there is nothing to pack.
          names: tree with a name wherever `tree` has an array or such a gap.
        """
        chosen: list[Hashable] = []
        jax.tree.map(
            lambda leaf, name: None if _is_gap(leaf) else chosen.append(name),
            tree,
            names,
            is_leaf=_is_gap,
        )
        found, structure = jax.tree_util.tree_flatten_with_path(tree)
        leaves = [leaf for _, leaf in found]
        places = [_place(path) for path, _ in found]
        order = tuple(sorted(range(len(leaves)), key=places.__getitem__))
        form = _Form(structure, tuple(leaf.shape for leaf in leaves), tuple(chosen), order)
        on_host = all(isinstance(leaf, np.ndarray) for leaf in leaves)
        return cls._filled(form, leaves, np if on_host else jnp)

    def reravel(self, tree: Any) -> "Raveled":
        """NumPy arrays of a tree of this form, as `unpack` gave them, on the host."""
        leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]
        if any(leaf.ndim for leaf in leaves) or not any(self.form.shapes):
            return self._filled(self.form, leaves, np)
        return Raveled({self.form.names[i]: leaves[i] for i in self.form.order}, self.form)

    @classmethod
    def _filled(cls, form: _Form, leaves: list[Any], library: Any) -> "Raveled":
        parts: dict[Hashable, list[Any]] = {}
        for i in form.order:
            parts.setdefault(form.names[i], []).append(leaves[i].reshape(-1))
        return cls({name: library.concatenate(part) for name, part in parts.items()}, form)

    def unpack(self) -> Any:
        """The tree. Where a vector is a scalar, each of its leaves is that scalar."""
        taken = dict.fromkeys(self.vectors, 0)
        leaves: list[Any] = [None] * len(self.form.order)
        for i in self.form.order:
            name, shape = self.form.names[i], self.form.shapes[i]
            vector, start, size = self.vectors[name], taken[name], math.prod(shape)
            taken[name] += size
            leaves[i] = vector[start : start + size].reshape(shape) if vector.ndim else vector
        return jax.tree.unflatten(self.form.structure, leaves)

    def map(self, function: Callable[[Any, Any], Any]) -> "Raveled":
        """The same with `function(name, vector)` in place of each vector."""
        return Raveled({name: function(name, v) for name, v in self.vectors.items()}, self.form)

    def tree_flatten(self):
        """For JAX."""
        return tuple(self.vectors.values()), (tuple(self.vectors), self.form)

    @classmethod
    def tree_unflatten(cls, static, vectors):
        """For JAX."""
        names, form = static
        return cls(dict(zip(names, vectors, strict=True)), form)


def unravel_to_host(tree: Any) -> Any:
    """A tree on the host, with what is packed in it unpacked."""

    def on_host(node: Any) -> Any:
        if not _is_packed(node):
            return np.asarray(node)
        return node.map(lambda _, vector: np.asarray(vector)).unpack()

    return jax.tree.map(on_host, tree, is_leaf=_is_packed)


def ravel_like(tree: Any, like: Any) -> Any:
    """The inverse of `spread`, on the host: `like` says what is packed."""
    return jax.tree.map(
        lambda old, new: old.reravel(new) if _is_packed(old) else np.asarray(new),
        like,
        tree,
        is_leaf=_is_packed,
    )


def _place(path: tuple[Any, ...]) -> tuple[Any, ...]:
    """What leaves are sorted by: the path without its first key, then that one by its numbers."""
    first = re.split(r"(\d+)", jax.tree_util.keystr(path[:1]))
    return jax.tree_util.keystr(path[1:]), [int(s) if s.isdigit() else s for s in first]


def _is_packed(node: Any) -> bool:
    return isinstance(node, Raveled)


def _is_gap(node: Any) -> bool:
    return isinstance(node, optax.MaskedNode)
