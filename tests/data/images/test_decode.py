import io
import struct
import time
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from densenet_flax.common.errors import InputError
from densenet_flax.data.images import decode as decode_module
from densenet_flax.data.images.decode import decode
from densenet_flax.data.images.formats import MAX_PIXELS, formats


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
    palette.putpixel((0, 0), 4)
    palette.putpalette([10] * 768)
    decoded = decode(encode(palette, transparency=3), "x").reshape(-1, 3)
    assert (decoded[0] == 10).all() and (decoded[1:] == 255).all()


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


class TestBitDepth:
    """What 16 bits hold is known only where the values need them."""

    def values(self, bits, channels=()):
        rng = np.random.default_rng(0)
        values = rng.integers(0, 2**bits, (16, 24, *channels)).astype(np.uint16)
        values[0, 0] = 2**bits - 1
        return values

    def encode_rgb16(self, values, kind):
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
    def test_gray_values_are_refused_until_their_depth_is_stated(self, bits, kind):
        values = self.values(bits)
        data = encode(Image.fromarray(values), kind)
        with pytest.raises(InputError, match=rf"up to {2**bits - 1} in 16 bits.*data\.bits={bits}"):
            decode(data, "x")
        expected = np.rint(values * (255 / (2**bits - 1)))
        np.testing.assert_array_equal(decode(data, "x", bits)[..., 1], expected)
        with pytest.raises(InputError, match=r"which \d+ bits do not hold; correct data\.bits"):
            decode(encode(Image.fromarray(values + 1), kind), "x", bits)

    @pytest.mark.parametrize("kind", ["PNG", "TIFF"])
    def test_colors(self, kind):
        data = self.encode_rgb16(self.values(12, (3,)), kind)
        with pytest.raises(InputError, match=r"data\.bits=12"):
            decode(data, "x")
        expected = np.rint(self.values(12, (3,)) * (255 / 4095))
        np.testing.assert_array_equal(decode(data, "x", 12), expected)
        full = self.encode_rgb16(self.values(16, (3,)), kind)
        np.testing.assert_array_equal(decode(full, "x"), self.values(16, (3,)) >> 8)

    def test_integers_of_32_bits(self):
        data = encode(Image.fromarray(self.values(12).astype(np.int32)), "TIFF")
        with pytest.raises(InputError, match=r"in 32 bits.*data\.bits=12"):
            decode(data, "x")
        np.testing.assert_array_equal(
            decode(data, "x", 12)[..., 0], np.rint(self.values(12) * (255 / 4095))
        )
        negative = encode(Image.fromarray(np.full((9, 9), -5, np.int32)), "TIFF")
        with pytest.raises(InputError, match="negative values"):
            decode(negative, "x", 12)

    def test_white_is_zero(self):
        values = self.values(16)
        decoded = decode(tiff(values[..., None], photometric=0), "x")
        expected = 255 - np.rint(values / 257)
        np.testing.assert_array_equal(decoded[..., 0], expected)


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(header, raw):
    parts = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(raw)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def tiff(values, *, planar=False, photometric=None, order="<", compress=False, description=""):
    """A TIFF of an array [H, W, C], plane by plane or not; or [P, H, W, 1] as P gray pages."""
    pages = values if values.ndim == 4 else values[None]
    content, links = {"<": b"II*\0", ">": b"MM\0*"}[order] + bytes(4), [4]
    for page in pages:
        height, width, channels = page.shape
        planes = np.moveaxis(page, -1, 0) if planar else [page]
        strips, offsets = [], []
        for plane in planes:
            data = plane.astype(plane.dtype.newbyteorder(order)).tobytes()
            strips.append(zlib.compress(data) if compress else data)
            content += bytes(len(content) % 2)
            offsets.append(len(content))
            content += strips[-1]
        if photometric is None:
            photometric = 2 if channels >= 3 else 1
        tags = {
            256: (width,),
            257: (height,),
            258: (8 * page.dtype.itemsize,) * channels,
            259: (8 if compress else 1,),
            262: (photometric,),
            273: offsets,
            277: (channels,),
            278: (height,),
            279: [len(strip) for strip in strips],
            284: (2 if planar else 1,),
        }
        content += bytes(len(content) % 2)
        text = description.encode() + b"\0"
        entries = [(tag, 4, struct.pack(f"{order}{len(v)}I", *v)) for tag, v in tags.items()]
        entries += [(270, 2, text)] * bool(description)
        position = struct.pack(f"{order}I", len(content))
        content = content[: links[-1]] + position + content[links[-1] + 4 :]
        after = len(content) + 2 + 12 * len(entries) + 4
        directory, rest = struct.pack(f"{order}H", len(entries)), b""
        for tag, kind, data in sorted(entries):
            count = len(data) // (4 if kind == 4 else 1)
            value = data.ljust(4, b"\0")
            if len(data) > 4:
                value, rest = struct.pack(f"{order}I", after + len(rest)), rest + data
            directory += struct.pack(f"{order}HHI", tag, kind, count) + value
        links.append(len(content) + len(directory))
        content += directory + bytes(4) + rest
        description = ""
    return content


class TestTiff:
    """Planes and pages that are the colors of one image."""

    rgb = np.random.default_rng(1).integers(0, 256, (16, 24, 3)).astype(np.uint8)

    @pytest.mark.parametrize("order", ["<", ">"])
    @pytest.mark.parametrize("compress", [False, True])
    def test_planar(self, order, compress):
        options = {"planar": True, "order": order, "compress": compress}
        np.testing.assert_array_equal(decode(tiff(self.rgb, **options), "x"), self.rgb)
        deep = self.rgb.astype(np.uint16) * 257
        np.testing.assert_array_equal(decode(tiff(deep, **options), "x"), self.rgb)
        deep = self.rgb.astype(np.uint16) * 16
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
    def test_three_pages_that_are_colors(self, description, order):
        pages = np.moveaxis(self.rgb, -1, 0)[list(order)][..., None]
        decoded = decode(tiff(pages, description=description), "x")
        np.testing.assert_array_equal(decoded, self.rgb)
        deep = decode(tiff(pages.astype(np.uint16) * 257, description=description), "x")
        np.testing.assert_array_equal(deep, self.rgb)

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
    def test_stacks_of_which_it_is_not_known_what_they_are(self, pages, description, message):
        values = np.resize(self.rgb, (pages, 16, 24, 1))
        with pytest.raises(InputError, match=message):
            decode(tiff(values, description=description), "x")

    def test_an_rgb_page_before_others_counts(self):
        buffer = io.BytesIO()
        Image.fromarray(self.rgb).save(
            buffer, "TIFF", save_all=True, append_images=[Image.new("RGB", (24, 16))]
        )
        np.testing.assert_array_equal(decode(buffer.getvalue(), "x"), self.rgb)

    def test_five_channels_are_named(self):
        values = np.zeros((16, 24, 5), np.uint16)
        with pytest.raises(InputError, match=r"a TIFF of 5 channel\(s\) of 16 bits") as caught:
            decode(tiff(values, photometric=1), "x")
        assert "copy the file again" not in str(caught.value)

    @pytest.mark.parametrize("compress", [False, True])
    def test_parts_behind_the_end_and_missing_parts(self, compress):
        whole = encode(
            Image.fromarray(np.resize(self.rgb, (400, 300, 3))),
            "TIFF",
            compression="tiff_adobe_deflate" if compress else None,
        )
        decode(whole, "x")
        for cut in range(9, len(whole) - 200, len(whole) // 9):
            with pytest.raises(InputError, match="damaged or cut short"):
                decode(whole[:cut], "x")


class TestWholeness:
    """Damage is found where a format says what is whole."""

    def test_every_flipped_bit_of_a_png_is_found(self):
        data = encode(make_image())
        for position in range(8, len(data), 7):
            damaged = bytearray(data)
            damaged[position] ^= 1 << position % 8
            with pytest.raises(InputError):
                decode(bytes(damaged), "x")

    @pytest.mark.parametrize("interlaced", [0, 1])
    @pytest.mark.parametrize("mode", ["RGB", "L", "P"])
    def test_a_png_with_fewer_rows_than_its_header_says(self, interlaced, mode):
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
    def test_a_jpeg_that_was_cut_and_closed(self, seed):
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

    def test_a_jpeg_of_many_scans(self):
        data = encode(make_image(), "JPEG", progressive=True)
        decode(data, "x")
        scan = data[data.rindex(b"\xff\xda") : -2]
        with pytest.raises(InputError, match="scans"):
            decode(data[:-2] + scan * 200 + b"\xff\xd9", "x")

    def test_nothing_to_be_seen(self):
        with pytest.raises(InputError, match="transparent everywhere"):
            decode(encode(Image.new("RGBA", (16, 16), (200, 0, 0, 0))), "x")


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
