"""Random initial variables, by Keras's initializers."""

import zlib

import jax
import jax.numpy as jnp
import numpy as np

from densenet_flax.common.trees import Variables
from densenet_flax.models.densenet import DenseNet


def init_variables(model: DenseNet, seed: int) -> Variables:
    """Draws variables from Keras's initial distributions (Glorot uniform kernels).

    `model.init` draws from the same ones, but compiles six hundred small programs for it. Here each
    leaf depends on the seed and its own name alone, so a head is the same on any backbone.

    Returns:
      `{'params': …, 'batch_stats': …}` of float32 NumPy arrays.
    """
    images = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    return draw_variables(jax.eval_shape(model.init, jax.random.key(0), images), seed)


def draw_variables(shapes: Variables, seed: int) -> Variables:
    """Draws what `init_variables` returns, given the variables' shapes.

    Args:
      shapes: tree of `jax.ShapeDtypeStruct`.
      seed: not negative.
    """

    def draw(path: tuple[jax.tree_util.DictKey, ...], leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        name = path[-1].key
        if name != "kernel":
            return np.full(leaf.shape, name in ("scale", "var"), np.float32)
        rng = np.random.default_rng([seed, zlib.crc32(jax.tree_util.keystr(path).encode())])
        receptive_field = int(np.prod(leaf.shape[:-2]))
        limit = np.sqrt(6 / (receptive_field * (leaf.shape[-2] + leaf.shape[-1])))
        return rng.uniform(-limit, limit, leaf.shape).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, dict(shapes))
