"""Views of images, made on the accelerator: the parts in their order."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, UInt8

from densenet_flax.data.augmentation.color import random_color
from densenet_flax.data.augmentation.geometry import num_symmetries, random_warp
from densenet_flax.data.augmentation.mixing import random_cutout
from densenet_flax.data.augmentation.settings import AugmentSettings, Image
from densenet_flax.data.augmentation.streams import Ids, Scalar, ViewKey, deal_symmetries, view_keys


@functools.partial(jax.jit, static_argnames="settings")
def augment(
    images: UInt8[Array, "N H W 3"],
    ids: Ids,
    *,
    seed: Scalar,
    epoch: Scalar | Ids,
    settings: AugmentSettings,
) -> UInt8[Array, "N H W 3"]:
    """Makes a view of each image; `mixing.mix` is separate, since it needs the targets.

    Args:
      images: any images, which are returned as they are if nothing is switched on.
      ids: the row of each image in its data set.
      seed: seed of the run.
      epoch: a number that differs between passes over the data, or one for each image.
      settings: how far views may go; static under jit.
    """
    # Dealt for the whole batch; everything else is drawn image by image.
    symmetries = jnp.zeros(ids.shape, jnp.int32)
    if settings.symmetries:
        symmetries = deal_symmetries(seed, epoch, ids, num_symmetries(images.shape[1:3]))
    view = functools.partial(_random_view, settings)
    return jax.vmap(view)(images, view_keys(seed, epoch, ids), symmetries)


def _random_view(settings: AugmentSettings, image: Image, key: ViewKey, symmetry: Scalar) -> Image:
    x = random_warp(settings, image, key, symmetry)
    x = random_color(settings, x, key)
    if settings.cutout:
        x = random_cutout(settings, x, key)
    return x if x.dtype == jnp.uint8 else jnp.clip(jnp.round(x), 0, 255).astype(jnp.uint8)
