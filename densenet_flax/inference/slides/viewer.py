"""`slide.html`: a slide with the map of its tiles, in one file that needs no server."""

import base64
import contextlib
import hashlib
import io
import math
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, UInt8
from jinja2.utils import htmlsafe_json_dumps
from markupsafe import Markup
from PIL import Image

from densenet_flax.common.errors import InputError, printable
from densenet_flax.common.prefetch import prefetch
from densenet_flax.common.trees import JsonDict
from densenet_flax.evaluation.report.rendering import render
from densenet_flax.evaluation.report.wording import count
from densenet_flax.inference.slides.probability_map import class_color, color_scale, is_binary
from densenet_flax.inference.slides.slide import Slide
from densenet_flax.inference.slides.slide_result import SlideResult
from densenet_flax.storage.atomic import atomic_file

_PACKAGE = "densenet_flax.inference.slides"
_OVERVIEW_SIDE = 2048  # pixels of the longer side
_JPEG_QUALITY = 80
# All pictures of tiles are one image, which browsers open up to this size. With the overview and
# 20,000 tiles a page stays below 10 MB.
_SHEET_SIDE = 4096
_MAX_PICTURE, _MIN_PICTURE = 320, 72  # pixels of the longer side of a tile's picture
_NUM_PROBLEMS = 5  # that are quoted


class _Thumbnails(NamedTuple):
    """Pictures of tiles, side by side in one image; (height, width) of one in pixels."""

    sheet: UInt8[np.ndarray, "h w 3"]
    tiles: list[int]
    size: tuple[int, int]
    columns: int


def write_viewer(path: Path, result: SlideResult, slide: Slide) -> None:
    """Writes a page to look at a slide, its map and its tiles.

    The overview, the tiles' probabilities and pictures are inside. Where there are too many tiles
    for one image, those that most probably are positive have a picture of their own, and the
    others are shown from the overview.

    Raises:
      InputError: the file cannot be written, or the slide not be read.
    """
    overview = slide.overview(_OVERVIEW_SIDE)
    thumbnails = _read_thumbnails(result, slide)
    extent = [n * d for n, d in zip(overview.pixels.shape, overview.downsample, strict=False)]
    data = _page_data(result, thumbnails) | {"overview": extent}
    script = resources.files(_PACKAGE).joinpath("templates", "slide.js").read_text("utf-8")
    page = render(
        "slide.html",
        package=_PACKAGE,
        title=result.name,
        verdict=_verdict(result),
        summary=_summary(result),
        notes=list(_notes(result, slide)),
        class_names=result.prediction.class_names,
        facts=list(_facts(result)),
        overview=_data_uri(overview.pixels),
        thumbnails=_data_uri(thumbnails.sheet) if thumbnails else "",
        data=htmlsafe_json_dumps(data, allow_nan=False, separators=(",", ":")),
        script=Markup(script),
        # The page runs this script alone, whatever a name in it holds.
        script_sha256=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )
    with atomic_file(path) as temporary:
        temporary.write_bytes(page)


def _page_data(result: SlideResult, thumbnails: _Thumbnails | None) -> JsonDict:
    """What the script draws from."""
    grid, prediction = result.grid, result.prediction
    point = result.network.threshold
    columns = range(len(prediction.class_names))
    verdict = int(result.verdict.label[0])
    if is_binary(prediction):
        columns = range(1, 2)
    height, width = thumbnails.size if thumbnails else (0, 0)
    return {
        "size": result.size,
        "mpp": result.mpp,
        "field": grid.field_px,
        "stride": grid.stride_px,
        "classes": [printable(name) for name in prediction.class_names],
        "colors": [class_color(index) for index in range(len(prediction.class_names))],
        "scale": color_scale().tolist(),
        "threshold": 0.5 if point is None else point,
        "top_class": verdict,
        # To the digits that are shown.
        "is_calibrated": not np.allclose(prediction.probability, prediction.calibrated, atol=5e-4),
        "row": grid.rows.tolist(),
        "col": grid.columns.tolist(),
        "y": np.round(grid.y, 2).tolist(),
        "x": np.round(grid.x, 2).tolist(),
        # In full: rounded, a probability might reach a threshold that it does not.
        "probability": {c: prediction.probability[:, c].tolist() for c in columns},
        "calibrated": {c: np.round(prediction.calibrated[:, c], 4).tolist() for c in columns},
        "label": prediction.label.tolist(),
        "thumbnails": {
            "tiles": thumbnails.tiles if thumbnails else [],
            "columns": thumbnails.columns if thumbnails else 1,
            "height": height,
            "width": width,
        },
    }


def _read_thumbnails(result: SlideResult, slide: Slide) -> _Thumbnails | None:
    """Reads pictures of the tiles, at the size at which all fit, or of some at the smallest."""
    grid = result.grid
    size, shown = _picture_size(len(grid), grid.field_px)
    order = _by_probability(result)[:shown]
    if not len(order):
        return None
    height, width = size
    # As near to a square as the largest side allows.
    columns = min(_SHEET_SIDE // width, math.ceil(math.sqrt(len(order) * height / width)))
    sheet = np.full((math.ceil(len(order) / columns) * height, columns * width, 3), 255, np.uint8)
    mpp = result.field_um[0] / height, result.field_um[1] / width
    tiles: list[int] = []

    def read(tile: int) -> UInt8[np.ndarray, "h w 3"] | None:
        try:
            pixels = slide.read_region(grid.y[tile], grid.x[tile], *grid.field_px, mpp)
        except InputError:
            return None  # it was readable before; the page shows it from the overview
        picture = Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR)
        return np.asarray(picture)

    with contextlib.closing(prefetch(read, order.tolist(), depth=32)) as pictures:
        for tile, picture in zip(order.tolist(), pictures, strict=True):
            if picture is not None:
                row, column = divmod(len(tiles), columns)
                sheet[row * height :, column * width :][:height, :width] = picture
                tiles.append(tile)
    return _Thumbnails(sheet, tiles, size, columns)


def _picture_size(tiles: int, field: tuple[float, float]) -> tuple[tuple[int, int], int]:
    """(height, width) of a tile's picture in the sheet, and how many tiles have one."""
    for longer in range(_MAX_PICTURE, _MIN_PICTURE - 1, -8):
        height, width = (max(1, round(longer * length / max(field))) for length in field)
        fitting = (_SHEET_SIDE // height) * (_SHEET_SIDE // width)
        if fitting >= tiles:
            break
    return (height, width), min(fitting, tiles)


def _by_probability(result: SlideResult) -> Int[np.ndarray, " N"]:
    """Tiles from the most to the least probable of the positive class, or the verdict's."""
    column = 1 if is_binary(result.prediction) else int(result.verdict.label[0])
    return np.argsort(-result.prediction.calibrated[:, column], kind="stable")


def _data_uri(pixels: UInt8[np.ndarray, "h w 3"]) -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=_JPEG_QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _verdict(result: SlideResult) -> str:
    verdict = result.verdict
    name = verdict.decision[0] or "none of the classes"
    column = 1 if is_binary(verdict) else int(verdict.label[0])
    probability = verdict.probability[0, column]
    of = verdict.class_names[column]
    return f"{name}: probability of {of} {probability:.3f} ({_rule(result)})"


def _rule(result: SlideResult) -> str:
    """The rule of the verdict in words."""
    highest = result.rule.removeprefix("top-")
    return f"mean of the {highest} highest tiles" if highest != result.rule else "mean of all tiles"


def _summary(result: SlideResult) -> str:
    height, width = (n * mpp / 1000 for n, mpp in zip(result.size, result.mpp, strict=True))
    tiles = count(len(result.grid), "tile")
    field = " × ".join(f"{length:.4g}" for length in result.field_um)
    return f"{tiles} of {field} µm (height × width) on a slide of {height:.1f} × {width:.1f} mm."


def _notes(result: SlideResult, slide: Slide) -> Iterator[str]:
    """What a reader has to know before the picture is trusted."""
    damaged = len(result.damaged)
    if damaged:
        yield f"{count(damaged, 'tile')} cannot be read and count nowhere."
        yield from (printable(line) for line in result.problems[:_NUM_PROBLEMS])
    if result.mpp_source == "flag":
        yield "The size of the slide's pixels was given with --mpp and is not the file's."


def _facts(result: SlideResult) -> Iterator[tuple[str, str]]:
    """Name and value of what is known about the slide and how it was predicted."""
    network, grid = result.network, result.grid
    height, width = result.size
    mpp_y, mpp_x = result.mpp
    source = {"file": "stated by the file", "flag": "given with --mpp"}[result.mpp_source]
    yield "file", printable(result.path.name)
    yield "size", f"{height} × {width} pixels (height × width)"
    yield "resolution", f"{mpp_y:.4g} × {mpp_x:.4g} µm a pixel, {source}"
    yield "field of a tile", " × ".join(f"{n:.4g}" for n in result.field_um) + " µm"
    share = 100 * grid.stride_px[0] / grid.field_px[0]
    yield "stride", f"{share:.4g} % of the field"
    yield "tiles", f"{len(grid)} predicted, {len(result.damaged)} unreadable"
    yield "network", printable(network.description)
    if network.threshold is not None:
        yield "threshold", f"{network.threshold:.4g}, on the network's own probability"
    if network.is_multilabel:
        yield "decision", "each class by itself, from a probability of 0.5 on"
    elif network.threshold is None:
        yield "decision", "the most probable class"
    if network.temperature != 1:
        yield "temperature of the calibration", f"{network.temperature:.4g}"
    yield "rule of the verdict", _rule(result)
