"""Test-time augmentation: probabilities averaged over the symmetric views of an image.

Tissue on a slide has no up and no left, so an image turned or mirrored is as good an image of it.
A square image has eight symmetries, an oblong one four.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from densenet_flax.data.augmentation.geometry import SYMMETRIES, affine_transform


def num_views(size: Sequence[int]) -> int:
    """Number of symmetries of an image of (height, width): 8 if it is square, else 4."""
    return 8 if size[0] == size[1] else 4


@jax.jit
def symmetric_views(images: UInt8[Array, "N H W 3"]) -> UInt8[Array, "NV H W 3"]:
    """The V views of the first image, beginning with itself, then those of the next; NV = N · V."""
    # The first four keep rows as rows; the others exchange them with columns.
    matrices = jnp.asarray(SYMMETRIES[: num_views(images.shape[1:3])])

    def view(image: UInt8[Array, "H W 3"], matrix: Float[Array, "2 2"]) -> UInt8[Array, "H W 3"]:
        return affine_transform(image, matrix, jnp.zeros(2), "reflect", interpolate=False)

    views = jax.vmap(jax.vmap(view, (None, 0)), (0, None))(images, matrices)
    return views.reshape(-1, *images.shape[1:])


def mean_over_views(probability: Float[np.ndarray, "NV K"], views: int) -> Float[np.ndarray, "N K"]:
    """Averages the probabilities, not the logits, of the `views` views of each image."""
    return probability.reshape(-1, views, probability.shape[-1]).mean(axis=1)
