"""What one input of the network shows, and the pixels that it gets."""

import numpy as np
import pytest
import tifffile
from PIL import Image

from densenet_flax.common.errors import InputError
from densenet_flax.data.images.decode import resize
from densenet_flax.data.synthetic.slide_files import write_slide
from densenet_flax.inference.slides.field import Field, FieldReader, resolve_field
from densenet_flax.inference.slides.slide import open_slide
from densenet_flax.weights.inference_settings import InferenceSettings
from tests.inference.slides.test_reader import damage

# BreakHis at 40X: 460×700 pixels of 0.49 µm, squeezed to 224×224.
TRAINED = InferenceSettings(mpp=(0.49, 0.49), field_um=(225.4, 343.0))
NETWORK = Field((92.0, 140.0), (0.8, 0.8), "network")


def test_the_field_is_the_network_s_or_the_one_that_is_given():
    assert resolve_field(TRAINED, (224, 224)) == Field((225.4, 343), (0.49, 0.49), "network")
    given = resolve_field(TRAINED, (224, 224), (100, 200))
    assert given == Field((100, 200), (0.49, 0.49), "flag")
    # Without a resolution of the tiles: the detail of the network's input.
    assert resolve_field(InferenceSettings(), (224, 448), 112).mpp == (0.5, 0.25)


def test_without_a_field_no_slide_is_read():
    with pytest.raises(InputError, match=r"model: .*--field=H,W.*config\.data\.mpp"):
        resolve_field(InferenceSettings(), (224, 224), name="model")
    with pytest.raises(InputError, match=r"--field=.*micrometers"):
        resolve_field(TRAINED, (224, 224), (0, 100))


def test_a_tile_is_that_of_the_level_and_of_a_file_cut_by_hand(slide_file, tmp_path):
    """At 1, 2 and 4 µm per pixel; the training tiles had 2.1."""
    tiles = FieldReader(open_slide(slide_file), Field((200, 300), (2.1, 2.1), "network"))
    assert tiles.level == 1 and tiles.shape == (100, 150) and tiles.field_px == (200, 300)
    with tifffile.TiffFile(slide_file) as file:
        level = file.pages[1].asarray()
    np.testing.assert_array_equal(tiles.read(401, 599.2), level[200:300, 300:450])


def test_a_level_that_is_damaged_is_read_from_a_finer_one(slide_file, tmp_path, caplog):
    slide = open_slide(damage(slide_file, tmp_path / "a.tif", 1, 0, b"\0"))
    tiles = FieldReader(slide, Field((200, 300), (2.1, 2.1), "network"))
    whole = FieldReader(open_slide(slide_file), tiles.field)
    for _ in range(2):
        pixels = tiles.read(0, 0)  # of level 0: four times as many
        assert pixels.shape == (200, 300, 3) and tiles.read(900, 900).shape == (100, 150, 3)
    difference = resize(pixels, (64, 64)).astype(int) - resize(whole.read(0, 0), (64, 64))
    assert np.abs(difference).mean() < 2
    assert caplog.text.count("a finer level is read there") == 1
    damage(tmp_path / "a.tif", tmp_path / "b.tif", 0, 0, b"\0")
    with pytest.raises(InputError, match="damaged at x=0, y=0, read at level 0"):
        FieldReader(open_slide(tmp_path / "b.tif"), tiles.field).read(0, 0)


def test_a_slide_that_is_smaller_than_the_field(slide_file):
    slide = open_slide(slide_file)
    FieldReader(slide, Field((1500.4, 2000), (1, 1), "network"))  # but for rounding
    with pytest.raises(InputError, match=r"drawn\.tif: shows 1500×2000 µm.*--mode=predict"):
        FieldReader(slide, Field((1501, 100), (1, 1), "network"))


def test_the_same_place_at_two_resolutions_is_the_same_input(slide_world, slide_file, tmp_path):
    """What a network of 64×64 pixels gets of the same micrometers of two files."""
    coarse = tmp_path / "coarse.tif"
    write_slide(coarse, slide_world.at_resolution(1.6), vendor="aperio")
    slides = [open_slide(slide_file), open_slide(coarse)]
    inputs = []
    for slide in slides:
        tiles = FieldReader(slide, NETWORK)
        corners = [(y / slide.mpp[0], x / slide.mpp[1]) for y, x in ((320, 480), (800, 1600))]
        inputs.append([resize(tiles.read(*corner), (64, 64)) for corner in corners])
    a, b = np.array(inputs).astype(int)
    shifted = np.abs(a[0] - a[1]).mean()
    assert np.abs(a - b).mean() < 0.25 * shifted


def test_a_fine_pattern_does_not_alias(tmp_path):
    """Lines of one pixel become gray: a reduction that takes every n-th pixel would keep them."""
    pixels = np.zeros((900, 1100, 3), np.uint8)
    pixels[:, ::2] = 255
    pixels[1::2] = 255 - pixels[1::2]
    path = tmp_path / "lines.png"
    Image.fromarray(pixels).save(path)
    tiles = FieldReader(open_slide(path, 0.25), Field((230 * 0.9, 230 * 0.9), (0.9, 0.9), "flag"))
    assert tiles.shape == (828, 828)
    network_input = resize(tiles.read(11.3, 20.7), (224, 224)).astype(float)
    assert abs(network_input.mean() - 127.5) < 1 and network_input.std() < 8
