"""Maps over images."""

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


def test_what_speaks_for_the_class_is_coloured_and_nothing_else():
    values = np.array([[5.0, 0.0, -3.0]])
    mixed = overlay_map(IMAGE, values).astype(int)
    change = np.abs(mixed - IMAGE).sum(-1)
    assert change[20, 5] > 100 and change[20, -1] == 0
    assert np.all(np.diff(np.abs(upsample(relative_strength(values), (40, 60)))[20]) <= 0)
    for nothing in (-np.ones((2, 2)), np.zeros((2, 2))):
        assert np.array_equal(overlay_map(IMAGE, nothing), IMAGE)


def test_a_line_runs_around_half_the_strongest():
    values = np.zeros((8, 12))
    values[2:5, 3:7] = 1.0
    mixed = overlay_map(IMAGE, values)
    line = (mixed == 255).all(-1)
    shares = upsample(relative_strength(values), (40, 60))
    assert line.any() and shares[line].min() >= 0.5 and shares[line].max() < 0.9
    assert not line[:5].any()


def test_places_of_a_map_lie_over_their_part_of_the_image():
    values = np.zeros((4, 6))
    values[3, 1] = 1
    row, column = np.unravel_index(upsample(values, (40, 60)).argmax(), (40, 60))
    assert 30 <= row < 40 and 10 <= column < 20


def test_a_picture_shows_both_and_the_scale():
    beside, below = (draw_panel(IMAGE, np.ones((1, 1)), stacked=way) for way in (False, True))
    assert beside.size[0] > 2 * 240 and beside.size[1] == 160  # four times as large as the tile
    assert below.size[0] < 400 and below.size[1] > 2 * 160
    assert np.array_equal(np.asarray(below)[:160, :240].reshape(-1, 3).max(0), (200, 120, 180))
    assert Image.open(io.BytesIO(to_png(below))).size == below.size
    told = np.asarray(draw_panel(IMAGE, np.ones((1, 1)), caption="called benign"))
    assert np.array_equal(told[:160], np.asarray(beside))
    assert told.shape[0] == 182 and told[160:, :100].min() < 100 and told[160:, 300:].min() == 255


def test_large_images_are_shown_smaller():
    large = np.zeros((3000, 100, 3), np.uint8)
    assert shrink_to_display(large).shape == (1024, 34, 3)
    assert draw_panel(large, np.ones((2, 2))).size[1] == 1024
    assert shrink_to_display(IMAGE) is IMAGE
