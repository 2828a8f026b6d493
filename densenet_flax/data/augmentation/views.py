"""Views of images, made on the accelerator and pure in (seed, epoch, id).

What happens to an image does not depend on its batch, on the device or on what came before, so a
run that goes on, and one on more devices, sees the same views. The whole geometric chain is one
matrix and one interpolation. Arguments are named as in Keras where Keras has them.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from densenet_flax.common.errors import InputError
from densenet_flax.data.augmentation import pixels
from densenet_flax.data.dataset import Dataset

# One number for each thing that is drawn, so that switching one on leaves the others as they were.
_GEOMETRY, _BRIGHTNESS, _CONTRAST, _HED, _STAIN, _CUTOUT, _MIX = range(7)
_SYMMETRY = 2**31 - 1  # no epoch

# The eight symmetries of a square as matrices on (row, column); the first four keep an oblong one.
SYMMETRIES = np.array(
    [
        [[1, 0], [0, 1]],
        [[-1, 0], [0, 1]],
        [[1, 0], [0, -1]],
        [[-1, 0], [0, -1]],
        [[0, 1], [1, 0]],
        [[0, 1], [-1, 0]],
        [[0, -1], [1, 0]],
        [[0, -1], [-1, 0]],
    ],
    np.float32,
)

_LOOKED_AT = 512  # images whose colours are measured
Statistics = tuple[tuple[float, float, float], ...]


@dataclasses.dataclass(frozen=True)
class AugmentSettings:
    """How far a view may be from its image; as it stands, not at all.

    Attributes:
      symmetries: one of the eight symmetries of a square, or of the four of an oblong image. Eight
        (four) epochs show an image in each of them once.
      horizontal_flip: mirror left and right, or not, by chance.
      vertical_flip: mirror top and bottom, or not.
      rotation_range: up to so many degrees either way.
      width_shift_range: up to this share of the width either way.
      height_shift_range: up to this share of the height either way.
      shear_range: up to so many degrees either way.
      zoom_range: z for [1 - z, 1 + z], or the two limits; below 1 shows less, larger. Height and
        width are drawn apart, as in Keras.
      fill_mode: 'reflect' or 'nearest', for what lies outside.
      brightness_range: limits of a factor, such as (0.8, 1.2); () for none.
      contrast_range: limits of a factor of the distance from mean grey; () for none.
      hed_range: s of Tellez et al. 2019: each dye times 1 ± s, plus ± s in optical density (base
        e); 0.05 is what they call light, 0.2 strong.
      stain_jitter: from 0 to 1, how far an image's colours go towards those of a slide drawn at
        random from `stain_statistics`, as in RandStainNA (Shen et al. 2022).
      stain_statistics: what the function `stain_statistics` returns for the training images.
      cutout: side of a square that is wiped out with the mean colour, as a share of each side.
      mixup: alpha of the Beta distribution of MixUp; 0 for none.
      cutmix: alpha of CutMix; with both, each image gets one or the other.
    """

    symmetries: bool = False
    horizontal_flip: bool = False
    vertical_flip: bool = False
    rotation_range: float = 0.0
    width_shift_range: float = 0.0
    height_shift_range: float = 0.0
    shear_range: float = 0.0
    zoom_range: float | tuple[float, float] = 0.0
    fill_mode: str = "reflect"
    brightness_range: tuple[float, ...] = ()
    contrast_range: tuple[float, ...] = ()
    hed_range: float = 0.0
    stain_jitter: float = 0.0
    stain_statistics: Statistics = ()
    cutout: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0

    def __post_init__(self):
        limits = {
            "rotation_range": 180.0,
            "width_shift_range": 1.0,
            "height_shift_range": 1.0,
            "shear_range": 60.0,
            "hed_range": 1.0,
            "stain_jitter": 1.0,
            "cutout": 1.0,
            "mixup": math.inf,
            "cutmix": math.inf,
        }
        for key, limit in limits.items():
            value = getattr(self, key)
            if not 0 <= value <= limit or math.isinf(value):
                raise InputError(f"augment.{key}={value}: expected a number from 0 to {limit:g}")
        if self.fill_mode not in ("reflect", "nearest"):
            raise InputError(f"augment.fill_mode={self.fill_mode!r}: expected reflect or nearest")
        for key in ("brightness_range", "contrast_range"):
            value = getattr(self, key)
            if value and (len(value) != 2 or not 0 <= value[0] <= value[1] < math.inf):
                raise InputError(f"augment.{key}={value}: expected (lowest, highest) factor or ()")
        low, high = self.zoom
        if not 0 < low <= high < math.inf:
            raise InputError(f"augment.zoom_range={self.zoom_range}: expected 0 to below 1, or two")
        shape = np.shape(self.stain_statistics)
        if shape not in ((0,), (4, 3)) or (self.stain_jitter and shape == (0,)):
            raise InputError(
                "augment.stain_statistics: stain_jitter needs four times three numbers, those that "
                "stain_statistics(training images) returns"
            )

    @property
    def zoom(self) -> tuple[float, float]:
        """The limits of the zoom."""
        if isinstance(self.zoom_range, tuple):
            return self.zoom_range if len(self.zoom_range) == 2 else (math.nan, math.nan)
        return 1 - self.zoom_range, 1 + self.zoom_range

    @property
    def active(self) -> bool:
        """Whether a view may differ from its image."""
        colours = (self.brightness_range, self.contrast_range)
        strengths = (
            *(self.symmetries, self.horizontal_flip, self.vertical_flip, self.rotation_range),
            *(self.width_shift_range, self.height_shift_range, self.shear_range, self.hed_range),
            *(self.stain_jitter, self.cutout, self.mixup, self.cutmix),
        )
        return any(strengths) or self.zoom != (1, 1) or any(c not in ((), (1, 1)) for c in colours)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "AugmentSettings":
        """The settings of a configuration.

        Raises:
          InputError: a key that there is not, or a value that makes no sense.
        """
        known = [field.name for field in dataclasses.fields(cls)]
        values = {key: _frozen(config[key]) for key in config}
        for key in values.keys() - set(known):
            raise InputError(f"augment.{key}: no such setting; there are {', '.join(known)}")
        try:
            return cls(**values)
        except TypeError as error:
            raise InputError(f"augment: {error}; expected numbers") from error


def settings_for(config: Mapping[str, Any], dataset: Dataset, rows: np.ndarray) -> AugmentSettings:
    """The settings of `config.augment`, with what they need to know of the training images.

    Args:
      config: keys of `AugmentSettings`; `views`, which is not about how a view looks, is left to
        the trainer.
      dataset: where the images are.
      rows: the training side, from some of which `stain_statistics` are taken if `stain_jitter`
        is wanted and they are not given.

    Raises:
      InputError: as `AugmentSettings.from_config`.
    """
    wanted = {key: config[key] for key in config if key != "views"}
    if wanted.get("stain_jitter") and not wanted.get("stain_statistics"):
        some = rows[np.unique(np.linspace(0, len(rows) - 1, _LOOKED_AT).astype(int))]
        wanted["stain_statistics"] = stain_statistics(dataset.images[some])
    return AugmentSettings.from_config(wanted)


@functools.partial(jax.jit, static_argnames="settings")
def augment(
    images: jax.Array, ids: jax.Array, *, seed: Any, epoch: Any, settings: AugmentSettings
) -> jax.Array:
    """A view of each image. MixUp and CutMix are not among it: see `mix`.

    Args:
      images: uint8 [B, H, W, 3].
      ids: int32 [B], the row of each image in its data set.
      seed: of the run.
      epoch: a number that differs between passes over the data, or one for each image, int32 [B].
      settings: how far views may go; static under jit.

    Returns:
      uint8 [B, H, W, 3], so that a view is an image like any other. With settings of no strength
      the images themselves.
    """
    view = functools.partial(_view, settings)
    turns = _turns(settings, images.shape, seed, epoch, ids)
    return jax.vmap(view)(images, _keys(seed, epoch, ids), turns)


@functools.partial(jax.jit, static_argnames="settings")
def mix(
    images: jax.Array,
    targets: jax.Array,
    ids: jax.Array,
    *,
    seed: Any,
    epoch: Any,
    settings: AugmentSettings,
) -> tuple[jax.Array, jax.Array]:
    """MixUp and CutMix: each image with its neighbour in the batch, which a shuffled epoch draws.

    Args:
      images: [B, H, W, 3], 0 to 255.
      targets: float [B, K], one-hot or soft.
      ids: as for `augment`.
      seed: as for `augment`.
      epoch: as for `augment`.
      settings: of which `mixup` and `cutmix` count.

    Returns:
      (float32 images, float32 targets), each target mixed in the shares of its image.
    """
    images, targets = images.astype(jnp.float32), targets.astype(jnp.float32)
    if not settings.mixup and not settings.cutmix:
        return images, targets
    others = jnp.roll(images, 1, axis=0)
    keys = _keys(seed, epoch, ids)
    mixed, share = jax.vmap(functools.partial(_mixed, settings))(images, others, keys)
    share = share[:, None]
    return mixed, share * targets + (1 - share) * jnp.roll(targets, 1, axis=0)


def stain_statistics(images: np.ndarray, limit: int = _LOOKED_AT) -> Statistics:
    """How colours vary between images: what `AugmentSettings.stain_statistics` wants.

    Args:
      images: uint8 [N, H, W, 3], the training images.
      limit: at most so many of them are looked at, evenly spread.

    Returns:
      Of the means of L, a and b in each image their mean and their standard deviation, then the
      same of the standard deviations.
    """
    some = np.unique(np.linspace(0, len(images) - 1, min(limit, len(images))).astype(int))
    of_one = jax.jit(
        lambda image: pixels.moments(pixels.rgb_to_lab(image.astype(jnp.float32) / 255))
    )
    found = np.array([of_one(images[row]) for row in some])  # [N, 2, 3]
    numbers = (found[:, 0].mean(0), found[:, 0].std(0), found[:, 1].mean(0), found[:, 1].std(0))
    return tuple(tuple(float(x) for x in triple) for triple in numbers)  # type: ignore[misc]


def _keys(seed: Any, epoch: Any, ids: jax.Array) -> jax.Array:
    def key(number: jax.Array, row: jax.Array) -> jax.Array:
        return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), number), row)

    return jax.vmap(key)(jnp.broadcast_to(epoch, ids.shape), ids)


def _turns(
    settings: AugmentSettings, shape: tuple[int, ...], seed: Any, epoch: Any, ids: jax.Array
) -> jax.Array:
    """The symmetry of each image: every one of them once in as many views, beginning anywhere."""
    if not settings.symmetries:
        return jnp.zeros(ids.shape, jnp.int32)
    count = 8 if shape[1] == shape[2] else 4
    key = jax.random.fold_in(jax.random.key(seed), _SYMMETRY)
    first = jax.vmap(lambda row: jax.random.randint(jax.random.fold_in(key, row), (), 0, count))
    return (first(ids) + jnp.broadcast_to(epoch, ids.shape)) % count


def _view(
    settings: AugmentSettings, image: jax.Array, key: jax.Array, symmetry: jax.Array
) -> jax.Array:
    def draw(number: int, low: float, high: float, shape: tuple[int, ...] = ()) -> jax.Array:
        return jax.random.uniform(jax.random.fold_in(key, number), shape, minval=low, maxval=high)

    x = _warp(settings, image, jax.random.fold_in(key, _GEOMETRY), symmetry)
    if settings.hed_range:
        reach = settings.hed_range
        change = draw(_HED, -reach, reach, (2, 3))
        x = pixels.hed_jitter(x, 1 + change[0], change[1])
    if settings.stain_jitter:
        x = _stain_jitter(settings, x, jax.random.fold_in(key, _STAIN))
    if settings.brightness_range not in ((), (1, 1)):
        x = x * draw(_BRIGHTNESS, *_limits(settings.brightness_range))
    if settings.contrast_range not in ((), (1, 1)):
        x = jnp.clip(x, 0, 255)
        grey = (x @ jnp.array([0.299, 0.587, 0.114])).mean()
        x = grey + (x - grey) * draw(_CONTRAST, *_limits(settings.contrast_range))
    if settings.cutout:
        x = x.astype(jnp.float32)
        middle = draw(_CUTOUT, 0.0, 1.0, (2,))
        inside = pixels.box(x.shape, middle, jnp.float32(settings.cutout))
        x = jnp.where(inside, x.mean((0, 1)), x)
    if x.dtype == jnp.uint8:
        return x
    return jnp.clip(jnp.round(x), 0, 255).astype(jnp.uint8)


def _warp(
    settings: AugmentSettings, image: jax.Array, key: jax.Array, symmetry: jax.Array
) -> jax.Array:
    """Draws the geometric chain as one matrix and one shift, and looks the pixels up once."""
    height, width, _ = image.shape
    choice, angle, shear, zoom, move = jax.random.split(key, 5)
    turned = jnp.eye(2)
    flips = settings.horizontal_flip or settings.vertical_flip
    if settings.symmetries:
        turned = jnp.asarray(SYMMETRIES)[symmetry]
    elif flips:
        coins = jax.random.bernoulli(choice, shape=(2,))
        wanted = jnp.array([settings.vertical_flip, settings.horizontal_flip])
        turned = jnp.diag(jnp.where(coins & wanted, -1.0, 1.0))
    bends = settings.rotation_range or settings.shear_range or settings.zoom != (1, 1)
    if bends or settings.width_shift_range or settings.height_shift_range:
        # As in Keras: what is shown at an output pixel lies at rotation · shift · shear · zoom.
        turn, lean = (
            jnp.radians(jax.random.uniform(k, minval=-reach, maxval=reach))
            for k, reach in ((angle, settings.rotation_range), (shear, settings.shear_range))
        )
        low, high = settings.zoom
        scale = jax.random.uniform(zoom, (2,), minval=low, maxval=high)
        reach = jnp.array(
            [settings.height_shift_range * height, settings.width_shift_range * width]
        )
        shift = reach * jax.random.uniform(move, (2,), minval=-1.0)
        rotation = jnp.array([[jnp.cos(turn), -jnp.sin(turn)], [jnp.sin(turn), jnp.cos(turn)]])
        shearing = jnp.array([[1.0, -jnp.sin(lean)], [0.0, jnp.cos(lean)]])
        matrix = _product(_product(_product(turned, rotation), shearing), jnp.diag(scale))
        return pixels.sample(
            image,
            matrix,
            _product(turned, _product(rotation, shift[:, None]))[:, 0],
            settings.fill_mode,
        )
    if settings.symmetries or flips:
        return pixels.sample(image, turned, jnp.zeros(2), settings.fill_mode, interpolate=False)
    return image


def _stain_jitter(settings: AugmentSettings, x: jax.Array, key: jax.Array) -> jax.Array:
    """Brings the mean and spread of L, a and b part of the way to those of a slide at random."""
    lab = pixels.rgb_to_lab(jnp.clip(x.astype(jnp.float32) / 255, 0, 1))
    mean, spread = pixels.moments(lab)
    centre = jnp.array(settings.stain_statistics, jnp.float32)
    drawn = centre[::2] + centre[1::2] * jax.random.normal(key, (2, 3))
    goal = jnp.maximum(drawn[1], 0.1 * centre[2])
    new_mean = mean + settings.stain_jitter * (drawn[0] - mean)
    new_spread = spread + settings.stain_jitter * (goal - spread)
    # An almost empty tile has no spread to stretch: its noise would become colour.
    ratio = jnp.clip(new_spread / jnp.maximum(spread, 1e-3), 0.25, 4.0)
    return 255 * pixels.lab_to_rgb((lab - mean) * ratio + new_mean)


def _mixed(
    settings: AugmentSettings, image: jax.Array, other: jax.Array, key: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The mixture, and the share of `image` in it."""
    key_coin, key_up, key_cut, key_place = jax.random.split(jax.random.fold_in(key, _MIX), 4)
    up, cut = (image, jnp.float32(1)), (image, jnp.float32(1))
    if settings.mixup:
        share = jax.random.beta(key_up, settings.mixup, settings.mixup)
        up = share * image + (1 - share) * other, share
    if settings.cutmix:
        share = jax.random.beta(key_cut, settings.cutmix, settings.cutmix)
        inside = pixels.box(image.shape, jax.random.uniform(key_place, (2,)), jnp.sqrt(1 - share))
        cut = jnp.where(inside, other, image), 1 - inside.mean(dtype=jnp.float32)
    if settings.mixup and settings.cutmix:
        coin = jax.random.bernoulli(key_coin)
        return jax.tree.map(functools.partial(jnp.where, coin), up, cut)
    return up if settings.mixup else cut


def _product(a: jax.Array, b: jax.Array) -> jax.Array:
    # An accelerator may multiply matrices in fewer bits; coordinates need all of them.
    return jnp.matmul(a, b, precision="highest")


def _limits(factors: tuple[float, ...]) -> tuple[float, float]:
    return factors[0], factors[1]


def _frozen(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return tuple(_frozen(part) for part in value)
    return value
