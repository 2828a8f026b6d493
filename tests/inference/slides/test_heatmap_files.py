"""The heatmap's files: over the overview, and as a pyramid at the size of the slide."""

import itertools

import numpy as np
import openslide
import pytest
import tifffile
from PIL import Image

from densenet_flax.inference.slides.heatmap_files import write_heatmap
from densenet_flax.inference.slides.probability_map import color_scale
from tests.helpers.slide_results import (
    MALIGNANT,
    MALIGNANT_COLOR,
    MPP,
    SIZE,
    TISSUE,
    make_result,
    make_slide,
)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("heatmap")
    paths = folder / "heatmap.png", folder / "heatmap.ome.tiff"
    write_heatmap(*paths, make_result(name="a & <b>"), make_slide())
    return paths


def test_picture_is_the_overview_with_the_map_over_its_tissue(files):
    with Image.open(files[0]) as image:
        picture = np.asarray(image)
    assert picture.shape[1] == SIZE[1] and picture.shape[0] > SIZE[0]  # the legend is below
    assert (picture[5, 5] == 255).all()
    for color, (y, x), step in ((TISSUE, (450, 650), 0), (MALIGNANT_COLOR, (150, 200), 255)):
        blended = 0.4 * np.array(color) + 0.6 * color_scale()[step]
        np.testing.assert_allclose(picture[y, x], blended, atol=0.6)
    assert (picture[SIZE[0] :] != 255).any()


def test_pyramid_has_the_extent_of_the_slide(files):
    with tifffile.TiffFile(files[1]) as file:
        assert file.is_ome
        levels = [level.shape for level in file.series[0].levels]
        metadata = tifffile.xml2dict(file.ome_metadata)["OME"]["Image"]
        colors = file.series[0].levels[0].asarray()
    assert metadata["Name"] == "a & <b> heatmap"
    pixels = metadata["Pixels"]
    assert pixels["PhysicalSizeXUnit"] == pixels["PhysicalSizeYUnit"] == "µm"
    extent = pixels["SizeY"] * pixels["PhysicalSizeY"], pixels["SizeX"] * pixels["PhysicalSizeX"]
    np.testing.assert_allclose(extent, np.multiply(SIZE, MPP))
    assert len(levels) > 1 and max(levels[-1]) <= 256
    for finer, coarser in itertools.pairwise(levels):
        assert coarser == (finer[0] // 2, finer[1] // 2, 3)
    # White where there is no tissue, and the regions at their places.
    assert (colors[:20] == 255).all() and (colors[:, 1290:] == 255).all()
    for top, left, bottom, right in MALIGNANT:
        assert (colors[(top + bottom) // 2, (left + right) // 2] == color_scale()[255]).all()


def test_pyramid_opens_in_openslide(files):
    with openslide.OpenSlide(files[1]) as slide:
        assert slide.dimensions == SIZE[::-1]
        mpp = [float(slide.properties[f"openslide.mpp-{axis}"]) for axis in "yx"]
        np.testing.assert_allclose(mpp, MPP)
        pixel = slide.read_region((200, 150), 0, (1, 1)).getpixel((0, 0))
    assert pixel == (*color_scale()[255].tolist(), 255)


def test_more_classes_have_a_legend_of_their_own(tmp_path):
    result = make_result(classes=("adenosis", "a\nvery long name " * 9, "ductal"))
    write_heatmap(tmp_path / "a.png", tmp_path / "a.ome.tiff", result, make_slide())
    with Image.open(tmp_path / "a.png") as image:
        assert image.size[1] > SIZE[0]
