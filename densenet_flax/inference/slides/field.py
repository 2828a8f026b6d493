"""The field of a network: how much tissue one of its inputs shows, in micrometers.

A network that was trained on tiles of 343 by 225 µm has to be given such tiles of a slide, whatever
the scanner's pixels are. Height and width are treated apart: tiles of 700×460 pixels that training
squeezed to 224×224 are squeezed in the same way.
"""

import dataclasses

import numpy as np
from jaxtyping import UInt8

from densenet_flax.common.errors import InputError
from densenet_flax.common.micrometers import FIELD_RANGE, are_within
from densenet_flax.inference.slides.resolution import Mpp
from densenet_flax.inference.slides.slide import Slide
from densenet_flax.weights.inference_settings import InferenceSettings


@dataclasses.dataclass(frozen=True)
class Field:
    """What one input of a network shows.

    Attributes:
      size_um: (height, width) in micrometers.
      mpp: micrometers per pixel (y, x) of the training tiles as they were on disk; if that is not
        known, of the network's input. Tiles are read with at least this detail.
      source: 'flag' if the size was given with --field, else 'network'.
    """

    size_um: tuple[float, float]
    mpp: Mpp
    source: str


def resolve_field(
    settings: InferenceSettings,
    image_size: tuple[int, int],
    given: tuple[float, float] | float | None = None,
    name: object = "the network",
) -> Field:
    """The field of a network, or the one that is given instead.

    Args:
      settings: of the network.
      image_size: (height, width) of the network's input in pixels.
      given: (height, width) in micrometers, or one number for both.
      name: of the network, for messages.

    Raises:
      InputError: it is not known, or no size.
    """
    size = settings.field_um
    if given is not None:
        height, width = (given, given) if isinstance(given, int | float) else given
        size = float(height), float(width)
        if not are_within(FIELD_RANGE, *size):
            raise InputError(
                f"--field={given}: expected height and width in micrometers, from "
                f"{FIELD_RANGE[0]:g} to {FIELD_RANGE[1]:g}"
            )
    if size is None:
        raise InputError(
            f"{name}: does not say how much tissue one of its tiles shows; give height and width "
            "in micrometers with --field=H,W, or state --config.data.mpp=… with --mode=evaluate"
        )
    mpp = settings.mpp or (size[0] / image_size[0], size[1] / image_size[1])
    return Field(size, mpp, "network" if given is None else "flag")


class FieldReader:
    """Reads tiles of one slide that show the field of a network.

    The pixels are those of the coarsest level that has the detail of the training tiles. They go
    through `Classifier.prepare` as those of a tile's file do: stain normalization, then a resize
    that averages and so does not alias.

    Attributes:
      field_px: (height, width) of the field in pixels of level 0.
      level: which level is read.
      shape: (height, width) of a tile in pixels of that level.
    """

    def __init__(self, slide: Slide, field: Field):
        """Chooses the level; InputError if the slide is smaller than the field."""
        self.slide, self.field = slide, field
        self.field_px = field.size_um[0] / slide.mpp[0], field.size_um[1] / slide.mpp[1]
        # A slide of exactly one field may miss it by the rounding of its resolution.
        if any(f > s + 0.5 for f, s in zip(self.field_px, slide.size, strict=True)):
            raise InputError(
                f"{slide.path}: shows {slide.size_um[0]:.4g}×{slide.size_um[1]:.4g} µm "
                f"(height×width), less than the {field.size_um[0]:.4g}×{field.size_um[1]:.4g} that "
                "the network sees at a time; if it is a tile, use --mode=predict, else correct "
                f"its {slide.mpp[0]:.4g} µm per pixel with --mpp"
            )
        self.level = slide.best_level(field.mpp)
        down = slide.reader.level_downsamples[self.level]
        self.shape = (
            max(1, round(self.field_px[0] / down[0])),
            max(1, round(self.field_px[1] / down[1])),
        )

    def read(self, y: float, x: float) -> UInt8[np.ndarray, "h w 3"]:
        """Reads the tile whose corner is at (y, x) of level 0; InputError if it is damaged."""
        return self.slide.read_region(y, x, *self.field_px, self.field.mpp)
