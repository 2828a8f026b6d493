"""Damage is found where a format says what is whole."""

import io
import struct

import numpy as np
import pytest
from PIL import Image

from densenet_flax.common.errors import InputError
from densenet_flax.data.images.decode import decode
from tests.data.images.encoded import chunk, encode, make_image, png


def test_every_flipped_bit_of_a_png_is_found():
    data = encode(make_image())
    for position in range(8, len(data), 7):
        damaged = bytearray(data)
        damaged[position] ^= 1 << position % 8
        with pytest.raises(InputError):
            decode(bytes(damaged), "x")


@pytest.mark.parametrize("interlaced", [0, 1])
@pytest.mark.parametrize("mode", ["RGB", "L", "P"])
def test_a_png_with_fewer_rows_than_its_header_says(interlaced, mode):
    channels, color = {"RGB": (3, 2), "L": (1, 0), "P": (1, 3)}[mode]
    header = struct.pack(">IIBBBBB", 64, 64, 8, color, 0, 0, interlaced)
    # The rows of an interlaced one are of 8, 8, 16, 16, 32, 32 and 64 pixels.
    widths = [8] * 16 + [16] * 24 + [32] * 48 + [64] * 32 if interlaced else [64] * 64
    rows = [b"\0" + b"\x80" * channels * width for width in widths]
    palette = chunk(b"PLTE", bytes(768)) if mode == "P" else b""

    def make(rows):
        head, _, tail = png(header, b"".join(rows)).partition(b"\0\0\0")
        data = head + b"\0\0\0" + tail
        start = data.index(b"IDAT") - 4
        return data[:start] + palette + data[start:]

    decode(make(rows), "x")
    for n in (0, 1, 32, len(rows) - 1):
        with pytest.raises(InputError, match="damaged or cut short"):
            decode(make(rows[:n]), "x")
    # A last row that is black is no missing one.
    last = b"\0" * len(rows[-1])
    assert decode(make([*rows[:-1], last]), "x")[-1].max() == 0


@pytest.mark.parametrize("seed", range(12))
def test_a_jpeg_that_was_cut_and_closed(seed):
    rng = np.random.default_rng(seed)
    height, width = rng.integers(40, 200, 2)
    pixels = rng.normal(200, rng.choice([0, 5, 40]), (height, width, 3))
    image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    options = {
        "quality": int(rng.integers(5, 100)),
        "subsampling": int(rng.integers(3)),
        "optimize": bool(seed % 2),
        "restart_marker_blocks": int(rng.integers(3)),
    }
    if seed % 4 == 3:
        image = image.convert("L")
    data = encode(image, "JPEG", **options)
    with Image.open(io.BytesIO(data)) as opened:
        np.testing.assert_array_equal(decode(data, "x"), np.asarray(opened.convert("RGB")))
    assert decode(data + bytes(100), "x").shape == (height, width, 3)  # something behind it
    start = data.rindex(b"\xff\xda") + 14
    for share in (0, 0.1, 0.5, 0.9):
        cut = data[: start + int(share * (len(data) - start - 2))].rstrip(b"\xff")
        # A few blocks of one color take less than the decoder reads ahead.
        if len(data) - len(cut) > 40:
            with pytest.raises(InputError, match="damaged or cut short"):
                decode(cut + b"\xff\xd9", "x")


def test_a_jpeg_of_many_scans():
    data = encode(make_image(), "JPEG", progressive=True)
    decode(data, "x")
    scan = data[data.rindex(b"\xff\xda") : -2]
    with pytest.raises(InputError, match="scans"):
        decode(data[:-2] + scan * 200 + b"\xff\xd9", "x")
