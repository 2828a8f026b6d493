"""Random brightness, contrast and stain."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, UInt8

from densenet_flax.common.errors import InputError
from densenet_flax.common.sharding import broadcast
from densenet_flax.data.augmentation.color_spaces import change_dyes, lab_to_rgb, rgb_to_lab
from densenet_flax.data.augmentation.settings import NO_FACTOR, AugmentSettings, Image, Pixels
from densenet_flax.data.augmentation.streams import Stream, ViewKey, stream_key
from densenet_flax.data.dataset import Dataset

_MEASURED_IMAGES = 512  # more would not change the statistics of a laboratory's stains
_GRAY = (0.299, 0.587, 0.114)  # luma of ITU-R BT.601, as in Pillow


def random_color(settings: AugmentSettings, x: Pixels, key: ViewKey) -> Pixels:
    """Draws stain, brightness and contrast, in this order.

    Returns:
      float32, which may lie outside of 0 to 255; `x` itself if no color changes.
    """

    def draw(stream: Stream, limits: tuple[float, ...], *shape: int) -> Float[Array, "..."]:
        low, high = limits
        return jax.random.uniform(stream_key(key, stream), shape, minval=low, maxval=high)

    if settings.hed_range:
        change = draw(Stream.HED, (-settings.hed_range, settings.hed_range), 2, 3)
        x = change_dyes(x, 1 + change[0], change[1])
    if settings.stain_jitter:
        x = _random_stain(settings, x, stream_key(key, Stream.STAIN))
    if settings.brightness_range not in NO_FACTOR:
        x = x * draw(Stream.BRIGHTNESS, settings.brightness_range)
    if settings.contrast_range not in NO_FACTOR:
        x = jnp.clip(x, 0, 255)
        gray = jnp.matmul(x, jnp.array(_GRAY), precision="highest").mean()
        x = gray + (x - gray) * draw(Stream.CONTRAST, settings.contrast_range)
    return x


def _random_stain(settings: AugmentSettings, x: Pixels, key: Key[Array, ""]) -> Pixels:
    """Moves mean and standard deviation of L, a and b towards those of a random slide."""
    if not settings.stain_statistics:
        needed = "stain_jitter needs what stain_statistics(training images) returns"
        raise InputError(f"augment.stain_statistics=(): {needed}")
    lab = rgb_to_lab(jnp.clip(x.astype(jnp.float32) / 255, 0, 1))
    mean, std = mean_and_std(lab)
    statistics = jnp.array(settings.stain_statistics, jnp.float32)
    slide = statistics[::2] + statistics[1::2] * jax.random.normal(key, (2, 3))
    # A normal distribution also yields deviations below 0, which no slide has.
    slide_std = jnp.maximum(slide[1], 0.1 * statistics[2])
    new_mean = mean + settings.stain_jitter * (slide[0] - mean)
    new_std = std + settings.stain_jitter * (slide_std - std)
    # An almost empty tile has no deviation to stretch: its noise would become color.
    ratio = jnp.clip(new_std / jnp.maximum(std, 1e-3), 0.25, 4.0)
    return 255 * lab_to_rgb((lab - mean) * ratio + new_mean)


def mean_and_std(lab: Float[Array, "H W 3"]) -> Float[Array, "2 3"]:
    """Returns the mean and the standard deviation of each channel."""
    return jnp.stack([lab.mean((0, 1)), lab.std((0, 1))])


def stain_statistics(
    images: UInt8[np.ndarray, "N H W 3"],
) -> tuple[tuple[float, float, float], ...]:
    """Measures how colors vary between images, for `AugmentSettings.stain_statistics`."""

    @jax.jit
    def measure(image: Image) -> Float[Array, "2 3"]:
        return mean_and_std(rgb_to_lab(image.astype(jnp.float32) / 255))

    measured = np.array([measure(images[row]) for row in _evenly_spaced(len(images))])  # [N 2 3]
    means, stds = measured[:, 0], measured[:, 1]
    numbers = (means.mean(0), means.std(0), stds.mean(0), stds.std(0))
    return tuple(tuple(map(float, triple)) for triple in numbers)  # type: ignore[misc]


def with_stain_statistics(
    settings: AugmentSettings, dataset: Dataset, rows: Int[np.ndarray, "rows"]
) -> AugmentSettings:
    """Returns the settings with statistics of the training images, where they are needed.

    At most `_MEASURED_IMAGES` of the training rows are measured.
    """
    # Statistics that the configuration states are kept.
    if not settings.stain_jitter or settings.stain_statistics:
        return settings
    statistics = stain_statistics(dataset.images[rows[_evenly_spaced(len(rows))]])
    # They become constants of the program, which must be the same in all processes.
    copy = broadcast(np.array(statistics))
    return dataclasses.replace(settings, stain_statistics=tuple(map(tuple, copy.tolist())))


def _evenly_spaced(count: int) -> Int[np.ndarray, "M"]:
    """Returns at most `_MEASURED_IMAGES` of `count` positions."""
    return np.unique(np.linspace(0, count - 1, min(count, _MEASURED_IMAGES)).astype(int))
