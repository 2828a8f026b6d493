"""The heatmap of a slide as files: a picture over the overview, and a pyramid for slide viewers."""

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image, ImageDraw, ImageFont

from densenet_flax.common.errors import printable
from densenet_flax.common.optional_imports import import_optional
from densenet_flax.inference.slides.probability_map import (
    class_color,
    color_map,
    color_scale,
    is_binary,
    map_shape,
)
from densenet_flax.inference.slides.slide import Slide
from densenet_flax.inference.slides.slide_result import SlideResult
from densenet_flax.storage.atomic import atomic_file

_OVERVIEW_SIDE = 2048  # pixels of the picture's longer side
_OPACITY = 0.6  # of the map over the slide
_TILE = 256  # pixels of a tile of the pyramid
_MARGIN, _LINE, _BAR, _FONT = 14, 24, 18, 14  # pixels of the legend, in a small picture


def write_heatmap(png: Path, ome_tiff: Path, result: SlideResult, slide: Slide) -> None:
    """Writes the heatmap over the slide's overview, and alone as a pyramidal OME-TIFF.

    Each place has the mean of the calibrated probabilities of the tiles that cover it, and no
    color where no tile is or no tissue. The pyramid states its pixels' size, so that a viewer shows
    it at the size of the slide.

    Raises:
      InputError: a file cannot be written, or tifffile is not installed.
    """
    grid, size = result.grid, result.size
    overview = slide.overview(_OVERVIEW_SIDE)[0]
    colors, covered = color_map(grid, size, result.prediction, overview.shape[:2])
    covered &= _is_tissue(result, covered.shape)
    picture = overview.copy()
    blended = (1 - _OPACITY) * overview[covered] + _OPACITY * colors[covered]
    picture[covered] = np.rint(blended).astype(np.uint8)
    image = _with_legend(picture, result)
    with atomic_file(png) as temporary:
        image.save(temporary, "PNG")

    shape = map_shape(grid, size)
    colors, covered = color_map(grid, size, result.prediction, shape)
    colors[~(covered & _is_tissue(result, shape))] = 255
    _write_pyramid(ome_tiff, colors, result)


def _is_tissue(result: SlideResult, shape: tuple[int, int]) -> Bool[np.ndarray, "h w"]:
    """Whether the center of each pixel of a map of the slide lies in the tissue mask."""
    tissue = result.tissue
    rows, columns = (
        # Places beside a mask that is a part of a pixel short belong to its last pixel.
        np.minimum((np.arange(n) + 0.5) * length / n / downsample, last - 1).astype(np.int64)
        for n, length, downsample, last in zip(
            shape, result.size, tissue.downsample, tissue.mask.shape, strict=True
        )
    )
    return tissue.mask[np.ix_(rows, columns)]


def _with_legend(picture: UInt8[np.ndarray, "h w 3"], result: SlideResult) -> Image.Image:
    """The picture with a legend below, so that its upper left corner stays the slide's."""
    height, width = picture.shape[:2]
    lines = list(_legend_lines(result))
    scale = max(1.0, width / 1200)  # a large picture is shown reduced
    margin, line, bar, size = (round(scale * n) for n in (_MARGIN, _LINE, _BAR, _FONT))
    swatches = not is_binary(result.prediction)
    legend_height = 2 * margin + line * len(lines) + (0 if swatches else bar + line)
    canvas = Image.new("RGB", (width, height + legend_height), "white")
    canvas.paste(Image.fromarray(picture), (0, 0))
    draw, font, y = ImageDraw.Draw(canvas), _font(size), height + margin
    if not swatches:
        length = max(1, min(round(scale * 360), width - 2 * margin))
        colors = Image.fromarray(color_scale()[None])
        canvas.paste(colors.resize((length, bar), Image.Resampling.NEAREST), (margin, y))
        for value, anchor in ((0.0, "la"), (0.5, "ma"), (1.0, "ra")):
            place = margin + value * length, y + bar + line // 8
            draw.text(place, f"{value:g}", "black", font, anchor)
        y += bar + line
    for color, text in lines:
        x = margin
        if color is not None:
            draw.rectangle((x, y, x + bar, y + bar), fill=color)
            x += bar + margin // 2
        draw.text((x, y + bar // 2), text, "black", font, "lm")
        y += line
    return canvas


def _legend_lines(result: SlideResult) -> Iterator[tuple[tuple[int, int, int] | None, str]]:
    """Lines of text, some with the color that they explain."""
    names = [printable(name)[:60] for name in result.prediction.class_names]
    if is_binary(result.prediction):
        yield None, f"mean calibrated probability of {names[1]} over the tiles that cover a place"
    else:
        for index, name in enumerate(names):
            yield class_color(index), name
        yield None, "class with the highest mean calibrated probability; paler where it is lower"
    yield None, f"{printable(result.name)[:80]} · research use only, not for diagnosis"


def _write_pyramid(path: Path, colors: UInt8[np.ndarray, "h w 3"], result: SlideResult) -> None:
    """Writes an OME-TIFF with levels of half the size each, down to one tile."""
    tifffile = import_optional("tifffile", "slides", "heatmaps are written with tifffile")
    levels = [colors]
    while max(levels[-1].shape[:2]) > _TILE:
        height, width = levels[-1].shape[:2]
        half = (max(1, width // 2), max(1, height // 2))
        levels.append(np.asarray(Image.fromarray(levels[-1]).resize(half, Image.Resampling.BOX)))
    # The map covers the whole slide, so its pixels are as much larger as they are fewer.
    size_um = [
        mpp * length / pixels
        for mpp, length, pixels in zip(result.mpp, result.size, colors.shape, strict=False)
    ]
    options: dict[str, Any] = {
        "tile": (_TILE, _TILE),
        "photometric": "rgb",
        "compression": "zlib",
        "resolutionunit": "CENTIMETER",
    }
    metadata = {
        "axes": "YXS",
        "Name": printable(f"{result.name} heatmap"),
        "PhysicalSizeY": size_um[0],
        "PhysicalSizeYUnit": "µm",
        "PhysicalSizeX": size_um[1],
        "PhysicalSizeXUnit": "µm",
    }
    with atomic_file(path) as temporary, tifffile.TiffWriter(temporary, ome=True) as file:
        for number, level in enumerate(levels):
            # TIFF's resolution is (x, y) in pixels per centimeter.
            per_cm = tuple(1e4 / (size_um[axis] * 2**number) for axis in (1, 0))
            file.write(
                level,
                resolution=per_cm,
                **({"metadata": metadata, "subifds": len(levels) - 1} if number == 0 else {}),
                **({"subfiletype": 1} if number else {}),
                **options,
            )


@functools.cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """A font with the letters of most languages: matplotlib brings it along."""
    from matplotlib import font_manager

    return ImageFont.truetype(font_manager.findfont("DejaVu Sans"), size)
