"""Writes drawn slides as pyramidal TIFF, as scanners and converters do."""

import dataclasses
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from densenet_flax.common.console import progress_bar
from densenet_flax.common.optional_imports import import_optional
from densenet_flax.common.settings import Settings, at_least, choice, setting
from densenet_flax.data.synthetic.slide_world import SlideWorld, draw_slide_world
from densenet_flax.storage.atomic import atomic_file, write_text

VENDORS = ("generic", "aperio")
COMPRESSIONS = ("jpeg", "deflate")
_SUFFIXES = {"generic": ".tif", "aperio": ".svs"}
_TILE = 256
_QUALITY = 85
_SMALLEST_LEVEL = 512  # pixels of the longer side


@dataclasses.dataclass(frozen=True)
class DrawnSlides(Settings):
    """Which slides to draw.

    Attributes:
      slides: how many.
      size_um: (height, width) in micrometers.
      mpp: micrometers per pixel of level 0; each slide is written once for each of them.
      vendor: 'generic', or 'aperio' for a file as an Aperio scanner writes it.
      compression: 'jpeg', or 'deflate', which keeps all pixels as they are.
      seed: the same seed draws the same slides.
    """

    slides: int = at_least(1, default=2)
    size_um: tuple[float, float] = setting(
        (1500.0, 2000.0),
        "(height, width) in micrometers, 600 to 10000",
        lambda size: all(600 <= length <= 10_000 for length in size),
    )
    mpp: tuple[float, ...] = setting(
        (0.5,),
        "micrometers per pixel, each from 0.2 to 2",
        lambda mpp: mpp and all(0.2 <= value <= 2 for value in mpp),
    )
    vendor: str = choice("generic", VENDORS)
    compression: str = choice("jpeg", COMPRESSIONS)
    seed: int = at_least(0, default=0)


def write_drawn_slides(folder: Path, settings: DrawnSlides) -> list[Path]:
    """Draws slides into a folder, and returns their paths.

    Beside each is a JSON file with its regions, (y, x) in micrometers.

    Raises:
      InputError: tifffile is not installed, or the folder cannot be written.
    """
    _import_tifffile()
    paths = []
    numbers = range(settings.seed, settings.seed + settings.slides)
    for number in progress_bar(settings.slides, "Drawing", "slide", iterable=numbers):
        world = draw_slide_world(number, settings.size_um, min(settings.mpp))
        for mpp in settings.mpp:
            suffix = f"-{mpp:g}um" if len(settings.mpp) > 1 else ""
            path = folder / f"slide-{number}{suffix}{_SUFFIXES[settings.vendor]}"
            write_slide(
                path,
                world.at_resolution(mpp),
                vendor=settings.vendor,
                compression=settings.compression,
            )
            regions = {name: [p.tolist() for p in ps] for name, ps in world.regions.items()}
            content = {"mpp": mpp, "size_um": world.size_um, "regions_um": regions}
            write_text(path.with_suffix(".json"), json.dumps(content))
            paths.append(path)
    return paths


def write_slide(
    path: Path, world: SlideWorld, *, vendor: str = "generic", compression: str = "deflate"
) -> None:
    """Writes a drawn slide as a TIFF of tiles with levels.

    Args:
      path: of the file.
      world: the slide at the resolution of level 0.
      vendor: 'generic': its resolution is in the tags, and each level has half the side of the one
        before; 'aperio': its resolution is in the description, each level has a quarter, and a
        thumbnail follows level 0.
      compression: 'jpeg' or 'deflate'.

    Raises:
      InputError: tifffile is not installed, or the file cannot be written.
    """
    tifffile = _import_tifffile()
    factor = 4 if vendor == "aperio" else 2
    levels = _levels(world.pixels, factor)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as temporary, tifffile.TiffWriter(temporary, bigtiff=False) as file:
        for number, pixels in enumerate(levels):
            options: dict[str, Any] = {"subfiletype": 0 if vendor == "aperio" else int(number > 0)}
            if vendor == "aperio":
                options["description"] = _aperio_description(levels[0], pixels, world.mpp)
            else:
                per_centimeter = 10_000 / world.mpp / factor**number
                options["resolution"] = per_centimeter, per_centimeter
                options["resolutionunit"] = "CENTIMETER"
            _write_level(file, pixels, compression, options)
            if vendor == "aperio" and not number:
                thumbnail = np.asarray(Image.fromarray(levels[-1]).reduce(2))
                file.write(thumbnail, photometric="rgb", rowsperstrip=16, metadata=None)


def _import_tifffile() -> ModuleType:
    return import_optional("tifffile", "slides", "slides are written with tifffile")


def _levels(
    pixels: UInt8[np.ndarray, "H W 3"], factor: int
) -> Sequence[UInt8[np.ndarray, "h w 3"]]:
    levels = [pixels]
    while max(levels[-1].shape[:2]) > _SMALLEST_LEVEL:
        height, width = (length // factor for length in levels[-1].shape[:2])
        image = Image.fromarray(levels[-1])
        box = (0, 0, width * factor, height * factor)
        levels.append(np.asarray(image.resize((width, height), Image.Resampling.BOX, box=box)))
    return levels


def _write_level(
    file: Any, pixels: UInt8[np.ndarray, "h w 3"], compression: str, options: dict[str, Any]
) -> None:
    common = {"tile": (_TILE, _TILE), "photometric": "rgb", "metadata": None, **options}
    if compression == "deflate":
        file.write(pixels, compression="zlib", predictor=True, **common)
        return
    # Pillow encodes the tiles, with the subsampling that the tags state.
    common |= {"photometric": "ycbcr", "subsampling": (2, 2)}
    file.write(
        _jpeg_tiles(pixels), shape=pixels.shape, dtype=np.uint8, compression="jpeg", **common
    )


def _jpeg_tiles(pixels: UInt8[np.ndarray, "h w 3"]) -> Iterator[bytes]:
    height, width = pixels.shape[:2]
    for top in range(0, height, _TILE):
        for left in range(0, width, _TILE):
            tile = pixels[top : top + _TILE, left : left + _TILE]
            padding = [(0, _TILE - tile.shape[0]), (0, _TILE - tile.shape[1]), (0, 0)]
            buffer = io.BytesIO()
            image = Image.fromarray(np.pad(tile, padding, mode="edge"))
            image.save(buffer, "JPEG", quality=_QUALITY, subsampling="4:2:0")
            yield buffer.getvalue()


def _aperio_description(
    base: UInt8[np.ndarray, "H W 3"], level: UInt8[np.ndarray, "h w 3"], mpp: float
) -> str:
    (height, width), (rows, columns) = base.shape[:2], level.shape[:2]
    size = f"{width}x{height} [0,0 {width}x{height}] ({_TILE}x{_TILE})"
    if level is not base:
        size += f" -> {columns}x{rows}"
    return (
        f"Aperio Image Library v11.2.1\r\n{size} JPEG/RGB Q={_QUALITY}|AppMag = 20|"
        f"StripeWidth = 2032|ScanScope ID = DRAWN|Filename = drawn|MPP = {mpp:.4f}"
    )
