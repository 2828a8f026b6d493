"""Encoded images to RGB pixels, whatever the file format, or one line that says why not."""

import os
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator

import numpy as np
from jaxtyping import UInt8
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from densenet_flax.common.errors import InputError
from densenet_flax.common.prefetch import Item, Result, prefetch
from densenet_flax.data.images.formats import MAX_PIXELS, open_image

MIN_SIDE = 8
# What Pillow's decoders raise on damaged files.
DECODE_ERRORS = (
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
_SIXTEEN_BIT_MODES = ("I", "I;16", "I;16B", "I;16L", "I;16N")


def decode(data: bytes, name: object) -> UInt8[np.ndarray, "H W 3"]:
    """Decodes the content of a file, which messages call `name`.

    Gray, palette, CMYK and 16-bit images become RGB; transparent pixels are laid over white, the
    color of an empty slide; a rotation noted in EXIF is applied; of several pages the first is
    taken.

    Raises:
      InputError: it is not a whole image, or not one that could be a tile.
    """
    try:
        with open_image(data) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                problem = ": a slide and not a tile; cut tiles from it"
            elif min(width, height) < MIN_SIDE:
                problem = f"; expected at least {MIN_SIDE} each way; remove it"
            else:
                return to_array(image)
    except DECODE_ERRORS as error:
        raise InputError(f"{name}: {describe_damage(error, data, 'an image')}") from error
    raise InputError(f"{name}: has {width}×{height} pixels{problem}")


def describe_damage(error: Exception, data: bytes, expected: str) -> str:
    """Says what is wrong with the content of a file that raised one of DECODE_ERRORS."""
    if not isinstance(error, UnidentifiedImageError):
        problem = f"is damaged or cut short ({error})"
    else:
        problem = f"is not {expected}" if data else "is empty"
    return f"{problem}; copy the file again or remove it"


def decode_in_threads(
    function: Callable[[Item], Result], items: Iterable[Item], skipped: list[str] | None
) -> Iterator[Result]:
    """Yields `function(item)` of each item in order, computed on all cores.

    Args:
      function: decodes; Pillow does so outside the GIL. Raises an `InputError` for a bad image.
      items: advanced in the caller's thread, so that files are read in order.
      skipped: gets a line for each bad image, which is then left out; None to raise.
    """

    def attempt(item: Item) -> Result | InputError:
        try:
            return function(item)
        except InputError as error:
            if skipped is None:
                raise
            return error

    for result in prefetch(attempt, items, depth=4 * (os.cpu_count() or 1)):
        if isinstance(result, InputError):
            assert skipped is not None  # without it `attempt` raises
            skipped.append(str(result))
        else:
            yield result


def to_array(image: Image.Image) -> UInt8[np.ndarray, "H W 3"]:
    """Returns the pixels of an opened image, by the rules of `decode`.

    Raises:
      ValueError: 32-bit or floating point values.
      OSError: the image is damaged; other decoders raise others of DECODE_ERRORS.
    """
    return np.asarray(_to_rgb(ImageOps.exif_transpose(image)))


def is_plain_tile(image: Image.Image) -> bool:
    """Whether `decode` would take the pixels of an opened image as they are stored."""
    width, height = image.size
    fits = min(width, height) >= MIN_SIDE and width * height <= MAX_PIXELS
    is_rotated = image.getexif().get(ExifTags.Base.Orientation, 1) != 1
    return image.mode == "RGB" and fits and not image.has_transparency_data and not is_rotated


def resize(pixels: UInt8[np.ndarray, "H W 3"], size: tuple[int, int]) -> UInt8[np.ndarray, "h w 3"]:
    """Resizes an image to (height, width)."""
    return np.asarray(Image.fromarray(pixels).resize((size[1], size[0]), _FILTER))


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in _SIXTEEN_BIT_MODES:  # which Pillow would clip at 255 and not scale
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
