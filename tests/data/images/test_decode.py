import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from densenet_flax.common.errors import InputError
from densenet_flax.data.images.decode import MAX_PIXELS, decode


def make_image(mode="RGB", size=(24, 16)):
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    return Image.fromarray(noise).convert(mode)


def encode(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def test_rgb_is_unchanged():
    image = make_image()
    for kind in ("PNG", "BMP", "TIFF"):
        np.testing.assert_array_equal(decode(encode(image, kind), "x"), np.asarray(image))


def test_gray_palette_and_cmyk():
    gray = np.asarray(make_image("L"))
    np.testing.assert_array_equal(decode(encode(make_image("L")), "x"), np.stack([gray] * 3, -1))
    np.testing.assert_array_equal(
        decode(encode(make_image("P")), "x"), np.asarray(make_image("P").convert("RGB"))
    )
    red = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    assert np.abs(decode(encode(red, "JPEG"), "x").astype(int) - (255, 0, 0)).max() < 8


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_to_eight(kind):
    values = np.linspace(0, 65535, 16 * 16).astype(np.uint16).reshape(16, 16)
    decoded = decode(encode(Image.fromarray(values), kind), "x")
    np.testing.assert_array_equal(decoded[..., 0], np.rint(values / 257))
    assert decoded.max() == 255 and decoded.min() == 0


def test_transparent_pixels_become_white():
    image = Image.new("RGBA", (16, 16), (200, 0, 0, 0))
    image.paste((200, 0, 0, 255), (0, 0, 8, 16))
    decoded = decode(encode(image), "x")
    assert (decoded[:, :8] == (200, 0, 0)).all() and (decoded[:, 8:] == 255).all()
    palette = Image.new("P", (16, 16), 3)
    palette.putpalette([10] * 768)
    assert (decode(encode(palette, transparency=3), "x") == 255).all()


def test_exif_rotation_is_applied():
    image = make_image()
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    decoded = decode(encode(image, exif=exif), "x")
    expected = np.asarray(image.transpose(Image.Transpose.ROTATE_270))
    np.testing.assert_array_equal(decoded, expected)


def png_header(width, height):
    """The header of a PNG, and nothing behind it."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + struct.pack(">I", 13)
        + header
        + struct.pack(">I", zlib.crc32(header))
        + struct.pack(">I", 10)
        + b"IDAT"
    )


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
