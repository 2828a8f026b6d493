"""Where the tissue of a slide is by a file: a mask, or regions as QuPath writes them."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool
from PIL import Image, ImageDraw

from densenet_flax.common.errors import InputError
from densenet_flax.common.reading import read_file
from densenet_flax.data.images.decode import decode
from densenet_flax.data.images.formats import open_image, read_image_file
from densenet_flax.inference.slides.slide import Slide
from densenet_flax.inference.slides.tissue import TissueMask, low_power

_MAX_BYTES = 2**28  # of a GeoJSON file: millions of points
_LARGEST_STRETCH = 1.02  # of a mask against its slide, by rounding of its size
_LARGEST_OVERHANG = 0.05  # of regions beyond the edge, of the slide's longer side; by hand
_IGNORED = "ignore"  # QuPath's class of what is not to be looked at
# QuPath's objects that lie within regions, as in our own tiles.geojson.
_MEASURED = ("tile", "cell")
# A mask of at most so many values has a value for each class; more come from a lossy compression.
_MOST_CLASSES = 16

_Polygon = list[np.ndarray]  # the outer ring, then the holes; each [P, 2], (x, y)


def read_tissue(path: Path, slide: Slide) -> TissueMask:
    """Reads the tissue of a slide from a file.

    Args:
      path: a GeoJSON file with polygons in pixels of level 0, such as QuPath's annotations; or an
        image of the whole slide at any size, which is not black where there is tissue.
      slide: that it belongs to.

    Raises:
      InputError: it cannot be read, is of another slide, or states no tissue.
    """
    if path.suffix.lower() in (".geojson", ".json"):
        mask, downsample = _mask_of_regions(path, slide)
    else:
        mask, downsample = _mask_of_image(path, slide)
    if not mask.any():
        raise InputError(f"{path}: states no tissue on {slide.path}; correct it, or leave it out")
    return TissueMask(mask, downsample)


def _mask_of_image(path: Path, slide: Slide) -> tuple[Bool[np.ndarray, "h w"], tuple[float, float]]:
    data = read_image_file(path)
    values = decode(data, path).max(-1)
    with open_image(data) as image:
        # Laid over white, what is transparent would be tissue.
        if image.has_transparency_data and np.asarray(image.convert("RGBA"))[..., 3].min() < 255:
            raise InputError(
                f"{path}: a mask with transparent pixels; save it without transparency, black "
                "where there is no tissue"
            )
    height, width = slide.size
    stretch = values.shape[0] / values.shape[1] * width / height
    # A mask of few pixels is stretched by the rounding of its size alone.
    tolerance = max(_LARGEST_STRETCH, 1 + 1.5 / min(values.shape))
    if not 1 / tolerance <= stretch <= tolerance:
        raise InputError(
            f"{path}: a mask of {values.shape[1]}×{values.shape[0]} pixels has another shape than "
            f"the slide of {width}×{height}; give a mask of the whole slide"
        )
    is_lossy = np.count_nonzero(np.bincount(values.ravel())) > _MOST_CLASSES
    mask = values > (int(values.max()) / 2 if is_lossy else 0)
    return mask, (height / mask.shape[0], width / mask.shape[1])


def _mask_of_regions(
    path: Path, slide: Slide
) -> tuple[Bool[np.ndarray, "h w"], tuple[float, float]]:
    data = read_file(path, max_bytes=_MAX_BYTES)
    try:
        polygons = list(_polygons(json.loads(data)))
    # The nesting of a hostile file, or a structure that is not GeoJSON's.
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{path}: is not GeoJSON ({reason}); export it again") from error
    if not polygons:
        raise InputError(f"{path}: has no polygons; export annotations that are areas")
    height, width = slide.size
    overhang = _LARGEST_OVERHANG * max(height, width)
    points = np.concatenate([outer for outer, *_ in polygons])
    (left, top), (right, bottom) = points.min(0), points.max(0)
    if min(left, top) < -overhang or right > width + overhang or bottom > height + overhang:
        raise InputError(
            f"{path}: its regions reach from x={left:.0f}, y={top:.0f} to x={right:.0f}, "
            f"y={bottom:.0f}, beyond the slide of {width}×{height} pixels; give those of this "
            "slide, as (x, y) in pixels of its finest level"
        )
    scale = max(1.0, max(height, width) / low_power(slide))
    shape = max(1, round(height / scale)), max(1, round(width / scale))
    down = height / shape[0], width / shape[1]
    mask = Image.new("1", (shape[1], shape[0]))
    for outer, *holes in polygons:
        layer = Image.new("1", mask.size)
        pen = ImageDraw.Draw(layer)
        for ring, fill in ((outer, 1), *((hole, 0) for hole in holes)):
            # Pillow's points are centers of pixels.
            pen.polygon((ring / (down[1], down[0]) - 0.5).ravel().tolist(), fill=fill)
        mask.paste(1, mask=layer)
    return np.array(mask), down


def _polygons(content: Any) -> Iterator[_Polygon]:
    """The polygons of GeoJSON: a collection, a list of features, a feature or a geometry."""
    if isinstance(content, list):
        for feature in content:
            yield from _polygons(feature)
        return
    kind = content["type"]
    if kind == "FeatureCollection":
        yield from _polygons(content["features"])
    elif kind == "Feature":
        properties = content.get("properties") or {}
        name = str((properties.get("classification") or {}).get("name", ""))
        is_region = properties.get("objectType") not in _MEASURED
        if is_region and not name.lower().startswith(_IGNORED) and content.get("geometry"):
            yield from _polygons(content["geometry"])
    elif kind == "GeometryCollection":
        yield from _polygons(content["geometries"])
    elif kind in ("Polygon", "MultiPolygon"):
        coordinates = content["coordinates"]
        for polygon in [coordinates] if kind == "Polygon" else coordinates:
            if polygon:  # GeoJSON's null object has no rings
                yield [_ring(points) for points in polygon]
    elif kind not in ("Point", "MultiPoint", "LineString", "MultiLineString"):
        raise ValueError(f"type {kind!r:.40}")


def _ring(points: Any) -> np.ndarray:
    ring = np.array([point[:2] for point in points], np.float64)
    if ring.ndim != 2 or ring.shape[1] != 2 or len(ring) < 3:
        raise ValueError("a ring of fewer than three points")
    if not np.all(np.abs(ring) < math.inf):
        raise ValueError("a coordinate that is no number")
    return np.clip(ring, -1e7, 1e7)
