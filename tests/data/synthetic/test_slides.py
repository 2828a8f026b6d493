"""Drawn slides: the same tissue at every resolution, and files as scanners write them."""

import json

import numpy as np
import pytest
import tifffile
from PIL import Image

from densenet_flax.common.errors import InputError
from densenet_flax.data.__main__ import main
from densenet_flax.data.synthetic.slide_files import DrawnSlides
from densenet_flax.data.synthetic.slide_world import draw_slide_world

SIZE = (600.0, 700.0)


@pytest.fixture(scope="module")
def world():
    return draw_slide_world(3, SIZE, 2.0)


def test_the_same_seed_draws_the_same_slide(world):
    again = draw_slide_world(3, SIZE, 2.0)
    np.testing.assert_array_equal(world.pixels, again.pixels)
    assert (draw_slide_world(4, SIZE, 2.0).pixels != world.pixels).any()


def test_regions_are_where_they_are_said_to_be(world):
    masks = {name: world.mask(name, 2.0) for name in world.regions}
    assert world.pixels[masks["edge"]].max() < 12
    glass = ~np.logical_or.reduce([masks[n] for n in ("tissue", "pen", "edge")])
    saturation = np.ptp(world.pixels.astype(int), axis=-1)
    assert np.median(saturation[glass]) < 15 < np.median(saturation[masks["tissue"]]) / 2
    # The cells of the malignant regions are larger and denser: they are darker.
    benign = masks["tissue"] & ~masks["malignant"] & ~masks["pen"]
    gray = world.pixels.mean(-1)
    assert gray[masks["malignant"]].mean() < gray[benign].mean() - 5
    # One near each corner and one in the middle.
    centers = np.array([polygon.mean(0) for polygon in world.regions["malignant"]]) / SIZE
    assert sorted(map(tuple, np.round(centers * 2).astype(int).tolist())) == CORNERS


CORNERS = [(0, 0), (0, 2), (1, 1), (2, 0), (2, 2)]


def test_a_coarser_slide_shows_the_same(world):
    coarse = world.at_resolution(4.0)
    assert coarse.pixels.shape == (150, 175, 3) and coarse.size_um == world.size_um == SIZE
    reduced = np.asarray(Image.fromarray(world.pixels).reduce(2)).astype(int)
    assert np.abs(coarse.pixels - reduced).max() <= 1


@pytest.mark.parametrize("vendor", ["generic", "aperio"])
def test_the_command_writes_pyramids(vendor, tmp_path, capsys):
    flags = [f"--output={tmp_path}", "--slides=1", "--mpp=1,2", f"--vendor={vendor}"]
    assert main(["draw-slides", *flags, "--size_um=600,700"]) == 0
    paths = capsys.readouterr().out.split()
    suffix = {"generic": "tif", "aperio": "svs"}[vendor]
    assert paths == [f"{tmp_path}/slide-0-{mpp}um.{suffix}" for mpp in (1, 2)]
    for path, mpp in zip(paths, (1.0, 2.0), strict=True):
        with tifffile.TiffFile(path) as file:
            first = file.pages[0]
            assert first.shape == (600 / mpp, 700 / mpp, 3) and first.compression.name == "JPEG"
            if vendor == "aperio":
                assert file.is_svs and f"MPP = {mpp:.4f}" in first.description
            else:
                x, y = first.tags["XResolution"].value
                assert x / y == pytest.approx(10_000 / mpp)
        with open(path.rpartition(".")[0] + ".json") as file:
            record = json.load(file)
        assert record["mpp"] == mpp and record["size_um"] == list(SIZE)
        assert len(record["regions_um"]["malignant"]) == 5


def test_a_bad_flag_is_one_line(tmp_path, capsys):
    assert main(["draw-slides", f"--output={tmp_path}", "--mpp=9"]) == 1
    assert "draw-slides.mpp=(9.0,): expected micrometers per pixel" in capsys.readouterr().err
    with pytest.raises(InputError, match="size_um"):
        DrawnSlides(size_um=(10, 10))
