"""What a training step changes, how it is saved, and trees divided by a mask."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh
from jaxtyping import Array, Int

from densenet_flax.common.sharding import replicate
from densenet_flax.common.trees import PyTree
from densenet_flax.storage.named_arrays import NamedVector, join, split
from densenet_flax.training.raveled import Raveled, is_raveled, unravel_to_host


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """What a step changes. What it only reads is kept apart, so that it is never copied."""

    step: Int[Array, ""] | Int[np.ndarray, ""]  # of the whole run
    params: Raveled  # those that train
    batch_stats: Raveled  # of the BatchNorms that use batch statistics
    opt_state: PyTree
    ema: Raveled | None = None  # the moving average of `params`, where one is kept

    def trained_variables(self) -> tuple[PyTree, PyTree]:
        """Parameters, averaged if an average is kept, and statistics, on the host."""
        return unravel_to_host((self.params if self.ema is None else self.ema, self.batch_stats))


@jax.jit
def copy_state(state: TrainState) -> TrainState:
    """A copy on the devices, which outlives the steps that reuse the buffers of `state`."""
    return jax.tree.map(jnp.copy, state)


def state_to_save(state: TrainState) -> list[NamedVector]:
    """What a checkpoint holds besides the network's variables."""
    # A checkpoint knows arrays by their names, like `['opt_state']….mu['bn']['scale']`, and so
    # depends neither on optax's classes nor on which parameters share a vector.
    vectors = []
    for path, node in jax.tree.leaves_with_path(_saved_part(state), is_leaf=is_raveled):
        prefix = jax.tree_util.keystr(path)
        if not is_raveled(node):
            vectors.append(NamedVector(np.ravel(node), [(prefix, node.shape)]))
            continue
        contents = node.contents()
        for group, vector in node.vectors.items():
            values, names = np.asarray(vector), [(prefix + name, s) for name, s in contents[group]]
            if not values.ndim:
                # A count that all arrays of the group share, saved for each of them, because
                # another stage may group them in another way.
                values, names = np.full(len(names), values), [(name, ()) for name, _ in names]
            vectors.append(NamedVector(values, names))
    return vectors


def saved_arrays(state: TrainState) -> dict[str, np.ndarray]:
    """The arrays of `state_to_save` by name, as a checkpoint returns them."""
    return split(*join(state_to_save(state)))


def restore_state(state: TrainState, saved: Mapping[str, np.ndarray], mesh: Mesh) -> TrainState:
    """A fresh state of a stage with the arrays that `state_to_save` saved in the same stage."""

    def restore(path: tuple[Any, ...], node: Any) -> Any:
        prefix = jax.tree_util.keystr(path)
        if not is_raveled(node):
            return saved[prefix]
        contents = node.contents()

        def restore_vector(group: Any, vector: Any) -> np.ndarray:
            arrays = [saved[prefix + name] for name, _ in contents[group]]
            return np.concatenate([a.ravel() for a in arrays]) if vector.ndim else arrays[0]

        return node.map(restore_vector)

    part = jax.tree.map_with_path(restore, _saved_part(state), is_leaf=is_raveled)
    return dataclasses.replace(state, **replicate(part, mesh))


def restore_moments(state: TrainState, saved: Mapping[str, np.ndarray], mesh: Mesh) -> TrainState:
    """A fresh state of a stage with the moments of what trained in the stage before it."""
    # By name and not by vector: the stage before had other groups, and optax another chain.
    arrays = saved_arrays(state)
    for name, array in saved.items():
        is_moment = any(field in name for field in (".mu[", ".nu[", ".steps[", ".trace["))
        if is_moment and name in arrays and arrays[name].shape == array.shape:
            arrays[name] = array
    return restore_state(state, arrays, mesh)


def _saved_part(state: TrainState) -> dict[str, PyTree]:
    # With a moving average the checkpoint's variables are the averaged ones.
    part: dict[str, PyTree] = {"opt_state": state.opt_state}
    return part if state.ema is None else {**part, "params": state.params}


def partition(tree: PyTree, mask: PyTree) -> tuple[PyTree, PyTree]:
    """Splits a tree by a mask into two, with `optax.MaskedNode` where the other has a leaf."""
    gap = optax.MaskedNode()
    chosen = jax.tree.map(lambda trains, leaf: leaf if trains else gap, mask, tree)
    rest = jax.tree.map(lambda trains, leaf: gap if trains else leaf, mask, tree)
    return chosen, rest


def merge(chosen: PyTree, rest: PyTree, mask: PyTree) -> PyTree:
    """Undoes `partition`."""
    return jax.tree.map(lambda trains, a, b: a if trains else b, mask, chosen, rest)


def select_masked(tree: PyTree, mask: PyTree) -> PyTree:
    """As `partition`'s first tree, of dictionaries that may lack what the mask leaves out."""
    leaves, gap = flatten_dict(tree), optax.MaskedNode()
    return unflatten_dict(
        {path: leaves[path] if selected else gap for path, selected in flatten_dict(mask).items()}
    )
