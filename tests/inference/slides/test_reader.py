"""Slides are read to the pixel; what is damaged or hostile is one line."""

import os
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tifffile
from PIL import Image

from densenet_flax.common.errors import InputError
from densenet_flax.data.synthetic.slide_files import write_slide
from densenet_flax.inference.slides.reader import open_reader
from densenet_flax.inference.slides.slide import open_slide

TILE = 256


@pytest.fixture(scope="module")
def levels(slide_file):
    """The pixels of each level, read by another library."""
    with tifffile.TiffFile(slide_file) as file:
        return [page.asarray() for page in file.pages]


@pytest.fixture(scope="module")
def aperio_files(slide_world, tmp_path_factory):
    """The drawn slide as from a scanner, without loss and as JPEG."""
    folder = tmp_path_factory.mktemp("aperio")
    for compression in ("deflate", "jpeg"):
        path = folder / f"{compression}.svs"
        write_slide(path, slide_world, vendor="aperio", compression=compression)
    return folder


def pad(pixels, y, x, height, width):
    """A rectangle of an image, white beyond its edges."""
    border = 400
    padded = np.pad(pixels, ((border, border), (border, border), (0, 0)), constant_values=255)
    return padded[y + border : y + border + height, x + border : x + border + width]


@pytest.mark.parametrize("corner", [(0, 0), (213, 307), (-30, -45), (330, 470), (-300, -300)])
def test_every_level_is_read_to_the_pixel(slide_file, levels, corner):
    reader = open_reader(slide_file)
    assert reader.level_sizes == tuple(level.shape[:2] for level in levels)
    for number, level in enumerate(levels):
        pixels = reader.read(number, *corner, 101, 83)
        np.testing.assert_array_equal(pixels, pad(level, *corner, 101, 83))


def test_an_aperio_file_has_the_same_pixels(aperio_files, slide_world):
    exact, jpeg = (open_reader(aperio_files / f"{kind}.svs") for kind in ("deflate", "jpeg"))
    where = 500, 700, 256, 300
    expected = pad(slide_world.pixels, *where)
    np.testing.assert_array_equal(exact.read(0, *where), expected)
    difference = jpeg.read(0, *where).astype(int) - expected
    assert 0 < np.abs(difference).mean() < 6
    assert exact.objective_power == 20
    assert exact.resolutions == {"aperio.MPP": (1, 1), "openslide.mpp-x": (1, 1)}
    assert [d[0] for d in exact.level_downsamples] == pytest.approx([1, 4], rel=0.01)


def test_jpeg2000_as_scanners_write_it(tmp_path, levels):
    path = tmp_path / "a.svs"
    description = "Aperio Image Library v11\r\n2000x1500 (256x256) J2K/KDU|MPP = 0.5"
    options = {"compression": "APERIO_JP2000_RGB", "photometric": "rgb", "metadata": None}
    tifffile.imwrite(path, levels[1], tile=(TILE, TILE), description=description, **options)
    pixels = open_reader(path).read(0, 100, 100, 200, 200)
    np.testing.assert_array_equal(pixels, levels[1][100:300, 100:300])


def test_what_is_transparent_is_white(tmp_path, levels):
    alpha = np.full(levels[2].shape[:2], 255, np.uint8)
    alpha[:100], alpha[100:200] = 0, 128
    path = tmp_path / "alpha.tif"
    options = {"compression": "zlib", "photometric": "rgb", "extrasamples": ["unassalpha"]}
    tifffile.imwrite(path, np.dstack([levels[2], alpha]), tile=(TILE, TILE), **options)
    pixels = open_reader(path).read(0, 0, 100, 300, 20).astype(int)
    expected = levels[2][:300, 100:120].astype(int)
    assert pixels[:100].min() == 255
    np.testing.assert_allclose(pixels[100:200], 127 + expected[100:200] * 128 / 255, atol=2)
    np.testing.assert_array_equal(pixels[200:], expected[200:])


def damage(path, target, level, part, content=None):
    """Copies a file, with one of its parts overwritten, or marked as missing."""
    shutil.copy(path, target)
    with tifffile.TiffFile(target, mode="r+b") as file:
        page = [page for page in file.pages if page.is_tiled][level]
        offset, count = page.dataoffsets[part], page.databytecounts[part]
        if content is None:
            tag = page.tags["TileByteCounts"]
            tag.overwrite([0 if i == part else n for i, n in enumerate(tag.value)])
    if content is not None:
        with open(target, "r+b") as file:
            file.seek(offset)
            file.write((content * count)[:count])
    return target


@pytest.mark.parametrize("kind", ["drawn.tif", "jpeg.svs"])
@pytest.mark.parametrize("content", [b"\0", b"\xff\xd8\xff\xe0 no more"])
def test_a_damaged_part_is_an_error_there_and_only_there(
    kind, content, slide_file, aperio_files, tmp_path
):
    source = slide_file if kind == "drawn.tif" else aperio_files / kind
    across = -(-2000 // TILE)
    reader = open_reader(damage(source, tmp_path / kind, 0, across + 1, content))
    whole = open_reader(source)
    for _ in range(2):  # a handle that failed is not used again
        with pytest.raises(InputError, match=rf"{kind}: is damaged at x=256, y=300") as info:
            reader.read(0, 300, 256, 20, 20)
        assert "\n" not in str(info.value)
        for where in ((0, 0, 256, 900), (512, 256, 200, 200)):
            np.testing.assert_array_equal(reader.read(0, *where), whole.read(0, *where))


def test_a_part_that_was_not_scanned_is_white(slide_file, tmp_path):
    reader = open_reader(damage(slide_file, tmp_path / "a.tif", 0, 0))
    assert reader.read(0, 0, 0, TILE, TILE).min() == 255


def test_threads_read_what_one_reads(slide_file, tmp_path):
    """Also while some of them meet a damaged part, which makes a handle of OpenSlide useless."""
    path = damage(slide_file, tmp_path / "a.tif", 0, 9, b"\0")
    whole, reader = open_reader(slide_file), open_reader(path)
    rng = np.random.default_rng(0)
    corners = [tuple(rng.integers(0, 1400, 2).tolist()) for _ in range(60)]

    def read(corner):
        try:
            return reader.read(0, *corner, 64, 64)
        except InputError:
            return None

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(read, corners))
    for (y, x), pixels in zip(corners, results, strict=True):
        if y + 64 > TILE and y < 2 * TILE and x + 64 > TILE and x < 2 * TILE:
            assert pixels is None
        else:
            np.testing.assert_array_equal(pixels, whole.read(0, y, x, 64, 64))
    assert sum(pixels is None for pixels in results) > 2


def test_an_image_is_a_slide_of_one_level(levels, tmp_path):
    image = Image.fromarray(levels[2])
    image.save(tmp_path / "a.png", dpi=(50_800, 50_800))  # of 0.5 µm
    image.save(tmp_path / "a.jpg", dpi=(25_400, 25_400), quality=95)
    image.save(tmp_path / "a.tif", dpi=(50_800, 50_800))  # strips, which OpenSlide leaves
    for name, mpp in (("a.png", 0.5), ("a.jpg", 1), ("a.tif", 0.5)):
        slide = open_slide(tmp_path / name)
        assert slide.mpp == pytest.approx((mpp, mpp), rel=1e-4)
        assert slide.reader.level_sizes == (levels[2].shape[:2],)
        if name != "a.jpg":
            pixels = slide.reader.read(0, -20, 400, 100, 200)
            np.testing.assert_array_equal(pixels, pad(levels[2], -20, 400, 100, 200))
            assert slide.reader.read(0, 5000, 5000, 3, 3).min() == 255


def write_bytes(content):
    return lambda path, slide: path.write_bytes(content)


def overwrite(**tags):
    def write(path, slide):
        shutil.copy(slide, path)
        with tifffile.TiffFile(path, mode="r+b") as file:
            for name, value in tags.items():
                file.pages[0].tags[name].overwrite(value)

    return write


def cut(share):
    def write(path, slide):
        content = slide.read_bytes()
        path.write_bytes(content[: int(share * len(content))])

    return write


HUGE = {"ImageWidth": 2**31 - 1, "ImageLength": 2**31 - 1}
HOSTILE = {
    "not there": (lambda path, slide: None, "cannot be read"),
    "empty": (write_bytes(b""), "is empty"),
    "a text": (write_bytes(b"hello" * 20), "nor does OpenSlide"),
    "a folder": (lambda path, slide: path.mkdir(), "a folder without DICOM files"),
    "a pipe": (lambda path, slide: os.mkfifo(path), "is a named pipe"),
    "cut early": (cut(0.001), "damaged or cut short"),
    "cut late": (cut(0.999), "is damaged, cut short"),
    "a huge image": (overwrite(**HUGE), "is damaged, cut short"),
    "huge parts": (overwrite(TileWidth=65520, TileLength=65520), "parts of 65520×65520 pixels"),
    "an unknown compression": (overwrite(Compression=50001), "of a kind that OpenSlide"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_what_is_no_slide_is_one_line(case, slide_file, tmp_path):
    write, message = HOSTILE[case]
    path = tmp_path / "a.svs"
    write(path, slide_file)
    with pytest.raises(InputError, match=rf"a\.svs: .*{message}") as info:
        open_slide(path, 0.5)
    assert "\n" not in str(info.value)


def test_an_image_in_one_piece_that_is_too_large_says_how_to_convert_it(tmp_path):
    image = Image.new("1", (9000, 9000))
    image.save(tmp_path / "a.png")
    with pytest.raises(InputError, match=r"9000×9000 pixels in one piece.*vips tiffsave"):
        open_slide(tmp_path / "a.png", 0.5)


def test_no_more_is_read_at_once_than_fits(slide_file):
    with pytest.raises(InputError, match="9000×9000 pixels at once"):
        open_reader(slide_file).read(0, 0, 0, 9000, 9000)
