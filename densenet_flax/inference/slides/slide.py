"""An opened slide with its resolution: what is read of it, at which detail."""

import dataclasses
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np
from absl import logging
from jaxtyping import UInt8
from PIL import Image

from densenet_flax.common.errors import InputError
from densenet_flax.common.prefetch import prefetch
from densenet_flax.inference.slides.reader import SlideReader, open_reader
from densenet_flax.inference.slides.resolution import Mpp, check_mpp, resolve_mpp

# A level may be this much coarser than asked for: levels are rarely at exactly the resolution of
# the training tiles, and the next finer one has four to sixteen times the pixels.
_TOLERANCE = 1.05
_BLOCK_PIXELS = 2**22  # that are read at a time for the overview
_DEPTH = 8  # how many such parts are read before the first of them is used
# Top, bottom, left and right of a part of the overview.
_Block: TypeAlias = tuple[int, int, int, int]


class Overview(NamedTuple):
    """A whole slide in one small image.

    Attributes:
      pixels: RGB.
      downsample: (y, x), the size of one of its pixels in pixels of level 0.
    """

    pixels: UInt8[np.ndarray, "h w 3"]
    downsample: tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Slide:
    """An opened slide whose resolution is known.

    Positions are (y, x) in pixels of level 0, as floats where they need not be whole.

    Attributes:
      reader: reads its pixels.
      name: of the file, without folder and ending.
      path: of the file.
      mpp: micrometers per pixel of level 0, (y, x).
      mpp_source: 'flag' if it was given with --mpp, else 'file'.
    """

    reader: SlideReader
    name: str
    path: Path
    mpp: Mpp
    mpp_source: str
    _damaged_levels: set[int] = dataclasses.field(default_factory=set, repr=False, compare=False)

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of level 0 in pixels."""
        return self.reader.level_sizes[0]

    @property
    def size_um(self) -> tuple[float, float]:
        """(height, width) in micrometers."""
        return self.size[0] * self.mpp[0], self.size[1] * self.mpp[1]

    def level_mpp(self, level: int) -> Mpp:
        """Micrometers per pixel of a level, (y, x)."""
        down = self.reader.level_downsamples[level]
        return self.mpp[0] * down[0], self.mpp[1] * down[1]

    def best_level(self, mpp: Mpp) -> int:
        """The coarsest level that has the detail of `mpp` in both directions, or else level 0."""
        levels = range(len(self.reader.level_sizes))
        fine_enough = [
            level
            for level in levels
            if all(a <= b * _TOLERANCE for a, b in zip(self.level_mpp(level), mpp, strict=True))
        ]
        return max(fine_enough, key=self.level_mpp, default=0)

    def read_region(
        self, y: float, x: float, height: float, width: float, mpp: Mpp
    ) -> UInt8[np.ndarray, "h w 3"]:
        """Reads a rectangle as the pixels of the level that suits a resolution.

        It begins and ends at whole pixels of that level: its place is rounded, and its size in
        pixels is the same wherever it lies. What is beyond the slide is white. If the level is
        damaged there, the next finer one is read, whose pixels are more and smaller.

        Args:
          y: top, in pixels of level 0.
          x: left.
          height: in pixels of level 0.
          width: in pixels of level 0.
          mpp: as for `best_level`.

        Raises:
          InputError: that part of the file is damaged in all of these levels.
        """
        best = self.best_level(mpp)
        for level in range(best, -1, -1):
            down_y, down_x = self.reader.level_downsamples[level]
            size = max(1, round(height / down_y)), max(1, round(width / down_x))
            try:
                return self.reader.read(level, round(y / down_y), round(x / down_x), *size)
            except InputError as error:
                if not level:
                    raise
                if level not in self._damaged_levels:
                    self._damaged_levels.add(level)
                    logging.warning("%s; a finer level is read there", error)
        raise AssertionError("level 0 is always read")

    def overview(self, max_side: int = 2048) -> Overview:
        """Reads the whole slide, reduced so that its longer side has `max_side` pixels at most.

        Memory does not depend on the slide. A damaged part is read from a finer level; where that
        is damaged, too, it stays white, and a warning says so.
        """
        height, width = self.size
        scale = max(1.0, max(height, width) / max_side)
        shape = max(1, round(height / scale)), max(1, round(width / scale))
        down = height / shape[0], width / shape[1]
        level = self.best_level((self.mpp[0] * down[0], self.mpp[1] * down[1]))
        pixels = np.full((*shape, 3), 255, np.uint8)
        blocks, damaged = list(self._blocks(shape, level)), []

        def read(block: _Block) -> UInt8[np.ndarray, "h w 3"] | InputError:
            try:
                return self._reduced(level, down, block)
            except InputError as error:
                return error

        for block, part in zip(blocks, prefetch(read, blocks, depth=_DEPTH), strict=True):
            if isinstance(part, InputError):
                damaged.append(part)
            else:
                top, bottom, left, right = block
                pixels[top:bottom, left:right] = part
        if len(damaged) == len(blocks):
            raise damaged[0]
        if damaged:
            logging.warning(
                "%d of %d parts of the overview are damaged and stay white, such as: %s",
                *(len(damaged), len(blocks), damaged[0]),
            )
        return Overview(pixels, down)

    def _blocks(self, shape: tuple[int, int], level: int) -> Iterator[_Block]:
        """Top, bottom, left and right of the parts of an overview that are read at a time."""
        height, width = self.reader.level_sizes[level]
        per_pixel = (height / shape[0]) * (width / shape[1])
        side = max(1, min(256, math.isqrt(int(_BLOCK_PIXELS / per_pixel))))
        for top in range(0, shape[0], side):
            for left in range(0, shape[1], side):
                yield top, min(top + side, shape[0]), left, min(left + side, shape[1])

    def _reduced(
        self, level: int, down: tuple[float, float], block: _Block
    ) -> UInt8[np.ndarray, "h w 3"]:
        """A block of the overview, from a level or, where that is damaged, a finer one."""
        top, bottom, left, right = block
        try:
            scale = tuple(
                d / s for d, s in zip(down, self.reader.level_downsamples[level], strict=True)
            )
            box = left * scale[1], top * scale[0], right * scale[1], bottom * scale[0]
            x, y = math.floor(box[0]), math.floor(box[1])
            rows, columns = self.reader.level_sizes[level]
            height = max(1, min(math.ceil(box[3]), rows) - y)
            width = max(1, min(math.ceil(box[2]), columns) - x)
            image = Image.fromarray(self.reader.read(level, y, x, height, width))
            inside = (
                box[0] - x,
                box[1] - y,
                min(box[2] - x, float(width)),
                min(box[3] - y, float(height)),
            )
            size = right - left, bottom - top
            return np.asarray(image.resize(size, Image.Resampling.BOX, box=inside))
        except InputError:
            if not level:
                raise
            return self._reduced(level - 1, down, block)

    def close(self) -> None:
        """Closes the file."""
        self.reader.close()

    def __enter__(self) -> "Slide":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_slide(path: str | os.PathLike[str], mpp: Mpp | float | None = None) -> Slide:
    """Opens a slide, or an image of a usual format as a slide of one level.

    Args:
      path: a file of any format that OpenSlide reads, the folder of a DICOM slide, or an image.
      mpp: micrometers per pixel of level 0, one number or (y, x); instead of what the file states.

    Raises:
      InputError: it cannot be read, or nothing says how large its pixels are.
    """
    path = Path(path).expanduser()
    given = None if mpp is None else check_mpp(mpp)
    reader = open_reader(path)
    try:
        if given is None:
            resolved = resolve_mpp(path, reader.resolutions, reader.objective_power)
            return Slide(reader, path.stem, path, resolved, "file")
    except InputError:
        reader.close()
        raise
    stated = ", ".join(f"{k} says {v[1]:.4g}" for k, v in reader.resolutions.items())
    logging.info(
        "%s: %.4g by %.4g µm per pixel as given with --mpp; %s",
        path,
        *given,
        stated or "the file states none",
    )
    return Slide(reader, path.stem, path, given, "flag")
