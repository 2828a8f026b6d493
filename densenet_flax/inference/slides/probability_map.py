"""What a slide's tiles say about each place of it: the mean over the tiles that cover the place."""

import functools

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from densenet_flax.inference.results import Prediction
from densenet_flax.inference.slides.grid import TileGrid

# Of a map's longer side: enough for a screen, and never more than 100 MB in memory.
_MIN_SIDE, _MAX_SIDE = 2048, 8192
_PIXELS_PER_STRIDE = 4
# From blue over yellow to red: ColorBrewer's, for any color vision, and visible on pink tissue.
_COLORMAP = "RdYlBu_r"


def map_shape(grid: TileGrid, size: tuple[int, int]) -> tuple[int, int]:
    """Height and width of a map of a slide of `size` that shows each stride as several pixels.

    The map has the slide's aspect ratio to within half a pixel, and no more pixels than the slide.
    """
    side = min(max(_MIN_SIDE, _PIXELS_PER_STRIDE * max(grid.shape)), _MAX_SIDE)
    scale = min(1.0, side / max(size))
    height, width = (max(1, round(scale * length)) for length in size)
    return height, width


def mean_over_tiles(
    grid: TileGrid, size: tuple[int, int], values: Float[np.ndarray, " N"], shape: tuple[int, int]
) -> Float[np.ndarray, "h w"]:
    """The mean value of the tiles that cover the center of each pixel of a map.

    Args:
      grid: the tiles.
      size: (height, width) of the slide in pixels of level 0.
      values: one of each tile.
      shape: (height, width) of the map, which shows the whole slide.

    Returns:
      float32; NaN where no tile is.
    """
    count = _sum_over_tiles(grid, size, None, shape)
    total = _sum_over_tiles(grid, size, values, shape)
    mean = np.full(shape, np.nan, np.float32)
    np.divide(total, count, out=mean, where=count > 0, casting="same_kind")
    return mean


def _sum_over_tiles(
    grid: TileGrid,
    size: tuple[int, int],
    values: Float[np.ndarray, " N"] | None,
    shape: tuple[int, int],
) -> Float[np.ndarray, "h w"]:
    """Sums values, or counts tiles, by cumulative sums of what begins and ends in each pixel."""
    height, width = shape
    top, bottom = _covered(grid.y, grid.field_px[0], size[0] / height, height)
    left, right = _covered(grid.x, grid.field_px[1], size[1] / width, width)
    # Whole numbers count exactly, so that a place without tiles has a count of exactly 0.
    edges = np.zeros((height + 1, width + 1), np.int32 if values is None else np.float64)
    weight = 1 if values is None else values
    np.add.at(edges, (top, left), weight)
    np.add.at(edges, (bottom, right), weight)
    np.subtract.at(edges, (top, right), weight)
    np.subtract.at(edges, (bottom, left), weight)
    return edges.cumsum(axis=0).cumsum(axis=1)[:height, :width]


def _covered(
    start: Float[np.ndarray, " N"], length: float, downsample: float, pixels: int
) -> tuple[Int[np.ndarray, " N"], Int[np.ndarray, " N"]]:
    """The first pixel whose center each tile covers, and the first behind them.

    The center of pixel i lies at (i + 1/2) · downsample. Tiles that touch share no pixel and leave
    none out, although the end of one may differ from the start of the next in the last digit.
    """
    first, end = (
        np.ceil(np.round(edge / downsample - 0.5, 6)).clip(0, pixels).astype(np.int64)
        for edge in (start, start + length)
    )
    return first, end


@functools.cache
def color_scale() -> UInt8[np.ndarray, "256 3"]:
    """The color of each probability from 0 to 1, in steps of 1/255."""
    from matplotlib import colormaps  # imported when first used: it is slow to import

    return np.rint(255 * colormaps[_COLORMAP](np.arange(256))[:, :3]).astype(np.uint8)


# Okabe and Ito's colors, which differ with any color vision; the order that figures use them in.
_CLASS_COLORS = (
    (0, 114, 178),
    (213, 94, 0),
    (0, 158, 115),
    (204, 121, 167),
    (240, 228, 66),
    (86, 180, 233),
    (230, 159, 0),
)


def class_color(index: int) -> tuple[int, int, int]:
    """The color of a class: of two, blue is the negative and vermilion the positive one."""
    return _CLASS_COLORS[index % len(_CLASS_COLORS)]


def is_binary(prediction: Prediction) -> bool:
    """Whether one probability, the positive class's, says all."""
    return len(prediction.class_names) == 2 and prediction.present is None


def color_map(
    grid: TileGrid, size: tuple[int, int], prediction: Prediction, shape: tuple[int, int]
) -> tuple[UInt8[np.ndarray, "h w 3"], Bool[np.ndarray, "h w"]]:
    """The colors of a map, and where tiles are.

    Of two classes the color is the positive class's probability, by `color_scale`. Of more it is
    that of the class with the highest mean, the paler the lower the mean is.
    """
    probability = prediction.calibrated
    if is_binary(prediction):
        mean = mean_over_tiles(grid, size, probability[:, 1], shape)
        covered = ~np.isnan(mean)
        steps = np.rint(255 * np.nan_to_num(mean)).astype(np.uint8)
        return color_scale()[steps], covered
    highest = np.full(shape, -1, np.float32)
    colors = np.empty((*shape, 3), np.uint8)
    for index, column in enumerate(probability.T):
        mean = mean_over_tiles(grid, size, column, shape)
        is_higher = mean > highest  # not where it is NaN
        pale = 255 - mean[is_higher, None] * (255 - np.array(class_color(index), np.float32))
        colors[is_higher], highest[is_higher] = np.rint(pale), mean[is_higher]
    return colors, highest >= 0
