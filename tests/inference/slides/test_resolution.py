"""Micrometers per pixel come from the file or from the user, and never from a magnification."""

import logging
import shutil

import pytest
import tifffile
from PIL import Image

from densenet_flax.common.errors import InputError
from densenet_flax.inference.slides.resolution import (
    check_mpp,
    resolve_mpp,
    stated_by_image,
    stated_by_slide,
)
from densenet_flax.inference.slides.slide import open_slide


def tags(x, y, unit="centimeter"):
    return {"tiff.XResolution": x, "tiff.YResolution": y, "tiff.ResolutionUnit": unit}


def openslide(x, y=None):
    return {"openslide.mpp-x": x, "openslide.mpp-y": y or x}


OME = '<OME xmlns="x"><Image><Pixels ID="P" PhysicalSizeX="{}" PhysicalSizeXUnit="{}" '
OME += 'PhysicalSizeY="{}" PhysicalSizeYUnit="{}" SizeX="9"/></Image></OME>'


@pytest.mark.parametrize(
    "properties,mpp",
    [
        ({**openslide("0.5"), "aperio.MPP": "0.4990"}, (0.499, 0.499)),
        ({**openslide("0.5"), **tags("20000", "20000")}, (0.5, 0.5)),
        (tags("101600", "101600", "inch"), (0.25, 0.25)),
        # 72 dpi are a screen's, beside a resolution that is a microscope's.
        ({**openslide("0.25"), **tags("72", "72", "inch")}, (0.25, 0.25)),
        ({"openslide.comment": OME.format(0.5, "µm", 500, "nm")}, (0.5, 0.5)),
        (openslide("0.50", "0.51"), (0.51, 0.5)),
    ],
)
def test_what_a_file_states(properties, mpp):
    assert resolve_mpp("a.svs", stated_by_slide(properties), None) == pytest.approx(mpp)


@pytest.mark.parametrize(
    "properties,objective,message",
    [
        ({}, None, "states no micrometers per pixel; give"),
        ({}, 40.0, "its magnification, 40X, is not a resolution"),
        (tags("72", "72", "inch"), None, r"XResolution says 352\.8 µm, which is no microscope's"),
        (openslide("0"), None, "states no micrometers"),
        (openslide("nan"), None, "states no micrometers"),
        (openslide("0,25"), None, "states no micrometers"),
        (
            {**openslide("0.25"), "aperio.MPP": "0.25", **tags("20000", "20000")},
            None,
            r"contradicts itself: aperio\.MPP says 0\.25 .* XResolution 0\.5;",
        ),
        (openslide("0.25", "0.5"), None, r"0\.25 µm per pixel across and 0\.5 down"),
    ],
)
def test_what_a_file_does_not_state_is_asked_for(properties, objective, message):
    with pytest.raises(InputError, match=rf"a\.svs: .*{message}.*--mpp"):
        resolve_mpp("a.svs", stated_by_slide(properties), objective)


@pytest.mark.parametrize("mpp", [0, -1, 352.8, (0.5, 0), (0.5,), (1, 1, 1), float("nan")])
def test_a_flag_that_is_no_resolution(mpp):
    with pytest.raises(InputError, match=r"--mpp=.*micrometers per pixel from"):
        check_mpp(mpp)


def test_the_flag_wins_and_says_so(slide_file, tmp_path, caplog):
    """Also over statements that contradict each other."""
    path = tmp_path / "a.tif"
    shutil.copy(slide_file, path)
    with tifffile.TiffFile(path, mode="r+b") as file:
        file.pages[0].tags["XResolution"].overwrite((20_000, 1))
    with pytest.raises(InputError, match=r"0\.5 µm per pixel across and 1 down"):
        open_slide(path)
    with caplog.at_level(logging.INFO):
        slide = open_slide(path, (0.4, 0.5))
    assert slide.mpp == (0.4, 0.5) and slide.mpp_source == "flag"
    assert "0.4 by 0.5 µm per pixel as given with --mpp" in caplog.text
    assert "XResolution says 0.5" in caplog.text
    assert open_slide(slide_file).mpp_source == "file"


def test_an_image_with_the_resolution_of_a_screen_states_none(tmp_path):
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png", dpi=(96, 96))
    with pytest.raises(InputError, match=r"pHYs of its header says 264\.6 µm"):
        open_slide(tmp_path / "a.png")
    Image.new("RGB", (64, 64)).save(tmp_path / "b.png")
    with pytest.raises(InputError, match=r"b\.png: states no micrometers per pixel; give"):
        open_slide(tmp_path / "b.png")
    with Image.open(tmp_path / "b.png") as image:
        assert stated_by_image(image) == {}
