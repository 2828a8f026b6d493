"""Slides in memory, with what a file may have: levels, damaged parts, an end in the middle."""

from pathlib import Path

import numpy as np
from PIL import Image

from densenet_flax.common.errors import InputError
from densenet_flax.inference.slides.slide import Slide


class ArrayReader:
    """A `SlideReader` of arrays, the finest first; `damaged` are rectangles of level 0."""

    def __init__(self, levels, path="slide.tif", damaged=()):
        self.path, self._levels, self._damaged = Path(path), levels, damaged
        self.level_sizes = tuple(level.shape[:2] for level in levels)
        self.level_downsamples = tuple(
            (levels[0].shape[0] / h, levels[0].shape[1] / w) for h, w in self.level_sizes
        )
        self.resolutions, self.objective_power = {}, None
        self.read_count = 0

    def read(self, level, y, x, height, width):
        self.read_count += 1
        pixels = np.full((height, width, 3), 255, np.uint8)
        down = self.level_downsamples[level]
        for top, left, bottom, right in self._damaged:
            if not (
                (y + height) * down[0] <= top
                or bottom <= y * down[0]
                or (x + width) * down[1] <= left
                or right <= x * down[1]
            ):
                raise InputError(f"{self.path}: is damaged at y={y}, x={x}")
        inside = self._levels[level][max(y, 0) : y + height, max(x, 0) : x + width]
        top, left = max(-y, 0), max(-x, 0)
        pixels[top : top + inside.shape[0], left : left + inside.shape[1]] = inside
        return pixels

    def close(self):
        pass


def draw_tissue(height=330, width=400, seed=0):
    """A slide with one piece of tissue, darker on its right half, that touches the lower edge."""
    rng = np.random.default_rng(seed)
    pixels = np.full((height, width, 3), 248, np.uint8)
    top, left, right = height // 8, width // 8, width * 7 // 8
    shape = height - top, right - left
    tissue = rng.integers(120, 200, (*shape, 3))
    tissue[:, shape[1] // 2 :] -= 90
    tissue[..., 1] //= 2  # as colored as a stain
    pixels[top:, left:right] = tissue
    return pixels


def make_slide(levels, mpp=(1.0, 1.0), path="slide.tif", damaged=()):
    reader = ArrayReader(levels, path, damaged)
    return Slide(reader, reader.path.stem, reader.path, mpp, "flag")


def save_slide(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path
