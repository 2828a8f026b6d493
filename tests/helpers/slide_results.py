"""Slides of plain colors with results of their tiles, without a file and a network."""

import dataclasses
from pathlib import Path

import numpy as np

from densenet_flax.inference.results import Prediction
from densenet_flax.inference.slides.grid import TileGrid
from densenet_flax.inference.slides.slide import Slide
from densenet_flax.inference.slides.slide_result import SlideNetwork, SlideResult

MPP = (0.5, 0.4)
SIZE = (903, 1307)
# (top, left, bottom, right) in pixels of level 0: one near each corner of the slide.
MALIGNANT = [(60, 80, 260, 330), (80, 970, 290, 1240), (600, 90, 850, 380), (640, 1000, 840, 1210)]
TISSUE, MALIGNANT_COLOR = (230, 170, 200), (120, 60, 140)


class ArrayReader:
    """A slide of one level, in memory."""

    def __init__(self, pixels):
        self.pixels = pixels
        self.path = Path("slide.tiff")
        self.level_sizes, self.level_downsamples = (pixels.shape[:2],), ((1.0, 1.0),)
        self.resolutions, self.objective_power = {}, None

    def read(self, level, y, x, height, width):
        rows, columns = np.arange(y, y + height), np.arange(x, x + width)
        inside = ((rows >= 0) & (rows < SIZE[0]))[:, None] & ((columns >= 0) & (columns < SIZE[1]))
        region = self.pixels[np.ix_(rows.clip(0, SIZE[0] - 1), columns.clip(0, SIZE[1] - 1))]
        return np.where(inside[..., None], region, 255).astype(np.uint8)

    def close(self):
        pass


@dataclasses.dataclass
class RectangleTissue:
    """Tissue in one rectangle with a hole in it."""

    mask: np.ndarray
    downsample: tuple[float, float]

    def polygons(self):
        outer, hole = (30, 40, 880, 1270), (400, 600, 500, 700)
        return [[np.array(_corners(outer)), np.array(_corners(hole))]]


def _corners(box):
    top, left, bottom, right = box
    return [(top, left), (top, right), (bottom, right), (bottom, left)]


def make_slide(name="slide") -> Slide:
    pixels = np.full((*SIZE, 3), 255, np.uint8)
    pixels[30:880, 40:1270] = TISSUE
    for top, left, bottom, right in MALIGNANT:
        pixels[top:bottom, left:right] = MALIGNANT_COLOR
    return Slide(ArrayReader(pixels), name, Path("slide.tiff"), MPP, "file")


def make_result(
    name="slide", *, stride=1.0, classes=("benign", "malignant"), threshold=0.5, field_um=(20, 24)
) -> SlideResult:
    """Tiles whose probability is the share of malignant pixels in them."""
    field = field_um[0] / MPP[0], field_um[1] / MPP[1]
    steps = field[0] * stride, field[1] * stride
    shape = tuple(int(np.ceil((n - f) / s)) + 1 for n, f, s in zip(SIZE, field, steps, strict=True))
    rows, columns = np.divmod(np.arange(shape[0] * shape[1]), shape[1])
    grid = TileGrid(field, steps, shape, rows, columns)
    share = np.zeros(len(grid))
    for top, left, bottom, right in MALIGNANT:
        overlap = [
            (np.minimum(start + f, end) - np.maximum(start, begin)).clip(0) / f
            for start, f, begin, end in (
                (grid.y, field[0], top, bottom),
                (grid.x, field[1], left, right),
            )
        ]
        share += overlap[0] * overlap[1]
    # Without what lies beyond the tissue.
    inside = (grid.y < SIZE[0] - 23) & (grid.x < SIZE[1] - 37)
    grid, share = grid.select(inside), share[inside].clip(0, 1)
    rest = np.full((len(grid), len(classes) - 1), 1 / (len(classes) - 1)) * (1 - share[:, None])
    probability = np.concatenate([rest, share[:, None]], axis=1)
    if len(classes) == 2:
        label = (share >= threshold).astype(np.int64)
    else:
        label = probability.argmax(axis=1)
    prediction = Prediction(classes, probability, probability.copy(), label)
    mean = probability.mean(axis=0, keepdims=True)
    verdict = Prediction(classes, mean, mean.copy(), mean.argmax(axis=1))
    mask = np.zeros((91, 131), bool)
    mask[3:88, 4:127] = True
    tissue = RectangleTissue(mask, (SIZE[0] / 91, SIZE[1] / 131))
    network = SlideNetwork(
        "densenet121", classes, threshold if len(classes) == 2 else None, temperature=1.0
    )
    empty = grid.select(np.zeros(len(grid), bool))
    return SlideResult(
        name, Path("slide.tiff"), SIZE, MPP, "file", field_um, grid, prediction, verdict, "mean",
        empty, (), tissue, network,
    )  # fmt: skip
