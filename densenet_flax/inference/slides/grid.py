"""Which tiles of a slide are read: those of a regular grid that show enough tissue.

A tile is one field of the network, so all are of one size. Positions are (y, x) in pixels of level
0. They are computed from a tile's row and column, never added up, so that nothing drifts.
"""

import dataclasses
import math

import numpy as np
from jaxtyping import Bool, Float, Int

from densenet_flax.common.errors import InputError
from densenet_flax.inference.slides.slide import Slide
from densenet_flax.inference.slides.tissue import TissueMask

# Of the whole grid, tissue or not: far more than a slide at high power has, and little memory.
MAX_TILES = 10_000_000
_CHUNK = 100_000  # tiles whose tissue is measured at a time
# A rest below this at the edge of a slide gets no tile: it is of the rounding of a resolution.
_REST = 0.5  # pixels


@dataclasses.dataclass(frozen=True, eq=False)
class TileGrid:
    """N tiles of a slide.

    Attributes:
      field_px: (height, width) of a tile in pixels of level 0; not whole numbers.
      stride_px: from one tile to the next below and to the right, in pixels of level 0.
      shape: rows and columns of the whole grid, with the tiles that are left out.
      rows: of each tile in the grid, from 0.
      columns: of each tile in the grid, from 0.
    """

    field_px: tuple[float, float]
    stride_px: tuple[float, float]
    shape: tuple[int, int]
    rows: Int[np.ndarray, " N"]
    columns: Int[np.ndarray, " N"]

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def y(self) -> Float[np.ndarray, " N"]:
        """The upper edge of each tile, in pixels of level 0."""
        return self.rows * self.stride_px[0]

    @property
    def x(self) -> Float[np.ndarray, " N"]:
        """The left edge of each tile, in pixels of level 0."""
        return self.columns * self.stride_px[1]

    def select(self, tiles: Int[np.ndarray, " M"] | Bool[np.ndarray, " N"]) -> "TileGrid":
        """The same grid with some of the tiles."""
        return dataclasses.replace(self, rows=self.rows[tiles], columns=self.columns[tiles])


def make_grid(
    slide: Slide,
    field_um: tuple[float, float],
    tissue: TissueMask,
    *,
    stride: float = 1.0,
    min_tissue: float = 0.5,
) -> TileGrid:
    """Lays a grid over a slide and keeps the tiles that show enough tissue, row by row.

    The first tile lies in the upper left corner. The last row and column reach over the lower and
    right edge, where a tile is white, so that no part of the slide is left out.

    Args:
      slide: its size and resolution.
      field_um: (height, width) of the field of the network in micrometers.
      tissue: where the tissue is.
      stride: from one tile to the next, as a share of the field; below 1 tiles overlap.
      min_tissue: share of a tile that has to be tissue.

    Raises:
      InputError: there are too many tiles, or none shows enough tissue.
    """
    (height, width), mpp = slide.size, slide.mpp
    field = field_um[0] / mpp[0], field_um[1] / mpp[1]
    steps = field[0] * stride, field[1] * stride
    shape = _count(height, field[0], steps[0]), _count(width, field[1], steps[1])
    if shape[0] * shape[1] > MAX_TILES:
        raise InputError(
            f"{slide.name}: {shape[0]}×{shape[1]} tiles; expected at most {MAX_TILES}; choose a "
            "larger --stride, and check --field and --mpp"
        )
    rows, columns = [], []
    largest = 0.0
    band = max(1, _CHUNK // shape[1])
    for first in range(0, shape[0], band):
        row, column = np.divmod(
            np.arange(first * shape[1], min(first + band, shape[0]) * shape[1]), shape[1]
        )
        share = tissue.fraction(row * steps[0], column * steps[1], *field)
        keep = (share >= min_tissue) & (share > 0)
        rows.append(row[keep])
        columns.append(column[keep])
        largest = max(largest, float(share.max()))
    grid = TileGrid(field, steps, shape, np.concatenate(rows), np.concatenate(columns))
    if not len(grid):
        raise InputError(
            f"{slide.name}: no tile shows {min_tissue:.0%} tissue, the most is {largest:.0%}; "
            "give a smaller --min_tissue, or the tissue itself with --tissue=FILE"
        )
    return grid


def _count(length: int, field: float, step: float) -> int:
    """How many tiles cover a length: the last one ends at its end or beyond."""
    return 1 + max(0, math.ceil((length - field - _REST) / step))
