"""Pictures of maps over images."""

import io

import numpy as np
from PIL import Image

from densenet_flax.inference.overlay import (
    draw_panel,
    overlay_map,
    relative_strength,
    shrink_to_display,
    to_png,
    upsample,
)

IMAGE = np.full((40, 60, 3), (200, 120, 180), np.uint8)


def test_only_positive_values_are_colored():
    values = np.array([[5.0, 0.0, -3.0]])
    change = np.abs(overlay_map(IMAGE, values).astype(int) - IMAGE).sum(-1)
    assert change[20, 5] > 100 and change[20, -1] == 0
    assert np.all(np.diff(np.abs(upsample(relative_strength(values), (40, 60)))[20]) <= 0)
    for nothing_positive in (-np.ones((2, 2)), np.zeros((2, 2))):
        assert np.array_equal(overlay_map(IMAGE, nothing_positive), IMAGE)


def test_the_contour_runs_at_half_the_maximum():
    values = np.zeros((8, 12))
    values[2:5, 3:7] = 1.0
    contour = (overlay_map(IMAGE, values) == 255).all(-1)
    strength = upsample(relative_strength(values), (40, 60))
    assert contour.any() and strength[contour].min() >= 0.5 and strength[contour].max() < 0.9
    assert not contour[:5].any()


def test_each_position_of_a_map_lies_over_its_part_of_the_image():
    values = np.zeros((4, 6))
    values[3, 1] = 1
    row, column = np.unravel_index(upsample(values, (40, 60)).argmax(), (40, 60))
    assert 30 <= row < 40 and 10 <= column < 20


def test_a_panel_shows_image_overlay_scale_and_caption():
    beside, below = (draw_panel(IMAGE, np.ones((1, 1)), stacked=way) for way in (False, True))
    assert beside.size[0] > 2 * 240 and beside.size[1] == 160  # four times as large as the tile
    assert below.size[0] < 400 and below.size[1] > 2 * 160
    assert np.array_equal(np.asarray(below)[:160, :240].reshape(-1, 3).max(0), (200, 120, 180))
    assert Image.open(io.BytesIO(to_png(below))).size == below.size
    captioned = np.asarray(draw_panel(IMAGE, np.ones((1, 1)), caption="called benign"))
    assert np.array_equal(captioned[:160], np.asarray(beside))
    assert captioned.shape[0] == 182
    assert captioned[160:, :100].min() < 100 and captioned[160:, 300:].min() == 255


def test_the_scale_has_the_colors_of_the_overlay():
    panel = np.asarray(draw_panel(IMAGE, np.ones((1, 1)))).astype(int)
    bar = panel[:, 2 * 240 + 8 + 8 + 4]  # right of both tiles and the gaps
    assert np.abs(bar[-1] - IMAGE[0, 0]).max() <= 2  # none: the tissue alone
    strongest = overlay_map(IMAGE, np.ones((1, 1)))[20, 30]
    assert np.abs(bar[0] - strongest).max() <= 2


def test_large_images_are_shown_smaller():
    large = np.zeros((3000, 100, 3), np.uint8)
    assert shrink_to_display(large).shape == (1024, 34, 3)
    assert draw_panel(large, np.ones((2, 2))).size[1] == 1024
    assert shrink_to_display(IMAGE) is IMAGE
