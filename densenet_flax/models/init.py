"""Random initial variables, by Keras's initializers."""

import zlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from densenet_flax.models.densenet import DenseNet


def init_variables(model: DenseNet, seed: int) -> dict[str, Any]:
    """Random variables: Keras's initial values (Glorot uniform kernels), drawn leaf by leaf.

    The same distributions as `model.init`, without its compilation of six hundred random draws;
    each leaf depends on the seed and its own name alone, so a head is the same on any backbone.

    Returns:
      `{'params': …, 'batch_stats': …}` of float32 NumPy arrays.
    """
    return draw_variables(
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3))), seed
    )


def draw_variables(shapes: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """What `init_variables` draws, from a tree of the variables' shapes alone."""

    def draw(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        name = path[-1].key
        if name != "kernel":
            return np.full(leaf.shape, name in ("scale", "var"), np.float32)
        rng = np.random.default_rng([seed, zlib.crc32(jax.tree_util.keystr(path).encode())])
        receptive_field = int(np.prod(leaf.shape[:-2]))
        limit = np.sqrt(6 / (receptive_field * (leaf.shape[-2] + leaf.shape[-1])))
        return rng.uniform(-limit, limit, leaf.shape).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, dict(shapes))
