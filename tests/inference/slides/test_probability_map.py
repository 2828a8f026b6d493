"""The map of a slide: means over tiles, at the places where the tiles are."""

import dataclasses

import numpy as np
import pytest

from densenet_flax.inference.slides.probability_map import (
    class_color,
    color_map,
    color_scale,
    map_shape,
    mean_over_tiles,
)
from tests.helpers.slide_results import MALIGNANT, SIZE, make_result


def test_a_pixel_has_the_mean_of_the_tiles_that_cover_its_center():
    result = make_result(stride=0.4)
    grid, values = result.grid, np.random.default_rng(0).uniform(size=len(result.grid))
    shape = (61, 97)
    computed = mean_over_tiles(grid, SIZE, values, shape)
    expected = np.full(shape, np.nan)
    for i in range(shape[0]):
        for j in range(shape[1]):
            y, x = (i + 0.5) * SIZE[0] / shape[0], (j + 0.5) * SIZE[1] / shape[1]
            covers = (grid.y <= y) & (y < grid.y + grid.field_px[0])
            covers &= (grid.x <= x) & (x < grid.x + grid.field_px[1])
            if covers.any():
                expected[i, j] = values[covers].mean()
    np.testing.assert_allclose(computed, expected, rtol=1e-6)
    assert np.isnan(mean_over_tiles(grid.select(np.arange(3)), SIZE, values[:3], shape)).any()


def test_tiles_that_touch_share_no_pixel_and_leave_none_out():
    result = make_result(field_um=(7.3, 11.9))
    ones = np.ones(len(result.grid))
    for shape in (SIZE, (300, 411), (1201, 1733)):
        computed = mean_over_tiles(result.grid, SIZE, ones, shape)
        height, width = (n * s / size for n, s, size in zip((880, 1270), shape, SIZE, strict=True))
        np.testing.assert_array_equal(computed[: int(height), : int(width)], 1)


@pytest.mark.parametrize("stride", [1.0, 0.5, 0.31])
def test_the_map_does_not_drift_from_the_slide(stride):
    """At every corner: what is drawn malignant is at the same place in the map."""
    result = make_result(stride=stride)
    grid = result.grid
    values = result.prediction.calibrated[:, 1]
    for shape in (map_shape(grid, SIZE), (257, 801)):
        is_positive = mean_over_tiles(grid, SIZE, values, shape) >= 0.5
        scale = np.divide(SIZE, shape)
        for top, left, bottom, right in MALIGNANT:
            middle = ((top + bottom) / 2, (left + right) / 2)
            row, column = (np.array(middle) / scale).astype(int)
            near = [
                (np.array(box) / scale).astype(int) for box in ((top - 99, 0), (bottom + 99, 0))
            ]
            rows = np.flatnonzero(is_positive[max(0, near[0][0]) : near[1][0], column])
            rows = rows + max(0, near[0][0])
            start, end = max(0, int((left - 99) / scale[1])), int((right + 99) / scale[1])
            columns = start + np.flatnonzero(is_positive[row, start:end])
            for pixels, edges, axis in ((rows, (top, bottom), 0), (columns, (left, right), 1)):
                error = np.array([pixels[0], pixels[-1] + 1]) * scale[axis] - edges
                assert np.abs(error).max() < grid.stride_px[axis]


def test_colors_of_two_classes_are_the_scale_and_of_more_the_likeliest_class():
    two = make_result()
    colors, covered = color_map(two.grid, SIZE, two.prediction, SIZE)
    assert (colors[150, 200] == color_scale()[255]).all()
    assert (colors[450, 650] == color_scale()[0]).all()
    assert covered[450, 650] and not covered[900, 1300]

    three = make_result(classes=("a", "b", "c"))
    colors, covered = color_map(three.grid, SIZE, three.prediction, SIZE)
    assert tuple(colors[150, 200]) == class_color(2)
    pale = 255 - 0.5 * (255 - np.array(class_color(0)))
    np.testing.assert_allclose(colors[450, 650], pale, atol=0.5)
    assert covered[450, 650] and not covered[900, 1300]

    # Independent classes: a second one alone does not say what the first is.
    present = two.prediction.probability >= 0.5
    several = dataclasses.replace(two.prediction, present=present)
    colors, _ = color_map(two.grid, SIZE, several, SIZE)
    assert tuple(colors[150, 200]) == class_color(1)


def test_a_map_shows_each_stride_as_several_pixels_and_has_no_more_than_the_slide():
    result = make_result()
    assert map_shape(result.grid, SIZE) == SIZE
    assert map_shape(result.grid, (40_000, 80_000)) == (1024, 2048)
    many = dataclasses.replace(result.grid, shape=(300, 1000))
    assert map_shape(many, (40_000, 80_000)) == (2000, 4000)
    most = dataclasses.replace(result.grid, shape=(300, 100_000))
    assert map_shape(most, (40_000, 80_000)) == (4096, 8192)
