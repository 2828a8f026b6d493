import struct

import numpy as np
import pytest
from PIL import Image

from densenet_flax.common.errors import InputError
from densenet_flax.data.images.decode import decode
from tests.data.images.encoded import encode, make_image, png, tiff


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
    palette.putpixel((0, 0), 4)
    palette.putpalette([10] * 768)
    decoded = decode(encode(palette, transparency=3), "x").reshape(-1, 3)
    assert (decoded[0] == 10).all() and (decoded[1:] == 255).all()


def test_nothing_to_be_seen():
    with pytest.raises(InputError, match="transparent everywhere"):
        decode(encode(Image.new("RGBA", (16, 16), (200, 0, 0, 0))), "x")


def test_exif_rotation_is_applied():
    image = make_image()
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    decoded = decode(encode(image, exif=exif), "x")
    expected = np.asarray(image.transpose(Image.Transpose.ROTATE_270))
    np.testing.assert_array_equal(decoded, expected)


# --- what 16 bits hold is known only where the values need them


def random_values(bits, channels=()):
    rng = np.random.default_rng(0)
    values = rng.integers(0, 2**bits, (16, 24, *channels)).astype(np.uint16)
    values[0, 0] = 2**bits - 1
    return values


def encode_rgb16(values, kind):
    """Pillow writes no such files."""
    height, width, channels = values.shape
    if kind == "PNG":
        rows = values.astype(">u2").tobytes()
        stride = 2 * channels * width
        raw = b"".join(b"\0" + rows[i : i + stride] for i in range(0, len(rows), stride))
        header = struct.pack(">IIBBBBB", width, height, 16, {3: 2, 4: 6}[channels], 0, 0, 0)
        return png(header, raw)
    return tiff(values, planar=False)


@pytest.mark.parametrize("bits", [8, 10, 12, 14])
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_gray_values_are_refused_until_their_depth_is_stated(bits, kind):
    values = random_values(bits)
    data = encode(Image.fromarray(values), kind)
    with pytest.raises(InputError, match=rf"up to {2**bits - 1} in 16 bits.*data\.bits={bits}"):
        decode(data, "x")
    expected = np.rint(values * (255 / (2**bits - 1)))
    np.testing.assert_array_equal(decode(data, "x", bits)[..., 1], expected)
    with pytest.raises(InputError, match=r"which \d+ bits do not hold; correct data\.bits"):
        decode(encode(Image.fromarray(values + 1), kind), "x", bits)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_colors(kind):
    data = encode_rgb16(random_values(12, (3,)), kind)
    with pytest.raises(InputError, match=r"data\.bits=12"):
        decode(data, "x")
    expected = np.rint(random_values(12, (3,)) * (255 / 4095))
    np.testing.assert_array_equal(decode(data, "x", 12), expected)
    full = encode_rgb16(random_values(16, (3,)), kind)
    np.testing.assert_array_equal(decode(full, "x"), random_values(16, (3,)) >> 8)


def test_integers_of_32_bits():
    data = encode(Image.fromarray(random_values(12).astype(np.int32)), "TIFF")
    with pytest.raises(InputError, match=r"in 32 bits.*data\.bits=12"):
        decode(data, "x")
    np.testing.assert_array_equal(
        decode(data, "x", 12)[..., 0], np.rint(random_values(12) * (255 / 4095))
    )
    negative = encode(Image.fromarray(np.full((9, 9), -5, np.int32)), "TIFF")
    with pytest.raises(InputError, match="negative values"):
        decode(negative, "x", 12)


def test_white_is_zero():
    values = random_values(16)
    decoded = decode(tiff(values[..., None], photometric=0), "x")
    expected = 255 - np.rint(values / 257)
    np.testing.assert_array_equal(decoded[..., 0], expected)
