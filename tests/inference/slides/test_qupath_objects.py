"""GeoJSON in the form that QuPath reads; the form is that of its QuPathTypeAdapters.java."""

import dataclasses
import json
import tracemalloc
import uuid

import numpy as np
import pytest
import shapely.geometry

from densenet_flax.inference.slides.qupath_objects import write_geojson
from tests.helpers.slide_results import MALIGNANT, make_result


def _features(path, result):
    write_geojson(path, result)
    collection = json.loads(path.read_text())
    assert collection["type"] == "FeatureCollection"
    return collection["features"]


@pytest.fixture(scope="module")
def features(tmp_path_factory):
    return _features(tmp_path_factory.mktemp("qupath") / "tiles.geojson", make_result(stride=0.5))


def test_every_feature_is_an_object_of_qupath(features):
    for feature in features:
        assert set(feature) == {"type", "id", "geometry", "properties"}
        assert feature["type"] == "Feature" and uuid.UUID(feature["id"])
        properties = feature["properties"]
        assert properties["objectType"] in ("tile", "annotation") and properties["isLocked"] is True
        assert all(type(value) is float for value in properties["measurements"].values())
        geometry = shapely.geometry.shape(feature["geometry"])
        assert geometry.is_valid and geometry.area > 0
        polygons = feature["geometry"]["coordinates"]
        for polygon in [polygons] if feature["geometry"]["type"] == "Polygon" else polygons:
            assert all(ring[0] == ring[-1] for ring in polygon)
            assert shapely.geometry.LinearRing(polygon[0]).is_ccw
            assert not any(shapely.geometry.LinearRing(hole).is_ccw for hole in polygon[1:])
    assert len({feature["id"] for feature in features}) == len(features)


def test_tiles_lie_where_they_were_read(features):
    result = make_result(stride=0.5)
    tissue, *tiles = features
    assert len(tiles) == len(result.grid)
    for row, feature in enumerate(tiles):
        y, x, (height, width) = result.grid.y[row], result.grid.x[row], result.grid.field_px
        bounds = shapely.geometry.shape(feature["geometry"]).bounds
        np.testing.assert_allclose(bounds, (x, y, x + width, y + height), atol=0.006)
        properties = feature["properties"]
        label = ("benign", "malignant")[result.prediction.label[row]]
        assert properties["classification"]["name"] == label
        assert len(properties["classification"]["color"]) == 3
        probability = result.prediction.probability[row, 1]
        assert properties["measurements"] == {
            "Probability: malignant": pytest.approx(probability, abs=1e-6),
            "Calibrated probability: malignant": pytest.approx(probability, abs=1e-6),
        }
    outline = shapely.geometry.shape(tissue["geometry"])
    assert tissue["properties"]["name"] == "Tissue" and outline.bounds == (40, 30, 1270, 880)
    assert not outline.contains(shapely.geometry.Point(650, 450))  # the hole
    assert tissue["properties"]["metadata"] == {"Verdict": "benign"}


def test_malignant_tiles_lie_on_what_is_drawn_malignant(features):
    malignant = shapely.geometry.MultiPolygon(
        [shapely.geometry.box(left, top, right, bottom) for top, left, bottom, right in MALIGNANT]
    )
    decided = [
        shapely.geometry.shape(feature["geometry"])
        for feature in features[1:]
        if feature["properties"]["classification"]["name"] == "malignant"
    ]
    stride = max(make_result(stride=0.5).grid.stride_px)
    assert decided and all(malignant.buffer(stride).covers(tile.centroid) for tile in decided)
    covered = shapely.union_all(decided)
    assert covered.covers(malignant.buffer(-stride))


def test_the_same_slide_has_the_same_identifiers(tmp_path, features):
    again = _features(tmp_path / "again.geojson", make_result(stride=0.5))
    assert [f["id"] for f in again] == [f["id"] for f in features]
    other = _features(tmp_path / "other.geojson", make_result(name="other", stride=0.5))
    assert not {f["id"] for f in other} & {f["id"] for f in features}


def test_names_of_all_kinds_and_independent_classes(tmp_path):
    names = ("a\nb", "\udcff", "é: 'x' \"y\"")
    result = make_result(name="\udcff\n", classes=names)
    present = result.prediction.probability >= 0.4
    prediction = dataclasses.replace(result.prediction, present=present)
    result = dataclasses.replace(result, prediction=prediction)
    features = _features(tmp_path / "tiles.geojson", result)
    classes = {feature["properties"]["classification"]["name"] for feature in features[1:]}
    assert {"a\\nb|\\udcff", "é: 'x' \"y\""} <= classes and not any(
        "\n" in name for name in classes
    )
    assert len(features[1]["properties"]["measurements"]) == 6


def test_memory_does_not_grow_with_the_tiles(tmp_path):
    result = make_result(stride=0.4)
    write_geojson(tmp_path / "tiles.geojson", result)
    tracemalloc.start()
    write_geojson(tmp_path / "tiles.geojson", result)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 0.2 * (tmp_path / "tiles.geojson").stat().st_size
