import io
import struct
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tifffile
from PIL import Image

from densenet_flax.common.errors import InputError
from densenet_flax.data.images import decode as decode_module
from densenet_flax.data.images.decode import decode
from densenet_flax.data.images.formats import MAX_PIXELS, formats
from tests.data.images.encoded import chunk, encode, make_image


def test_rgb_is_unchanged():
    image = make_image()
    for kind in ("PNG", "BMP", "TIFF"):
        np.testing.assert_array_equal(decode(encode(image, kind), "x"), np.asarray(image))


def png_header(width, height):
    """The header of a PNG, and nothing behind it."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + struct.pack(">I", 10) + b"IDAT"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "a.png: is empty"),
        (b"<html>", "a.png: is not an image"),
        (encode(make_image())[:200], "a.png: is damaged or cut short"),
        (encode(make_image(), "JPEG")[:-300], "a.png: is damaged or cut short"),
        (encode(Image.new("RGB", (1, 1))), "a.png: has 1×1 pixels"),
        (encode(Image.new("RGB", (100, 7))), "a.png: has 100×7 pixels"),
        (png_header(8193, 8193), "a.png: has 8193×8193 pixels: a slide and not a tile"),
        (png_header(40000, 30000), "a.png: "),
        (encode(Image.fromarray(np.zeros((9, 9), np.float32)), "TIFF"), "floating point"),
        (encode(Image.fromarray(np.full((9, 9), 70000, np.int32)), "TIFF"), "up to 70000"),
    ],
)
def test_images_that_cannot_be_tiles_are_named(data, message):
    with pytest.raises(InputError, match=message) as caught:
        decode(data, "a.png")
    assert "\n" not in str(caught.value) and str(caught.value).startswith("a.png: ")


def test_the_pixel_limit_is_between_tiles_and_slides():
    assert 4096 * 4096 < MAX_PIXELS < 10_000**2


def test_no_other_format_is_opened_whatever_its_name():
    ppm = encode(make_image(), "PPM")
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\nshowpage\n"
    for data in (ppm, eps, encode(make_image(), "TGA")):
        with pytest.raises(InputError, match=r"a\.png: is not an image of a format that is read"):
            decode(data, "a.png")


@pytest.mark.parametrize("kind", ["GIF", "JPEG2000", "AVIF", "WEBP", "JPEG", "MPO"])
def test_other_kinds_are_read(kind):
    if kind not in formats():
        pytest.skip("this Pillow was built without it")
    image = Image.new("RGB", (32, 24), (200, 40, 90))
    options = {"save_all": True, "append_images": [image]} if kind == "MPO" else {}
    data = encode(image, kind, **options)
    assert np.abs(decode(data, "x").astype(int) - (200, 40, 90)).max() < 8


def test_large_images_are_decoded_one_at_a_time(monkeypatch):
    monkeypatch.setattr(decode_module, "_LARGE_PIXELS", 100)
    data, inside, most = encode(make_image()), [], []

    def use(_):
        with decode_module.decoded(data, "x"):
            inside.append(1)
            most.append(len(inside))
            time.sleep(0.01)
            inside.pop()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(use, range(8)))
    assert max(most) == 1


def tiff_with_levels(side, description=None, levels=2):
    """A TIFF as tifffile writes it, in tiles and with smaller levels."""
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        for level in range(levels):
            pixels = np.full((side >> level, side >> level, 3), 200, np.uint8)
            options = {"photometric": "rgb", "compression": "zlib", "metadata": None}
            writer.write(pixels, tile=(256, 256), description=description, **options)
            description = None
    return file.getvalue()


def test_a_slide_among_tiles_is_named_whatever_its_ending():
    advice = r"a\.tif: is a slide and not a tile; .*--mode=slide"
    for slide in (tiff_with_levels(1100), tiff_with_levels(300, "Aperio Image Library v11", 1)):
        with pytest.raises(InputError, match=advice):
            decode(slide, "a.tif")
    for tile in (tiff_with_levels(600), tiff_with_levels(1100, levels=1)):
        assert decode(tile, "a.tif").shape[0] in (600, 1100)
