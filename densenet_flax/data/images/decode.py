"""Encoded bytes to RGB pixels, whatever the file is, or one line that says why not."""

import io
import struct
import zlib

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from densenet_flax.common.errors import InputError

# A tile has at most this many pixels (8192×8192): larger ones are slides, and decoding one could
# take all memory. Read from the header, before anything is decoded.
MAX_PIXELS = 2**26
MIN_SIDE = 8
FAILURES = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)
# Pillow's bilinear filter widens with the reduction, so nothing aliases; a plain box gives blocks
# at the odd factors of 700 -> 224, and `reducing_gap` trades exactness for a tenth of the time.
_FILTER = Image.Resampling.BILINEAR
_SIXTEEN_BITS = ("I", "I;16", "I;16B", "I;16L", "I;16N")


def decode(data: bytes, where: object) -> np.ndarray:
    """The pixels of an image as uint8 [H, W, 3].

    Grey, palette, CMYK and 16-bit images become RGB; transparency is laid over white, the colour
    of an empty slide; a rotation noted in EXIF is applied; of several pages the first is taken.

    Args:
      data: the content of the file.
      where: what messages call it.

    Raises:
      InputError: it is not a whole image, or none that could be a tile.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                problem = f"has {width}×{height} pixels: a slide and not a tile; cut tiles from it"
            elif min(width, height) < MIN_SIDE:
                problem = (
                    f"has {width}×{height} pixels; expected at least {MIN_SIDE} each way; take it "
                    "out"
                )
            else:
                return to_array(image)
    except UnidentifiedImageError:
        problem = "is not an image" if data else "is empty"
        problem += "; copy the file again or take it out"
    except FAILURES as error:
        problem = f"is damaged or cut short ({error}); copy the file again or take it out"
    raise InputError(f"{where}: {problem}")


def to_array(image: Image.Image) -> np.ndarray:
    """The pixels of an opened image as uint8 [H, W, 3], by the rules of `decode`.

    Raises:
      ValueError: 32-bit or floating point values, or, as an `OSError`, damage.
    """
    return np.asarray(_to_rgb(ImageOps.exif_transpose(image)))


def is_plain(image: Image.Image) -> bool:
    """Whether an opened tile is RGB as it stands, not transparent or turned, and of a good size."""
    width, height = image.size
    fits = min(width, height) >= MIN_SIDE and width * height <= MAX_PIXELS
    turned = image.getexif().get(ExifTags.Base.Orientation, 1) != 1
    return image.mode == "RGB" and fits and not image.has_transparency_data and not turned


def resize(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Brings uint8 [H, W, 3] to (height, width)."""
    return np.asarray(Image.fromarray(pixels).resize((size[1], size[0]), _FILTER))


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in _SIXTEEN_BITS:
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError(f"32-bit values up to {values.max()}, expected 16 bits")
        return Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError("floating point values, expected 8 or 16 bits")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")
