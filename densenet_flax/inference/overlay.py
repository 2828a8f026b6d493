"""Pictures of saliency maps laid over their images. Works on pixels; knows no network."""

import functools
import io
import math

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFilter, ImageFont

# From violet, transparent, to yellow over violet tissue: the steps can be distinguished with any
# color vision, and in print.
_COLORMAP = "viridis"
_MAX_OPACITY = 0.62  # of the color at the maximum of a map
_MIN_LENGTH, _MAX_LENGTH = 200, 1024  # pixels of the longer edge of a tile in a panel
_GAP, _BAR, _LABELS, _CAPTION = 8, 14, 62, 22  # pixels, at the scale of a small tile


def upsample(values: Float[np.ndarray, "h w"], size: tuple[int, int]) -> Float[np.ndarray, "H W"]:
    """Resizes a map to (height, width), bilinear between the centers of its positions."""
    height, width = size
    image = Image.fromarray(np.asarray(values, np.float32))
    return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))


def relative_strength(values: Float[np.ndarray, "h w"]) -> Float[np.ndarray, "h w"]:
    """Divides the positive part of a map by its maximum; all 0 if nothing is positive."""
    positive = np.maximum(np.asarray(values, np.float32), 0)
    maximum = positive.max()
    return positive / maximum if maximum > 0 else positive


def overlay_map(
    image: UInt8[np.ndarray, "H W 3"], values: Float[np.ndarray, "h w"]
) -> UInt8[np.ndarray, "H W 3"]:
    """Colors the regions of positive values and draws a contour at half the maximum."""
    strength = np.clip(upsample(relative_strength(values), image.shape[:2]), 0, 1)
    blended = _blend(image, strength)
    inside = Image.fromarray((255 * (strength >= 0.5)).astype(np.uint8))
    # The contour: pixels inside that lose a neighbor when the region is eroded by one pixel.
    contour = np.asarray(inside) != np.asarray(inside.filter(ImageFilter.MinFilter(3)))
    blended[contour] = 255
    return blended


def draw_panel(
    image: UInt8[np.ndarray, "H W 3"],
    values: Float[np.ndarray, "h w"],
    *,
    stacked: bool = False,
    caption: str = "",
) -> Image.Image:
    """Draws an image, a copy with its map laid over, and the color scale.

    Args:
      image: RGB; a small one is enlarged, a large one reduced.
      values: a map of the image, at any resolution.
      stacked: whether the copy lies below the image instead of beside it.
      caption: a line of text below them.
    """
    tile = _fit_to_display(image)
    height, width = tile.shape[:2]
    scale = max(1, round(height / 240))  # of text and bar: a large panel is read at a smaller size
    gap, bar, labels = scale * _GAP, scale * _BAR, scale * _LABELS
    caption_height = scale * _CAPTION if caption else 0
    x, y = (0, height + gap) if stacked else (width + gap, 0)
    bar_x = x + width + gap
    canvas = Image.new("RGB", (bar_x + bar + labels, y + height + caption_height), "white")
    canvas.paste(Image.fromarray(tile), (0, 0))
    canvas.paste(Image.fromarray(overlay_map(tile, values)), (x, y))
    tissue = tile.reshape(-1, 3).mean(0)  # so that the scale looks as the colors do over the image
    canvas.paste(_color_bar(tissue, (bar, height)), (bar_x, y))
    # The line across the bar is where the contour runs.
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(12 * scale)
    middle = y + height // 2
    draw.line([(bar_x, middle), (bar_x + bar, middle)], "white", 2 * scale)
    labels_x = bar_x + bar + 4
    draw.text((labels_x, y + 1), "strongest", "black", font, anchor="la")
    draw.text((labels_x, middle), "half", "black", font, anchor="lm")
    draw.text((labels_x, y + height - 1), "none", "black", font, anchor="ld")
    if caption:
        draw.text((0, y + height + caption_height // 2), caption, "black", font, anchor="lm")
    return canvas


def to_png(image: Image.Image) -> bytes:
    """Encodes an image as a PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def shrink_to_display(image: UInt8[np.ndarray, "H W 3"]) -> UInt8[np.ndarray, "h w 3"]:
    """Reduces an image to the largest size that a panel shows; smaller ones are returned as is."""
    longer = max(image.shape[:2])
    return _resize(image, _MAX_LENGTH / longer) if longer > _MAX_LENGTH else image


def _fit_to_display(image: UInt8[np.ndarray, "H W 3"]) -> UInt8[np.ndarray, "h w 3"]:
    longer = max(image.shape[:2])
    if longer >= _MIN_LENGTH:
        return shrink_to_display(image)
    # By a whole number, so that all pixels of a small tile are shown at the same size.
    return _resize(image, math.ceil(_MIN_LENGTH / longer))


def _resize(image: UInt8[np.ndarray, "H W 3"], factor: float) -> UInt8[np.ndarray, "h w 3"]:
    height, width = (max(1, round(length * factor)) for length in image.shape[:2])
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))


def _blend(
    image: Float[np.ndarray, "H W 3"] | UInt8[np.ndarray, "H W 3"],
    strength: Float[np.ndarray, "H W"],
) -> UInt8[np.ndarray, "H W 3"]:
    """Lays the color of each strength over the image; the stronger, the more opaque."""
    color = _colormap()[np.rint(255 * strength).astype(np.int64)]
    opacity = _MAX_OPACITY * strength[..., None]
    return np.rint(image * (1 - opacity) + color * opacity).astype(np.uint8)


def _color_bar(background: Float[np.ndarray, "3"], size: tuple[int, int]) -> Image.Image:
    """The colors of all strengths over a background, strongest at the top; size (width, height)."""
    strength = np.broadcast_to(np.linspace(1, 0, 256)[:, None], (256, size[0]))
    colors = _blend(np.broadcast_to(background, (256, size[0], 3)), strength)
    return Image.fromarray(colors).resize(size, Image.Resampling.BILINEAR)


@functools.cache
def _colormap() -> UInt8[np.ndarray, "256 3"]:
    from matplotlib import colormaps  # imported when first used: it is slow to import

    return np.rint(255 * colormaps[_COLORMAP](np.arange(256))[:, :3]).astype(np.uint8)
