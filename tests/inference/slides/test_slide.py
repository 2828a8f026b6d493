"""Levels, rectangles and the overview of a slide."""

import logging
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from densenet_flax.common.errors import InputError
from densenet_flax.inference.slides.slide import Slide, open_slide
from tests.inference.slides.test_reader import damage


class GivenLevels:
    """A reader of arrays, which remembers what was read."""

    path = Path("a.svs")
    objective_power = None

    def __init__(self, sizes):
        self.level_sizes, self.resolutions = sizes, {}
        self.level_downsamples = tuple((sizes[0][0] / h, sizes[0][1] / w) for h, w in sizes)
        self.reads = []

    def read(self, level, y, x, height, width):
        self.reads.append((level, y, x, height, width))
        return np.zeros((height, width, 3), np.uint8)

    def close(self):
        pass


def slide_of(reader, mpp):
    return Slide(reader, "a", reader.path, mpp, "file")


@pytest.mark.parametrize(
    "mpp,level",
    [(0.1, 0), (0.25, 0), (0.9, 0), (0.97, 1), (1.0, 1), (3.9, 2), (100, 2)],
)
def test_the_coarsest_level_with_the_detail_is_read(mpp, level):
    slide = slide_of(GivenLevels(((8000, 8000), (2000, 2000), (500, 500))), (0.25, 0.25))
    assert slide.best_level((mpp, mpp)) == level
    # The finer direction decides.
    assert slide.best_level((mpp, 100)) == slide.best_level((100, mpp)) == level


def test_a_rectangle_has_one_size_wherever_it_lies():
    reader = GivenLevels(((8000, 8000), (2000, 2000)))
    slide = slide_of(reader, (0.25, 0.25))
    for i in range(50):
        slide.read_region(i * 921.3, i * 37.7, 921.3, 1401.2, (1, 1))
    assert {read[3:] for read in reader.reads} == {(230, 350)}
    # Its place is that of its corner to half a pixel: errors do not add up.
    for i, (level, y, x, *_) in enumerate(reader.reads):
        assert level == 1
        assert abs(4 * y - i * 921.3) <= 2 and abs(4 * x - i * 37.7) <= 2


def test_the_overview_is_the_slide(slide_file, slide_world):
    slide = open_slide(slide_file)
    pixels, downsample = slide.overview(200)
    assert pixels.shape == (150, 200, 3) and downsample == (10, 10)
    expected = Image.fromarray(slide_world.pixels).resize((200, 150), Image.Resampling.BOX)
    # The drawn texture is fine: one pixel further it is another one.
    error = np.abs(pixels.astype(int) - np.asarray(expected)).mean()
    assert error < 4 < 0.6 * np.abs(pixels.astype(int) - np.roll(expected, 1, 1)).mean()
    whole = slide.overview(4000)  # no larger than the slide
    np.testing.assert_array_equal(whole.pixels, slide_world.pixels)
    assert whole.downsample == (1, 1)


@pytest.mark.parametrize("size", [(6_001, 10_003), (50_003, 701)])
def test_the_overview_of_a_slide_without_levels_takes_no_memory(size):
    reader = GivenLevels((size,))
    slide = slide_of(reader, (0.25, 0.25))
    pixels, downsample = slide.overview(1000)
    assert max(pixels.shape) == 1000
    assert np.multiply(pixels.shape[:2], downsample) == pytest.approx(size)
    assert pixels.max() == 0  # nothing was left out
    assert max(height * width for *_, height, width in reader.reads) < 5e6


def test_a_damaged_level_is_replaced_by_a_finer_one(slide_file, tmp_path, caplog):
    with tifffile.TiffFile(slide_file) as file:
        parts = len(file.pages[2].dataoffsets)
    path = tmp_path / "a.tif"
    source = slide_file
    for part in range(parts):
        source = damage(source, tmp_path / f"{part}.tif", 2, part, b"\0")
    path = source
    expected, pixels = open_slide(slide_file).overview(500), open_slide(path).overview(500)
    assert np.abs(expected.pixels.astype(int) - pixels.pixels).mean() < 1
    # Where nothing is left of a place it is white, which is said.
    for level in (0, 1):
        path = damage(path, tmp_path / f"{level}-no.tif", level, 0, b"\0")
    with caplog.at_level(logging.WARNING):
        pixels = open_slide(path).overview(500).pixels
    assert "parts of the overview are damaged and stay white" in caplog.text
    assert pixels[:60, :60].min() == 255 and pixels[-60:, -60:].min() < 255


def test_a_slide_of_which_nothing_can_be_read(tmp_path, slide_file):
    with tifffile.TiffFile(slide_file) as file:
        level = file.pages[2].asarray()
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, level, tile=(512, 512), compression="zlib", photometric="rgb")
    with pytest.raises(InputError, match="is damaged at"):
        open_slide(damage(path, tmp_path / "b.tif", 0, 0, b"\0"), 4.0).overview(500)
