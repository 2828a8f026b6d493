import io

import numpy as np
import pytest
from PIL import Image

from densenet_flax.common.errors import InputError
from densenet_flax.data.images.decode import decode
from tests.data.images.encoded import encode, tiff

RGB = np.random.default_rng(1).integers(0, 256, (16, 24, 3)).astype(np.uint8)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("compress", [False, True])
def test_planar(order, compress):
    options = {"planar": True, "order": order, "compress": compress}
    np.testing.assert_array_equal(decode(tiff(RGB, **options), "x"), RGB)
    deep = RGB.astype(np.uint16) * 257
    np.testing.assert_array_equal(decode(tiff(deep, **options), "x"), RGB)
    deep = RGB.astype(np.uint16) * 16
    with pytest.raises(InputError, match=r"data\.bits=12"):
        decode(tiff(deep, **options), "x")
    expected = np.rint(deep * (255 / 4095))
    np.testing.assert_array_equal(decode(tiff(deep, **options), "x", 12), expected)


@pytest.mark.parametrize(
    ("description", "order"),
    [
        ("ImageJ=1.53\nimages=3\nchannels=3\nmode=composite\n", (0, 1, 2)),
        ('<?xml?><OME><Pixels SizeC="3" SizeT="1" SizeZ="1" X="">', (0, 1, 2)),
        (
            '<OME><Pixels SizeC="3" SizeT="1" SizeZ="1" ID="">'
            '<Channel ID="0" Name="Blue"/><Channel ID="1" Name="Green"/>'
            '<Channel ID="2" Name="Red"/>',
            (2, 1, 0),
        ),
    ],
)
def test_three_pages_that_are_colors(description, order):
    pages = np.moveaxis(RGB, -1, 0)[list(order)][..., None]
    decoded = decode(tiff(pages, description=description), "x")
    np.testing.assert_array_equal(decoded, RGB)
    deep = decode(tiff(pages.astype(np.uint16) * 257, description=description), "x")
    np.testing.assert_array_equal(deep, RGB)


@pytest.mark.parametrize(
    ("pages", "description", "message"),
    [
        (2, "", "holds several gray pages of one size"),
        (3, "", "holds several gray pages of one size"),
        (4, "ImageJ=1.53\nimages=4\nchannels=4\n", "an ImageJ stack of 4 planes"),
        (3, "ImageJ=1.53\nimages=3\nslices=3\n", "an ImageJ stack of 3 planes in 1"),
        (1, "ImageJ=1.53\nimages=3\nchannels=3\n", "a plane that is not a page"),
        (3, '<OME><Pixels SizeC="1" SizeT="3" SizeZ="1" ID="">', "an OME stack of 3 planes"),
        (
            3,
            '<OME><Pixels SizeC="3" SizeT="1" SizeZ="1" ID=""><Channel ID="0" Name="DAPI"/>',
            "of the channels dapi",
        ),
    ],
)
def test_stacks_of_which_it_is_not_known_what_they_are(pages, description, message):
    values = np.resize(RGB, (pages, 16, 24, 1))
    with pytest.raises(InputError, match=message):
        decode(tiff(values, description=description), "x")


def test_an_rgb_page_before_others_counts():
    buffer = io.BytesIO()
    Image.fromarray(RGB).save(
        buffer, "TIFF", save_all=True, append_images=[Image.new("RGB", (24, 16))]
    )
    np.testing.assert_array_equal(decode(buffer.getvalue(), "x"), RGB)


def test_five_channels_are_named():
    values = np.zeros((16, 24, 5), np.uint16)
    with pytest.raises(InputError, match=r"a TIFF of 5 channel\(s\) of 16 bits") as caught:
        decode(tiff(values, photometric=1), "x")
    assert "copy the file again" not in str(caught.value)


@pytest.mark.parametrize("compress", [False, True])
def test_parts_behind_the_end_and_missing_parts(compress):
    whole = encode(
        Image.fromarray(np.resize(RGB, (400, 300, 3))),
        "TIFF",
        compression="tiff_adobe_deflate" if compress else None,
    )
    decode(whole, "x")
    for cut in range(9, len(whole) - 200, len(whole) // 9):
        with pytest.raises(InputError, match="damaged or cut short"):
            decode(whole[:cut], "x")
