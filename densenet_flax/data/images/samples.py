"""The samples of an opened image as 8-bit RGB: bit depths, planes, transparency, rotation."""

import io
import sys
from collections.abc import Iterator

import numpy as np
from jaxtyping import Integer, UInt8
from PIL import ExifTags, Image

from densenet_flax.data.images.formats import UnsupportedImage
from densenet_flax.data.images.tiff_planes import read_planes

# Of more than 8 bits cameras use 10, 12 or 14. Values from here on need 16.
_KNOWN_FROM = 2**14
_DEEP_MODES = ("I", "I;16", "I;16B", "I;16L", "I;16N")
_WHITE_IS_ZERO = {262: 0}  # a tag of TIFF
# Pixels that are converted at a time, so that there are no further copies of a whole large image.
_BAND_PIXELS = 2**20
_NATIVE, _SWAPPED = ("L", "B") if sys.byteorder == "little" else ("B", "L")
# The mode in which Pillow takes the lower byte of two where it would take the higher.
_LOWER_BYTES = {";16B": ";16L", ";16L": ";16B", ";16N": f";16{_SWAPPED}"}


def to_rgb(image: Image.Image, bits: int = 0) -> UInt8[np.ndarray, "H W 3"]:
    """Returns the pixels of an opened image as RGB, by the rules of `decode`.

    Raises:
      UnsupportedImage: it cannot be known what its values or planes are, or nothing can be seen.
      Exception: it is damaged; what Pillow's decoders raise.
    """
    planes = read_planes(image)
    if planes is not None:
        return np.stack([_scale(plane, bits) for plane in planes], -1)
    raw_mode = _raw_mode(image)
    if image.mode in _DEEP_MODES:
        gray = _scale(np.asarray(image), 12 if raw_mode == "I;12" else bits)
        if _WHITE_IS_ZERO.items() <= dict(getattr(image, "tag_v2", {})).items():
            gray = 255 - gray
        return _rotate(np.repeat(gray[..., None], 3, -1), image)
    if image.mode == "F":
        raise UnsupportedImage("has floating point values; save it with 8 or 16 bits")
    if ";16" in raw_mode and bits not in (0, 16):
        image = _read_deep_colors(image, raw_mode, bits)
    elif ";16" in raw_mode and not bits:
        image.load()  # the higher byte of each value
        colors = image.getbands()[: 1 if image.mode.startswith("L") else 3]
        _check_depth(256 * max(_highest(image, color) for color in colors), 16)
    return _rotate(_convert(image), image)


def is_plain(image: Image.Image) -> bool:
    """Whether `to_rgb` takes the pixels of an opened image as they are stored."""
    is_rotated = image.getexif().get(ExifTags.Base.Orientation, 1) != 1
    is_deep = "16" in _raw_mode(image)
    return image.mode == "RGB" and not (image.has_transparency_data or is_rotated or is_deep)


def _raw_mode(image: Image.Image) -> str:
    """How the samples are stored in the file, in Pillow's words; '' once they are loaded."""
    for tile in getattr(image, "tile", ()):
        arguments = tile[3]
        return str(arguments[0] if isinstance(arguments, tuple) and arguments else arguments)
    return ""


def _scale(values: Integer[np.ndarray, "H W"], bits: int) -> UInt8[np.ndarray, "H W"]:
    """Scales gray values to 8 bits: the largest that `bits` hold become 255."""
    if values.dtype == np.uint8:
        return values
    lowest, highest = int(values.min()), int(values.max())
    if lowest < 0:
        raise UnsupportedImage(f"has negative values, down to {lowest}; save it with 8 or 16 bits")
    if not bits:
        _check_depth(highest, 8 * values.dtype.itemsize)
        bits = 16
    if highest >> bits:
        raise UnsupportedImage(
            f"has values up to {highest}, which {bits} bits do not hold; correct data.bits"
        )
    largest = 2**bits - 1
    table = ((np.arange(largest + 1, dtype=np.uint32) * 255 + largest // 2) // largest).astype(
        np.uint8
    )
    scaled = np.empty(values.shape, np.uint8)
    for top, bottom in _bands(values.shape[1], values.shape[0]):
        scaled[top:bottom] = table[values[top:bottom]]
    return scaled


def _check_depth(highest: int, stored_bits: int) -> None:
    """Raises an error if the values of an image may use fewer bits than it stores."""
    if stored_bits == 16 and highest >= _KNOWN_FROM:
        return
    likely = next((bits for bits in (8, 10, 12, 14, 16) if not highest >> bits), None)
    advice = f"state it, such as data.bits={likely}" if likely else "save it with 8 or 16 bits"
    raise UnsupportedImage(
        f"has values up to {highest} in {stored_bits} bits, and it is not known how many of these "
        f"bits they use; {advice}"
    )


def _read_deep_colors(image: Image.Image, raw_mode: str, bits: int) -> Image.Image:
    """Scales an image with several samples of 16 bits; Pillow reads one byte of each at a time."""
    file = getattr(image, "fp", None)
    lower_bytes = _LOWER_BYTES.get(raw_mode[-4:])
    if file is None or lower_bytes is None:
        raise UnsupportedImage("has 16 bits in a form that is not read; save it as 16-bit RGB")
    file.seek(0)
    data = file.read()
    values = np.asarray(image).astype(np.uint16) << 8
    with Image.open(io.BytesIO(data), formats=[image.format or ""]) as again:
        mode = raw_mode[:-4] + lower_bytes
        again.tile = [
            tile._replace(args=(mode, *tile.args[1:]) if isinstance(tile.args, tuple) else mode)
            for tile in again.tile
        ]
        values |= np.asarray(again)
    scaled = np.stack([_scale(values[..., i], bits) for i in range(values.shape[-1])], -1)
    return Image.fromarray(scaled)


def _convert(image: Image.Image) -> UInt8[np.ndarray, "H W 3"]:
    """Converts 8-bit samples of any kind, band by band; transparent pixels become white."""
    image.load()
    is_transparent = image.has_transparency_data
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    visible = not is_transparent
    for top, bottom in _bands(image.width, image.height):
        band = image.crop((0, top, image.width, bottom))
        if is_transparent:
            band = band.convert("RGBA")
            visible = visible or _highest(band, "A") > 0
            band = Image.alpha_composite(Image.new("RGBA", band.size, "white"), band)
        pixels[top:bottom] = np.asarray(band.convert("RGB"))
    if not visible:
        raise UnsupportedImage(
            "is transparent everywhere (its alpha is 0); save it without an alpha channel"
        )
    return pixels


def _highest(image: Image.Image, band: str) -> int:
    return int(np.asarray(image.getchannel(band).getextrema())[1])


def _bands(width: int, height: int) -> Iterator[tuple[int, int]]:
    rows = max(1, _BAND_PIXELS // width)
    for top in range(0, height, rows):
        yield top, min(top + rows, height)


def _rotate(pixels: UInt8[np.ndarray, "h w 3"], image: Image.Image) -> UInt8[np.ndarray, "H W 3"]:
    """Applies the rotation that EXIF notes; Pillow has done so for a TIFF, and forgotten it."""
    orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    if orientation not in range(2, 9):
        return pixels
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)
