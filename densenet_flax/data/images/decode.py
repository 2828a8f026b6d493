"""Encoded images to RGB pixels, whatever the file format, or one line that says why not."""

import contextlib
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

import numpy as np
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError

from densenet_flax.common.errors import InputError
from densenet_flax.common.prefetch import Result, prefetch
from densenet_flax.data.images.formats import (
    FORMAT_NAMES,
    MAX_PIXELS,
    SLIDE,
    UnsupportedImage,
    is_marked,
    open_image,
    read_image_file,
)
from densenet_flax.data.images.integrity import check_decoded, check_encoded, check_tiff
from densenet_flax.data.images.samples import to_rgb
from densenet_flax.data.images.tiff_planes import TIFF_MAGIC, describe_tiff, is_slide

MIN_SIDE = 8
# Larger images are decoded one at a time: several of 8192×8192 pixels would take gigabytes.
_LARGE_PIXELS = 2**24
_LARGE_BYTES = 2**26
_large_image = threading.RLock()
# JPEG 2000 and AVIF take many bytes a pixel while they are decoded.
_MAX_PIXELS_OF_FORMAT = {"JPEG2000": 2**24, "AVIF": 2**24}
_MAX_BYTES_IN_FLIGHT = 2**28
# Pillow's bilinear filter widens with the reduction, so nothing aliases; a plain box gives blocks
# at the odd factors of 700 -> 224, and `reducing_gap` trades exactness for a tenth of the time.
_FILTER = Image.Resampling.BILINEAR

Key = TypeVar("Key")
# The bytes of an image file, or pixels.
Content = TypeVar("Content", bound=bytes | np.ndarray)


def decode(data: bytes, name: object, bits: int = 0) -> UInt8[np.ndarray, "H W 3"]:
    """Decodes the content of a file, which messages call `name`.

    Gray, palette, CMYK and 16-bit images become RGB; transparent pixels are laid over white, the
    color of an empty slide; a rotation noted in EXIF is applied; of several pages the first is
    taken, or three that are the colors of one image.

    Args:
      data: the content of the file.
      name: of the file.
      bits: how many bits the values of images with more than 8 use. With 0 it is 16, and an image
        whose values would fit into 14 is refused.

    Raises:
      InputError: it is not a whole image, or not one that could be a tile.
    """
    with decoded(data, name, bits) as pixels:
        return pixels


@contextlib.contextmanager
def decoded(
    image: bytes | Path | np.ndarray, name: object, bits: int = 0
) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
    """Decodes as `decode`, for use until the block ends: of large images in one thread at a time.

    Args:
      image: the content of a file, or its path; pixels are yielded as they are.
      name: as in `decode`.
      bits: as in `decode`.
    """
    if isinstance(image, np.ndarray):
        yield image
        return
    with contextlib.ExitStack() as stack:
        if isinstance(image, Path):
            with contextlib.suppress(OSError, ValueError):  # said when it is read
                if image.stat().st_size > _LARGE_BYTES:
                    stack.enter_context(_large_image)
            image = read_image_file(image, name)
        try:
            pixels = _decode(image, bits, stack)
        # Decoders document no exceptions, and damaged files get all kinds from them.
        except Exception as error:
            raise InputError(f"{name}: {describe_problem(error, image)}") from error
        yield pixels


def _decode(data: bytes, bits: int, stack: contextlib.ExitStack) -> UInt8[np.ndarray, "H W 3"]:
    with open_image(data) as header:
        width, height = header.size
        limit = _MAX_PIXELS_OF_FORMAT.get(header.format or "", MAX_PIXELS)
    if width * height > limit:
        advice = SLIDE if limit == MAX_PIXELS else f"at most {limit} are read of this format"
        raise UnsupportedImage(f"has {width}×{height} pixels: {advice}")
    if min(width, height) < MIN_SIDE:
        raise UnsupportedImage(
            f"has {width}×{height} pixels; expected at least {MIN_SIDE} each way; remove it"
        )
    if width * height > _LARGE_PIXELS:
        stack.enter_context(_large_image)
    with open_image(check_encoded(data)) as image:
        if image.format == "TIFF":
            check_tiff(image, len(data))
            if is_slide(image):
                raise UnsupportedImage(f"is {SLIDE}")
        pixels = to_rgb(image, bits)
        check_decoded(image, data)
        if is_marked(image):
            raise UnsupportedImage("is an overlay that this program drew of a tile; remove it")
    return pixels


def describe_problem(error: Exception, data: bytes) -> str:
    """Says what is wrong with the content of an image file that raised an error."""
    if isinstance(error, UnsupportedImage):
        return str(error)
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return f"has too many pixels: {SLIDE}"
    advice = "copy the file again or remove it"
    if not isinstance(error, UnidentifiedImageError):
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        return f"is damaged or cut short ({reason}); {advice}"
    if not data:
        return f"is empty; {advice}"
    if data[:4] in TIFF_MAGIC:
        return describe_tiff(data) or f"is damaged or cut short (a TIFF without an image); {advice}"
    return f"is not an image of a format that is read ({FORMAT_NAMES}); {advice}"


def decode_in_threads(
    function: Callable[[Key, Content], Result],
    items: Iterable[tuple[Key, Content | InputError]],
    skipped: list[str] | None,
) -> Iterator[Result]:
    """Yields `function(key, data)` of each encoded image in order, computed on all cores.

    Args:
      function: decodes; Pillow does so outside the GIL. Raises an `InputError` for a bad image.
      items: what is known of each image, and its content or why it cannot be read. Advanced in the
        caller's thread, so that files are read in order.
      skipped: gets a line for each bad image, which is then left out; None to raise.
    """

    def attempt(item: tuple[Key, Content | InputError]) -> Result | InputError:
        key, data = item
        try:
            if isinstance(data, InputError):
                raise data
            return function(key, data)
        except InputError as error:
            if skipped is None:
                raise
            return error

    def size(item: tuple[Key, Content | InputError]) -> int:
        content = item[1]
        return len(content) if isinstance(content, bytes) else getattr(content, "nbytes", 0)

    depth = 4 * (os.cpu_count() or 1)
    for result in prefetch(attempt, items, depth=depth, size=size, max_size=_MAX_BYTES_IN_FLIGHT):
        if isinstance(result, InputError):
            assert skipped is not None  # without it `attempt` raises
            skipped.append(str(result))
        else:
            yield result


def resize(pixels: UInt8[np.ndarray, "H W 3"], size: tuple[int, int]) -> UInt8[np.ndarray, "h w 3"]:
    """Resizes an image to (height, width)."""
    return np.asarray(Image.fromarray(pixels).resize((size[1], size[0]), _FILTER))
