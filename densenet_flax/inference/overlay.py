"""A map laid over its image: what a person looks at. Pixels only; knows no network."""

import functools
import io

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

# From nothing to yellow over violet tissue; told apart with any colour vision, and in print.
_COLOURS = "viridis"
_STRONGEST = 0.62  # how much of the tissue the strongest place hides
_SMALLEST, _LARGEST = 200, 1024  # pixels of the longer side that a picture of a tile has
_GAP, _BAR, _LABELS, _FOOT = 8, 14, 62, 22


def upsample(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A map [h, w] as float32 [height, width], bilinear between the middles of its places."""
    height, width = size
    image = Image.fromarray(np.asarray(values, np.float32))
    return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))


def relative_strength(values: np.ndarray) -> np.ndarray:
    """A map's positive part as a share of its strongest place; all 0 if nothing is positive."""
    positive = np.maximum(np.asarray(values, np.float32), 0)
    largest = positive.max()
    return positive / largest if largest > 0 else positive


def overlay_map(image: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The image with what speaks for the class in colour, and a line around half the strongest.

    Args:
      image: uint8 [H, W, 3].
      values: float [h, w], a map of it at any resolution.

    Returns:
      uint8 [H, W, 3].
    """
    shares = np.clip(upsample(relative_strength(values), image.shape[:2]), 0, 1)
    mixed = _lay(image, shares)
    inside = Image.fromarray((255 * (shares >= 0.5)).astype(np.uint8))
    edge = np.asarray(inside) != np.asarray(inside.filter(ImageFilter.MinFilter(3)))
    mixed[edge] = 255
    return mixed


def draw_panel(
    image: np.ndarray, values: np.ndarray, *, stacked: bool = False, caption: str = ""
) -> Image.Image:
    """The image, the same with its map laid over, and the scale.

    Args:
      image: uint8 [H, W, 3]; small ones are shown larger, large ones smaller.
      values: float [h, w].
      stacked: one below the other instead of side by side.
      caption: a line below.
    """
    shown = _fit(image)
    height, width = shown.shape[:2]
    scale = max(1, round(height / 240))  # letters of a large picture are read in a smaller one
    gap, bar, labels = scale * _GAP, scale * _BAR, scale * _LABELS
    foot = scale * _FOOT if caption else 0
    x, y = (0, height + gap) if stacked else (width + gap, 0)
    left = x + width + gap
    canvas = Image.new("RGB", (left + bar + labels, y + height + foot), "white")
    canvas.paste(Image.fromarray(shown), (0, 0))
    canvas.paste(Image.fromarray(overlay_map(shown, values)), (x, y))
    shares = np.linspace(1, 0, 256)[:, None, None]
    tissue = shown.reshape(-1, 3).mean(0)  # so that the scale looks as the colours do on it
    ramp = Image.fromarray(_lay(np.broadcast_to(tissue, (256, bar, 3)), shares[..., 0]))
    canvas.paste(ramp.resize((bar, height), Image.Resampling.BILINEAR), (left, y))
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(12 * scale)
    middle = y + height // 2
    draw.line([(left, middle), (left + bar, middle)], "white", 2 * scale)
    for text, at, anchor in (
        ("strongest", y + 1, "la"),
        ("half", middle, "lm"),
        ("none", y + height - 1, "ld"),
    ):
        draw.text((left + bar + 4, at), text, "black", font, anchor=anchor)
    if caption:
        draw.text((0, y + height + foot // 2), caption, "black", font, anchor="lm")
    return canvas


def to_png(image: Image.Image) -> bytes:
    """The content of a PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def shrink_to_display(image: np.ndarray) -> np.ndarray:
    """The image, no larger than a picture shows it."""
    longer = max(image.shape[:2])
    return _resized(image, _LARGEST / longer) if longer > _LARGEST else image


def _lay(image: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """The colour of each share over the image, the stronger the less of the image is seen."""
    colour = _colours()[np.rint(255 * shares).astype(np.int64)]
    cover = _STRONGEST * shares[..., None]
    return np.rint(image * (1 - cover) + colour * cover).astype(np.uint8)


def _fit(image: np.ndarray) -> np.ndarray:
    longer = max(image.shape[:2])
    # By a whole number, so that the pixels of a small tile stay even.
    return (
        _resized(image, -(-_SMALLEST // longer)) if longer < _SMALLEST else shrink_to_display(image)
    )


def _resized(image: np.ndarray, factor: float) -> np.ndarray:
    height, width = (max(1, round(side * factor)) for side in image.shape[:2])
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))


@functools.cache
def _colours() -> np.ndarray:
    from matplotlib import colormaps  # slow to import

    return np.rint(255 * colormaps[_COLOURS](np.arange(256))[:, :3]).astype(np.uint8)
