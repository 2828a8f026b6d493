"""TIFF files whose colors are in several planes or pages, of which Pillow reads the first alone."""

import contextlib
import io
import re
import struct
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from jaxtyping import Integer
from PIL import Image, TiffImagePlugin

from densenet_flax.data.images.formats import UnsupportedImage
from densenet_flax.data.images.integrity import check_tiff

TIFF_MAGIC = (b"II*\0", b"MM\0*")

_BITS, _PHOTOMETRIC, _DESCRIPTION, _SAMPLES, _PLANAR, _FORMAT = 258, 262, 270, 277, 284, 339
_SUBFILE, _TILE_WIDTH = 254, 322
# Programs for slides write pyramids of smaller images as well, which may be tiles.
_MAX_TILE_WITH_LEVELS = 1024
_MAX_LEVELS = 16
_REDUCED, _MASK = 1, 4  # bits of it: what a page is besides a page
_STRIP_OR_TILE = {273, 279, 324, 325}  # offsets and byte counts
# What a plane has from its image: size, compression, fill order, orientation, rows of a strip,
# predictor, size of a tile.
_COPIED = {256, 257, 259, 266, 274, 278, 317, 322, 323, *_STRIP_OR_TILE}
_LONG = 4  # the type of a tag's values
_DEEP_GRAY = ("I;16", "I;16B")
_COLORS = ("red", "green", "blue")
_ONE_PAGE = "save it as one RGB image"


def read_planes(image: Image.Image) -> list[Integer[np.ndarray, "H W"]] | None:
    """Returns the red, green and blue plane of an opened TIFF; None if Pillow reads it right.

    Raises:
      UnsupportedImage: it cannot be known what its planes or pages are.
      ValueError: it is damaged; other exceptions of Pillow's decoders, too.
    """
    if not isinstance(image, TiffImagePlugin.TiffImageFile) or not image.tile:
        return None
    if image.mode in ("L", *_DEEP_GRAY):
        pages = _pages_of_colors(image)
        return [_read_page(image, page) for page in pages] if pages else None
    # Pillow reads planes of 8 bits right.
    if image.tag_v2.get(_PLANAR) == 2 and 16 in _integers(image.tag_v2.get(_BITS, ())):
        return [np.asarray(plane) for plane in _split_planes(image)]
    return None


def is_slide(image: Image.Image) -> bool:
    """Whether an opened TIFF is a whole slide: in tiles, and Aperio's or with smaller levels.

    Pillow reads level 0 of it; as a tile that would be squeezed into a few hundred pixels.
    """
    if not isinstance(image, TiffImagePlugin.TiffImageFile) or _TILE_WIDTH not in image.tag_v2:
        return False
    if str(image.tag_v2.get(_DESCRIPTION, "")).startswith("Aperio"):
        return True
    (width, height), page = image.size, 1
    if max(width, height) <= _MAX_TILE_WITH_LEVELS:
        return False
    has_level = False
    with contextlib.suppress(EOFError):
        while page < _MAX_LEVELS and not has_level:
            image.seek(page)
            smaller = image.width < 0.6 * width and image.height < 0.6 * height
            has_level = smaller and _TILE_WIDTH in image.tag_v2
            page += 1
    image.seek(0)
    return has_level


def describe_tiff(data: bytes) -> str:
    """Says what a TIFF is that Pillow does not know; '' if that cannot be read either."""
    try:
        tags = TiffImagePlugin.ImageFileDirectory_v2(data[:8])
        if tags.next > len(data):  # the directory is not there
            return ""
        file = io.BytesIO(data)
        file.seek(tags.next)
        tags.load(file)
        if not {256, 257, _BITS} <= tags.keys():
            return ""
        bits = ", ".join(map(str, sorted(set(_integers(tags.get(_BITS, 1))))))
        samples, is_float = tags.get(_SAMPLES, 1), 3 in _integers(tags.get(_FORMAT, 1))
    except Exception:  # whatever is wrong with it has been said
        return ""
    kind = "floating point " if is_float else ""
    return (
        f"is a TIFF of {samples} channel(s) of {bits} bits {kind}that is not read; expected gray, "
        "RGB or RGBA of 8 or 16 bits"
    )


def _pages_of_colors(image: TiffImagePlugin.TiffImageFile) -> Sequence[int]:
    """The pages of red, green and blue of a gray TIFF; () if it is one gray image."""
    description = str(image.tag_v2.get(_DESCRIPTION, ""))
    if description.startswith("ImageJ="):
        values = dict(re.findall(r"^(\w+)=(\d+)\s*$", description[:10_000], re.MULTILINE))
        count, channels = int(values.get("images", 1)), int(values.get("channels", 1))
        if count == channels == 3:
            return range(3)
        what = f"is an ImageJ stack of {count} planes in {channels} channel(s)"
    elif match := re.search(r"<(?:\w+:)?Pixels\s[^>]{1,2000}", description[:200_000]):
        sizes = dict(re.findall(r"\sSize([CZT])=['\"](\d+)['\"]", match[0]))
        channels = int(sizes.get("C", 1))
        count = channels * int(sizes.get("Z", 1)) * int(sizes.get("T", 1))
        if count == channels == 3:
            return _ome_order(description[match.end() :])
        what = f"is an OME stack of {count} planes in {channels} channel(s)"
    else:
        count, what = _count_pages(image), "holds several gray pages of one size"
    if count > 1:
        raise UnsupportedImage(f"{what}, and a tile has one, or red, green and blue; {_ONE_PAGE}")
    return ()


def _ome_order(description: str) -> Sequence[int]:
    """The pages of red, green and blue by the names of the channels, which may have none."""
    channels = re.findall(r"<(?:\w+:)?Channel\s[^>]{1,2000}", description[:100_000])
    names = [re.search(r"\sName=['\"]([^'\"]*)['\"]", channel) for channel in channels[:3]]
    known = [name[1].strip().lower() for name in names if name]
    if not known or known in (["r", "g", "b"], ["0", "1", "2"]):
        return range(3)
    if sorted(known) == sorted(_COLORS):
        return [known.index(color) for color in _COLORS]
    raise UnsupportedImage(
        f"is an OME image of the channels {', '.join(known)}, and not of red, green and blue; "
        f"{_ONE_PAGE}"
    )


def _count_pages(image: TiffImagePlugin.TiffImageFile) -> int:
    """1, or 2 if the second page could be another plane of the image."""
    size = image.size
    try:
        image.seek(1)
    except EOFError:
        return 1
    kind = image.tag_v2.get(_SUBFILE, 0)
    is_plane = image.size == size and not kind & (_REDUCED | _MASK)
    image.seek(0)
    return 1 + is_plane


def _read_page(image: TiffImagePlugin.TiffImageFile, page: int) -> Integer[np.ndarray, "H W"]:
    size, mode = image.size, image.mode
    try:
        image.seek(page)
    except EOFError:
        raise UnsupportedImage(f"has a plane that is not a page of the file; {_ONE_PAGE}") from None
    if image.size != size or image.mode != mode:
        raise UnsupportedImage(f"has planes of different sizes or kinds; {_ONE_PAGE}")
    assert image.fp is not None  # of an image that is not loaded
    check_tiff(image, image.fp.seek(0, io.SEEK_END))
    return np.asarray(image)


def _split_planes(image: TiffImagePlugin.TiffImageFile) -> Iterator[Image.Image]:
    """Opens each of the first three planes as a gray TIFF of its own, with the same content."""
    tags, file = image.tag_v2, image.fp
    assert file is not None
    file.seek(0)
    data = file.read()
    if data[2:4] not in (b"*\0", b"\0*"):
        raise UnsupportedImage(f"is a BigTIFF with a plane for each color; {_ONE_PAGE}")
    order = "<" if tags.prefix == b"II" else ">"
    copied = {tag: _integers(tags[tag]) for tag in _COPIED if tag in tags}
    samples = tags[_SAMPLES]
    for number in range(3):
        entries = {**copied, _BITS: (16,), _PHOTOMETRIC: (1,), _SAMPLES: (1,), _PLANAR: (1,)}
        for tag in _STRIP_OR_TILE & entries.keys():
            count = len(entries[tag]) // samples
            entries[tag] = entries[tag][number * count : (number + 1) * count]
        start = len(data) + len(data) % 2
        header = data[:4] + struct.pack(f"{order}I", start)
        content = (header + data[8:]).ljust(start, b"\0") + _directory(entries, start, order)
        yield Image.open(io.BytesIO(content), formats=["TIFF"])


def _directory(entries: Mapping[int, Sequence[int]], start: int, order: str) -> bytes:
    """The bytes of a TIFF directory that begins at `start` in its file."""
    after = start + 2 + 12 * len(entries) + 4
    directory, values = struct.pack(f"{order}H", len(entries)), b""
    for tag, numbers in sorted(entries.items()):
        packed = struct.pack(f"{order}{len(numbers)}I", *numbers)
        if len(numbers) > 1:  # a pointer stands where a single one fits
            packed, values = struct.pack(f"{order}I", after + len(values)), values + packed
        directory += struct.pack(f"{order}HHI", tag, _LONG, len(numbers)) + packed
    return directory + bytes(4) + values


def _integers(value: int | Sequence[int]) -> Sequence[int]:
    return (value,) if isinstance(value, int) else tuple(value)
