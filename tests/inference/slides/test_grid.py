"""The grid of tiles: it covers a slide, does not drift, and keeps what shows tissue."""

from types import SimpleNamespace

import numpy as np
import pytest

from densenet_flax import InputError
from densenet_flax.inference.slides.grid import MAX_TILES, make_grid


class Everywhere:
    def fraction(self, y, x, height, width):
        return np.ones(len(y))


class Below:
    """Tissue from a line on down."""

    def __init__(self, line):
        self.line = line

    def fraction(self, y, x, height, width):
        return np.clip((y + height - self.line) / height, 0, 1)


def slide(height, width, mpp=(0.25, 0.25)):
    return SimpleNamespace(name="s", size=(height, width), mpp=mpp)


@pytest.mark.parametrize("stride", [1.0, 0.5, 0.3])
@pytest.mark.parametrize("size", [(1000, 1500), (923, 1401), (920, 1400), (921, 1400)])
def test_every_pixel_is_in_a_tile_and_no_tile_is_outside(size, stride):
    grid = make_grid(slide(*size), (230.0, 350.0), Everywhere(), stride=stride)
    assert grid.field_px == (920, 1400) and len(grid) == grid.shape[0] * grid.shape[1]
    for starts, length, field in zip((grid.y, grid.x), size, grid.field_px, strict=True):
        starts = np.unique(starts)
        assert starts[0] == 0 and starts[-1] < length <= starts[-1] + field + 0.5
        assert np.all(np.diff(starts) <= field)


def test_places_do_not_drift_over_a_hundred_thousand_columns():
    grid = make_grid(slide(300, 10_000_000, (0.2527, 0.2527)), (25.3, 25.3), Everywhere())
    field = 25.3 / 0.2527
    assert grid.shape[1] > 99_000
    # Each place is one product, exact but for its own rounding.
    assert np.array_equal(grid.x, grid.columns * field)
    assert grid.columns[-1] == grid.shape[1] - 1


def test_a_field_of_another_shape_and_pixels_that_are_not_square():
    grid = make_grid(slide(400, 800, (0.5, 0.25)), (100.0, 100.0), Everywhere())
    assert grid.field_px == (200, 400) and grid.shape == (2, 2)


def test_tiles_with_enough_tissue_are_kept():
    grid = make_grid(slide(400, 400), (25.0, 25.0), Below(150), min_tissue=0.5)
    assert grid.shape == (4, 4)
    assert set(grid.rows) == {1, 2, 3}  # of row 1 just a half is tissue
    assert set(make_grid(slide(400, 400), (25.0, 25.0), Below(150), min_tissue=0.51).rows) == {2, 3}
    # With 0 those that show any.
    assert set(make_grid(slide(400, 400), (25.0, 25.0), Below(199), min_tissue=0).rows) == {1, 2, 3}
    part = grid.select(grid.rows == 2)
    assert (len(part), set(part.y), part.field_px) == (4, {200.0}, grid.field_px)


def test_what_makes_no_grid_is_one_line():
    with pytest.raises(InputError, match=r"no tile shows 50% tissue, the most is 10%.*--tissue"):
        make_grid(slide(400, 400), (25.0, 25.0), Below(390))
    with pytest.raises(InputError, match=f"at most {MAX_TILES}.*--stride"):
        make_grid(slide(2**20, 2**20), (25.0, 25.0), Everywhere())
