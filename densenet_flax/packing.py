"""Many arrays as few vectors, where hundreds of small ones would each cost a program."""

import dataclasses
import math
from collections.abc import Callable, Hashable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax


@dataclasses.dataclass(frozen=True)
class _Form:
    """How a tree lies in its vectors: its structure, and of each leaf the shape and the vector."""

    structure: Any
    shapes: tuple[tuple[int, ...], ...]
    names: tuple[Hashable, ...]


@jax.tree_util.register_pytree_node_class
@dataclasses.dataclass(frozen=True)
class Packed:
    """A tree of arrays as vectors, each of the leaves that bear one name.

    To JAX it is a tree of its vectors, so that optax works on it as on any parameters.

    Attributes:
      vectors: by name, the leaves one behind the other, each in row-major order; or, from
        something that counts for all leaves of a name, a scalar.
      form: of the tree.
    """

    vectors: dict[Hashable, Any]
    form: _Form

    @classmethod
    def of(cls, tree: Any, names: Any) -> "Packed":
        """Packs a tree of JAX arrays.

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
        leaves, structure = jax.tree.flatten(tree)
        form = _Form(structure, tuple(leaf.shape for leaf in leaves), tuple(chosen))
        return cls._filled(form, leaves, jnp)

    def repack(self, tree: Any) -> "Packed":
        """NumPy arrays of a tree of this form, as `unpack` gave them, on the host."""
        leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]
        if any(leaf.ndim for leaf in leaves) or not any(self.form.shapes):
            return self._filled(self.form, leaves, np)
        scalars = dict(zip(self.form.names, leaves, strict=True))
        return Packed(scalars, self.form)

    @classmethod
    def _filled(cls, form: _Form, leaves: list[Any], library: Any) -> "Packed":
        parts: dict[Hashable, list[Any]] = {}
        for name, leaf in zip(form.names, leaves, strict=True):
            parts.setdefault(name, []).append(leaf.reshape(-1))
        return cls({name: library.concatenate(part) for name, part in parts.items()}, form)

    def unpack(self) -> Any:
        """The tree. Where a vector is a scalar, each of its leaves is that scalar."""
        taken = dict.fromkeys(self.vectors, 0)
        leaves = []
        for shape, name in zip(self.form.shapes, self.form.names, strict=True):
            vector, start, size = self.vectors[name], taken[name], math.prod(shape)
            taken[name] += size
            leaves.append(vector[start : start + size].reshape(shape) if vector.ndim else vector)
        return jax.tree.unflatten(self.form.structure, leaves)

    def map(self, function: Callable[[Any, Any], Any]) -> "Packed":
        """The same with `function(name, vector)` in place of each vector."""
        return Packed({name: function(name, v) for name, v in self.vectors.items()}, self.form)

    def tree_flatten(self):
        """For JAX."""
        return tuple(self.vectors.values()), (tuple(self.vectors), self.form)

    @classmethod
    def tree_unflatten(cls, static, vectors):
        """For JAX."""
        names, form = static
        return cls(dict(zip(names, vectors, strict=True)), form)


def spread(tree: Any) -> Any:
    """A tree on the host, with what is packed in it unpacked."""

    def on_host(node: Any) -> Any:
        if not _is_packed(node):
            return np.asarray(node)
        return node.map(lambda _, vector: np.asarray(vector)).unpack()

    return jax.tree.map(on_host, tree, is_leaf=_is_packed)


def gather(tree: Any, like: Any) -> Any:
    """The inverse of `spread`, on the host: `like` says what is packed."""
    return jax.tree.map(
        lambda old, new: old.repack(new) if _is_packed(old) else np.asarray(new),
        like,
        tree,
        is_leaf=_is_packed,
    )


def _is_packed(node: Any) -> bool:
    return isinstance(node, Packed)


def _is_gap(node: Any) -> bool:
    return isinstance(node, optax.MaskedNode)
