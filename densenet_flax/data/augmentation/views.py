"""Views of images, made on the accelerator: one image's operations, then mixtures of a batch."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Num, UInt8

from densenet_flax.data.augmentation.color import random_color
from densenet_flax.data.augmentation.geometry import num_symmetries, random_warp
from densenet_flax.data.augmentation.settings import AugmentSettings, Image, Pixels
from densenet_flax.data.augmentation.streams import (
    Ids,
    Scalar,
    Stream,
    ViewKey,
    deal_symmetries,
    stream_key,
    view_keys,
)


@functools.partial(jax.jit, static_argnames="settings")
def augment(
    images: UInt8[Array, "N H W 3"],
    ids: Ids,
    *,
    seed: Scalar,
    epoch: Scalar | Ids,
    settings: AugmentSettings,
) -> UInt8[Array, "N H W 3"]:
    """Makes a view of each image; `mix` is separate, since it needs the targets.

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
        x = _wipe_out_square(settings, x, key)
    return x if x.dtype == jnp.uint8 else jnp.clip(jnp.round(x), 0, 255).astype(jnp.uint8)


def _wipe_out_square(settings: AugmentSettings, x: Pixels, key: ViewKey) -> Pixels:
    """Cutout: covers a square of an image with the image's mean color."""
    x = x.astype(jnp.float32)
    center = jax.random.uniform(stream_key(key, Stream.CUTOUT), (2,))
    inside = _box(x.shape, center, jnp.float32(settings.cutout))
    return jnp.where(inside, x.mean((0, 1)), x)


@functools.partial(jax.jit, static_argnames="settings")
def mix(
    images: Num[Array, "N H W 3"],
    targets: Num[Array, "N K"],
    ids: Ids,
    *,
    seed: Scalar,
    epoch: Scalar | Ids,
    settings: AugmentSettings,
) -> tuple[Float[Array, "N H W 3"], Float[Array, "N K"]]:
    """Mixes each image with the one before it in the batch, by MixUp or CutMix.

    A shuffled epoch makes the neighbor a random one. Each image has a share of its own, where the
    papers' code draws one for a batch. Images are 0 to 255 and targets one-hot or soft; ids, seed,
    epoch and settings are as for `augment`.

    Returns:
      (images, targets), each target mixed in the shares of its image.
    """
    images, targets = images.astype(jnp.float32), targets.astype(jnp.float32)
    if not settings.mixes:
        return images, targets
    partners = jnp.roll(images, 1, axis=0)
    keys = view_keys(seed, epoch, ids)
    mixed, share = jax.vmap(functools.partial(_random_mixture, settings))(images, partners, keys)
    share = share[:, None]
    return mixed, share * targets + (1 - share) * jnp.roll(targets, 1, axis=0)


def _random_mixture(
    settings: AugmentSettings, image: Pixels, partner: Pixels, key: ViewKey
) -> tuple[Pixels, Float[Array, ""]]:
    """Returns the mixture, and the share of `image` in it."""
    mix_key = stream_key(key, Stream.MIX)
    coin_key, mixup_key, cutmix_key, center_key = jax.random.split(mix_key, 4)
    if settings.mixup:
        share = jax.random.beta(mixup_key, settings.mixup, settings.mixup)
        by_mixup = share * image + (1 - share) * partner, share
        if not settings.cutmix:
            return by_mixup
    share = jax.random.beta(cutmix_key, settings.cutmix, settings.cutmix)
    # The box's area is 1 − share, so its sides are the root of that.
    inside = _box(image.shape, jax.random.uniform(center_key, (2,)), jnp.sqrt(1 - share))
    # A box that lies partly outside covers less than was drawn: its pixels are counted.
    by_cutmix = jnp.where(inside, partner, image), 1 - inside.mean(dtype=jnp.float32)
    if not settings.mixup:
        return by_cutmix
    coin = jax.random.bernoulli(coin_key)
    return jax.tree.map(functools.partial(jnp.where, coin), by_mixup, by_cutmix)


def _box(
    shape: tuple[int, ...], center: Float[Array, "2"], size: Float[Array, ""]
) -> Bool[Array, "H W 1"]:
    """Returns where a box is; center and size are shares of the image's height and width."""
    rows, columns = (
        jnp.abs((jnp.arange(length) + 0.5) / length - center[axis]) < size / 2
        for axis, length in enumerate(shape[:2])
    )
    return (rows[:, None] & columns[None, :])[..., None]
