"""A slide's tiles and tissue as GeoJSON in the form that QuPath reads (0.4 and later).

Coordinates are pixels of level 0, (x, y), which is what QuPath uses, and not degrees.
"""

import json
import uuid
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Float

from densenet_flax.common.errors import printable
from densenet_flax.common.trees import JsonDict
from densenet_flax.inference.results import Prediction
from densenet_flax.inference.slides.probability_map import class_color, is_binary
from densenet_flax.inference.slides.slide_result import SlideResult
from densenet_flax.storage.atomic import atomic_file

# Of the identifiers: the same tile of the same slide has the same one in every file.
_NAMESPACE = uuid.UUID("0c0e6f0e-6a3e-5c1c-9a5e-3b1c7b0f6d11")
_DECIMALS = 2  # of a pixel; QuPath keeps two


def write_geojson(path: Path, result: SlideResult) -> None:
    """Writes an annotation of the tissue, with the slide's verdict, and one object for each tile.

    Tiles are written one by one, so that memory does not grow with their number.

    Raises:
      InputError: the file cannot be written.
    """
    with atomic_file(path) as temporary, open(temporary, "w") as file:
        file.write('{"type": "FeatureCollection", "features": [')
        for number, feature in enumerate(_features(result)):
            file.write(",\n" if number else "\n")
            # ASCII alone: class names may hold what is no UTF-8.
            file.write(json.dumps(feature, allow_nan=False))
        file.write("\n]}\n")


def measurements(prediction: Prediction, row: int) -> dict[str, float]:
    """The probabilities of a row by the names that QuPath shows.

    Of two classes that of the positive one; the other is its complement.
    """
    names = [printable(name) for name in prediction.class_names]
    columns = [1] if is_binary(prediction) else range(len(names))
    return {
        f"{kind}: {names[column]}": round(float(values[row, column]), 6)
        for column in columns
        for kind, values in (
            ("Probability", prediction.probability),
            ("Calibrated probability", prediction.calibrated),
        )
    }


def _features(result: SlideResult) -> Iterator[JsonDict]:
    yield from _tissue(result)
    grid, (height, width) = result.grid, result.grid.field_px
    for row, (y, x) in enumerate(zip(grid.y, grid.x, strict=True)):
        place = f"{grid.rows[row]},{grid.columns[row]}"
        # Of the lower edge of one tile and the upper edge of the next the same number is written.
        left, right, top, bottom = (
            round(float(edge), _DECIMALS) for edge in (x, x + width, y, y + height)
        )
        corners = [[left, top], [right, top], [right, bottom], [left, bottom], [left, top]]
        yield {
            "type": "Feature",
            "id": _identifier(result, place),
            "geometry": {"type": "Polygon", "coordinates": [corners]},
            "properties": {
                "objectType": "tile",
                "name": f"Tile {place}",
                "classification": _classification(result.prediction, row),
                "isLocked": True,
                "measurements": measurements(result.prediction, row),
            },
        }


def _tissue(result: SlideResult) -> Iterator[JsonDict]:
    """One annotation of all tissue: it belongs to one verdict."""
    polygons = [
        [_ring(ring, n == 0) for n, ring in enumerate(rings)] for rings in result.tissue.polygons()
    ]
    if not polygons:
        return
    yield {
        "type": "Feature",
        "id": _identifier(result, "tissue"),
        "geometry": {"type": "MultiPolygon", "coordinates": polygons},
        "properties": {
            "objectType": "annotation",
            "name": "Tissue",
            "isLocked": True,
            "measurements": measurements(result.verdict, 0),
            # Of the slide, as text: QuPath 0.5 and later show it.
            "metadata": {"Verdict": printable(result.verdict.decision[0])},
        },
    }


def _ring(points: Float[np.ndarray, "M 2"], is_outer: bool) -> list[list[float]]:
    """A closed ring in (x, y) of points in (y, x).

    Outer rings run counterclockwise and holes clockwise, as RFC 7946 has it, with y as if it
    pointed upward.
    """
    points = np.round(np.asarray(points, np.float64)[:, ::-1], _DECIMALS)
    if (points[0] == points[-1]).all():
        points = points[:-1]
    x, y = points.T
    is_counterclockwise = (x * np.roll(y, -1) - np.roll(x, -1) * y).sum() > 0
    points = points if is_counterclockwise == is_outer else points[::-1]
    return [*points.tolist(), points[0].tolist()]


def _classification(prediction: Prediction, row: int) -> JsonDict:
    """The decided class; of independent classes those that are present."""
    label = int(prediction.label[row])
    name = printable(prediction.decision[row]) or "none"
    return {"name": name, "color": list(class_color(label))}


def _identifier(result: SlideResult, what: str) -> str:
    return str(uuid.uuid5(_NAMESPACE, f"{result.name!r} {result.size} {what}"))
