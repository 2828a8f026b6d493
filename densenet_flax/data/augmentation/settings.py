"""What augmentation may do to an image: the keys of `config.augment`."""

import dataclasses
import math
from typing import TypeAlias

from jaxtyping import Array, Shaped, UInt8

from densenet_flax.common.errors import InputError
from densenet_flax.common.settings import INLINE, Settings, at_least, between, choice, setting

Image: TypeAlias = UInt8[Array, "H W 3"]
Pixels: TypeAlias = Shaped[Array, "H W 3"]  # an image on its way to a view: uint8, or float32
NO_FACTOR = ((), (1, 1))  # the limits of a factor that is switched off


def _factors() -> tuple[float, ...]:
    """A field that takes the limits of a factor; () and (1, 1) switch the operation off."""
    return setting(
        (),
        "(lowest, highest) factor or ()",
        lambda limits: not limits or (len(limits) == 2 and 0 <= limits[0] <= limits[1] < math.inf),
    )


@dataclasses.dataclass(frozen=True)
class AugmentSettings(Settings):
    """How far a view may be from its image; by default it is the image itself.

    U(a, b) is the uniform distribution. Everything is drawn for each view separately. Arguments
    have the names of Keras's `ImageDataGenerator` where it has them.

    Attributes:
      symmetries: one of the eight symmetries of a square, or of the four of an oblong image. They
        are dealt and not drawn: eight (four) successive views of an image show each once.
      horizontal_flip: mirror left and right with probability 1/2; ignored with `symmetries`.
      vertical_flip: mirror top and bottom with probability 1/2; ignored with `symmetries`.
      rotation_range: r, for an angle from U(-r, r), in degrees.
      width_shift_range: s, for a shift of U(-s, s) times the width.
      height_shift_range: s, for a shift of U(-s, s) times the height.
      shear_range: s, for a shear angle from U(-s, s), in degrees.
      zoom_range: z for U(1 - z, 1 + z), or the two limits; a factor below 1 shows less, larger.
        Height and width are drawn separately, as in Keras.
      fill_mode: what lies outside of the image: 'reflect' (d c b a | a b c d | d c b a) or
        'nearest' (a a a a | a b c d | d d d d).
      brightness_range: limits of a uniform factor on the pixels.
      contrast_range: limits of a uniform factor on the distance from the image's mean gray.
      hed_range: s of HED jitter: the amounts of hematoxylin, eosin and DAB in optical density
        (base e) are each multiplied by U(1 - s, 1 + s) and shifted by U(-s, s). Tellez et al.
        (IEEE TMI 37, 2018; Medical Image Analysis 58, 2019) call 0.05 light and 0.2 strong.
      stain_jitter: from 0 to 1, how far the mean and the standard deviation of L, a and b go
        towards those of a random slide. At 1 this is RandStainNA (Shen et al., MICCAI 2022) in
        CIELAB with normal distributions.
      stain_statistics: the parameters of these distributions, from `stain_statistics(images)`. For
        L, a and b each: mean and standard deviation of the images' means, then of their deviations.
      cutout: size of a square, as a share of the image's size, that is wiped out with the mean
        color (DeVries and Taylor, arXiv:1708.04552). Its center is uniform over the image, so it
        may lie partly outside.
      mixup: alpha of MixUp (Zhang et al., ICLR 2018): the share of an image's own class is from
        Beta(alpha, alpha). 0 switches it off.
      cutmix: alpha of CutMix (Yun et al., ICCV 2019), likewise: 1 minus the share is the area of
        the box that is pasted. With both, each image gets one or the other with probability 1/2.
    """

    symmetries: bool = False
    horizontal_flip: bool = False
    vertical_flip: bool = False
    rotation_range: float = between(0, 180, default=0.0)
    width_shift_range: float = between(0, 1, default=0.0)
    height_shift_range: float = between(0, 1, default=0.0)
    shear_range: float = between(0, 60, default=0.0)
    zoom_range: float | tuple[float, float] = 0.0
    fill_mode: str = choice("reflect", ("reflect", "nearest"))
    brightness_range: tuple[float, ...] = _factors()
    contrast_range: tuple[float, ...] = _factors()
    hed_range: float = between(0, 1, default=0.0)
    stain_jitter: float = between(0, 1, default=0.0)
    stain_statistics: tuple[tuple[float, float, float], ...] = setting(
        (), "four times three numbers or ()", lambda statistics: len(statistics) in (0, 4)
    )
    cutout: float = between(0, 1, default=0.0)
    mixup: float = at_least(0, default=0.0, expected="a number of 0 or more")
    cutmix: float = at_least(0, default=0.0, expected="a number of 0 or more")

    def __post_init__(self) -> None:
        super().__post_init__()
        low, high = self.zoom
        if not 0 < low <= high < math.inf:
            raise InputError(
                f"zoom_range={self.zoom_range}: expected a number from 0 to below 1, or the lowest "
                "and the highest factor"
            )

    @property
    def zoom(self) -> tuple[float, float]:
        """The limits of the zoom factors."""
        zoom = self.zoom_range
        return zoom if isinstance(zoom, tuple) else (1 - zoom, 1 + zoom)

    @property
    def interpolates(self) -> bool:
        """Whether a view may show what lies between the pixels of its image."""
        shifts = self.width_shift_range or self.height_shift_range
        return bool(self.rotation_range or self.shear_range or shifts or self.zoom != (1, 1))

    @property
    def mixes(self) -> bool:
        """Whether images are mixed with others of their batch."""
        return bool(self.mixup or self.cutmix)

    @property
    def active(self) -> bool:
        """Whether a view may differ from its image."""
        geometry = (self.symmetries, self.horizontal_flip, self.vertical_flip, self.interpolates)
        factors = (self.brightness_range not in NO_FACTOR, self.contrast_range not in NO_FACTOR)
        stain = (self.hed_range, self.stain_jitter)
        return any((*geometry, *factors, *stain, self.cutout, self.mixes))


@dataclasses.dataclass(frozen=True)
class AugmentConfig(Settings):
    """The block `config.augment`.

    Attributes:
      views: how many views an image has; 0 for a new one in every epoch.
      settings: how far a view may be from its image.
    """

    views: int = at_least(
        0, default=0, expected="how many views an image has, or 0 for a new one in every epoch"
    )
    settings: AugmentSettings = dataclasses.field(default_factory=AugmentSettings, metadata=INLINE)
