"""Which image files are read: the endings of their names, and the formats of Pillow that open them.

Pillow knows some forty formats more. They are left alone: one of them starts another program
(Ghostscript, for EPS), and several fail on damaged files in ways that end the process.
"""

import functools
import io
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from densenet_flax.common.errors import InputError
from densenet_flax.common.reading import check_regular, read_file

# A tile has at most this many pixels (8192×8192): larger images are slides, and decoding one could
# take all memory. Read from the header, before anything is decoded.
MAX_PIXELS = 2**26
# Eight bytes a pixel: four channels of 16 bits that are not compressed.
MAX_BYTES = 8 * MAX_PIXELS
SLIDE = "a slide and not a tile; cut tiles from it, or predict it with --mode=slide"
# Endings of what scanners write, in lower case (https://openslide.org/formats).
SCANNER_SUFFIXES = (".svs", ".ndpi", ".mrxs", ".scn", ".bif", ".svslide", ".vms", ".vmu", ".czi")

# For messages.
FORMAT_NAMES = "PNG, JPEG, TIFF, BMP, WebP, GIF, JPEG 2000, AVIF"
# Lower-case endings of names -> the format, as Pillow calls it. What a file is, its content says.
SUFFIXES = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".jpe": "JPEG",
    ".jfif": "JPEG",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".bmp": "BMP",
    ".webp": "WEBP",
    ".gif": "GIF",
    ".jp2": "JPEG2000",
    ".j2k": "JPEG2000",
    ".jpx": "JPEG2000",
    ".avif": "AVIF",
}
IMAGE_SUFFIXES = tuple(SUFFIXES)


# What a PNG of this program says of itself; see `png_mark`.
_MARK = "Software", "densenet_flax, a picture of a prediction"


def png_mark() -> PngInfo:
    """Marks a picture that this program draws of an image, so that it is never taken for one."""
    info = PngInfo()
    info.add_text(*_MARK)
    return info


def is_marked(image: Image.Image) -> bool:
    """Whether a loaded image has the mark of `png_mark`."""
    return image.info.get(_MARK[0]) == _MARK[1]


def has_png_mark(path: Path) -> bool:
    """Whether a file begins as a PNG with the mark of `png_mark`; nothing is decoded."""
    try:
        check_regular(path, path)
        with open(path, "rb") as file:
            return "\0".join(_MARK).encode() in file.read(512)
    except (OSError, InputError):
        return False


@functools.cache
def formats() -> list[str]:
    """The formats that are opened, of those that this Pillow was built with."""
    Image.init()
    # Cameras write MPO, a JPEG with more pictures behind the first one, under the name of a JPEG.
    return [name for name in dict.fromkeys([*SUFFIXES.values(), "MPO"]) if name in Image.OPEN]


class UnsupportedImage(ValueError):
    """An image that is whole, but not one that can be used; the message says why."""


def read_image_file(path: Path, name: object = None) -> bytes:
    """Returns the content of an image file that may be a tile; see `read_file`."""
    return read_file(path, name, max_bytes=MAX_BYTES, larger=SLIDE)


def open_image(data: bytes) -> Image.Image:
    """Reads the header of an encoded image; as `PIL.Image.open`, for the formats named above."""
    return Image.open(io.BytesIO(data), formats=formats())
