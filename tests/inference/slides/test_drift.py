"""From a slide's file to the files about it: nothing drifts, at any corner and any resolution.

The network's place is taken by the share of violet in the pixels of a tile as they are read.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import shapely
import shapely.geometry
import tifffile

from densenet_flax.data.synthetic.slide_files import write_slide
from densenet_flax.data.synthetic.slide_world import SlideWorld
from densenet_flax.inference.results import Prediction
from densenet_flax.inference.slides.field import Field, FieldReader
from densenet_flax.inference.slides.grid import make_grid
from densenet_flax.inference.slides.heatmap_files import write_heatmap
from densenet_flax.inference.slides.qupath_objects import write_geojson
from densenet_flax.inference.slides.slide import open_slide
from densenet_flax.inference.slides.slide_result import SlideNetwork, SlideResult
from densenet_flax.inference.slides.tissue import find_tissue

SIZE_UM = (1203.0, 1751.0)
# Top, left, bottom and right in micrometers: near each corner, and on no edge of any tile.
REGIONS = [(91, 77, 333, 397), (83, 1331, 311, 1667), (871, 95, 1117, 421), (883, 1309, 1109, 1643)]
FIELD = Field((46.0, 70.0), (1.0, 1.0), "network")
CLASSES = ("benign", "malignant")


def draw(mpp):
    """Pink tissue with violet regions; it ends short of the slide."""
    pixels = np.full((round(SIZE_UM[0] / mpp), round(SIZE_UM[1] / mpp), 3), 245, np.uint8)

    def fill(box, color):
        top, left, bottom, right = (round(length / mpp) for length in box)
        pixels[top:bottom, left:right] = color

    fill((40, 30, 1160, 1720), (225, 130, 190))
    for region in REGIONS:
        fill(region, (90, 40, 150))
    return SlideWorld(pixels, mpp, {})


def predict(path) -> tuple[SlideResult, Path]:
    """The files of a slide, in its folder."""
    with open_slide(path) as slide:
        tissue = find_tissue(slide)
        grid = make_grid(slide, FIELD.size_um, tissue, stride=0.75)
        reader = FieldReader(slide, FIELD)
        share = np.array(
            [(reader.read(y, x)[..., 0] < 160).mean() for y, x in zip(grid.y, grid.x, strict=True)]
        )
        probability = np.stack([1 - share, share], axis=1)
        tiles = Prediction(CLASSES, probability, probability, (share >= 0.5).astype(np.int64))
        mean = probability.mean(axis=0, keepdims=True)
        verdict = Prediction(CLASSES, mean, mean, mean.argmax(axis=1))
        network = SlideNetwork("violet", CLASSES, 0.5, 1.0)
        result = SlideResult(
            "slide", path, slide.size, slide.mpp, "file", FIELD.size_um, grid, tiles, verdict,
            "mean", grid.select(np.zeros(len(grid), bool)), (), tissue, network,
        )  # fmt: skip
        write_geojson(path.parent / "tiles.geojson", result)
        write_heatmap(path.parent / "a.png", path.parent / "a.ome.tiff", result, slide)
    return result, path.parent


@pytest.fixture(scope="module", params=[0.5, 0.8])
def predicted(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("drift") / "slide.tif"
    write_slide(path, draw(request.param))
    return predict(path)


def test_the_heatmap_lies_on_the_regions(predicted):
    result, folder = predicted
    with tifffile.TiffFile(folder / "a.ome.tiff") as file:
        levels = [level.asarray().astype(int) for level in file.series[0].levels]
    stride = np.multiply(result.grid.stride_px, result.mpp)
    for colors in levels[:2]:
        # Of the scale, what is above one half has more red than blue; white has no color.
        is_positive = (colors[..., 0] > colors[..., 2]) & (colors.min(axis=-1) < 240)
        um = np.divide(SIZE_UM, colors.shape[:2])
        for box in REGIONS:
            near = [
                slice(int((box[a] - 60) / um[a]), int((box[a + 2] + 60) / um[a])) for a in (0, 1)
            ]
            places = np.nonzero(is_positive[near[0], near[1]])
            for axis in (0, 1):
                first, last = places[axis].min(), places[axis].max() + 1
                edges = (near[axis].start + np.array([first, last])) * um[axis]
                assert np.abs(edges - (box[axis], box[axis + 2])).max() < stride[axis]


def test_the_geojson_lies_on_the_regions(predicted):
    result, folder = predicted
    features = json.loads((folder / "tiles.geojson").read_text())["features"]
    tissue = shapely.geometry.shape(features[0]["geometry"])
    np.testing.assert_allclose(
        np.multiply(tissue.bounds, result.mpp[0]), (30, 40, 1720, 1160), atol=8
    )
    tiles = [f for f in features if f["properties"]["objectType"] == "tile"]
    assert len(tiles) == len(result.grid)
    centers = np.array(
        [
            shapely.geometry.shape(tile["geometry"]).centroid.coords[0]
            for tile in tiles
            if tile["properties"]["classification"]["name"] == "malignant"
        ]
    )
    y, x = centers[:, 1] * result.mpp[0], centers[:, 0] * result.mpp[1]
    stride = np.multiply(result.grid.stride_px, result.mpp)
    for top, left, bottom, right in REGIONS:
        inside = (abs(y - (top + bottom) / 2) < 200) & (abs(x - (left + right) / 2) < 250)
        for values, edges, step in ((y, (top, bottom), stride[0]), (x, (left, right), stride[1])):
            extent = values[inside].min(), values[inside].max()
            assert np.abs(np.subtract(extent, edges)).max() < step
