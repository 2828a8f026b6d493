"""Tissue is kept; glass, pens and black edges are not."""

import json

import numpy as np
import pytest
import shapely
from PIL import Image

from densenet_flax.common.errors import InputError
from densenet_flax.inference.slides.slide import open_slide
from densenet_flax.inference.slides.tissue import TissueMask, find_tissue, tissue_of
from densenet_flax.inference.slides.tissue_files import read_tissue

GLASS = (240, 240, 238)


@pytest.fixture(scope="module")
def slide(slide_file):
    with open_slide(slide_file) as slide:
        yield slide


@pytest.fixture(scope="module")
def tissue(slide):
    return find_tissue(slide)


def region(slide_world, name, shape):
    """Where a region of the drawn slide is, at the resolution of a mask."""
    image = Image.fromarray(slide_world.mask(name, slide_world.mpp))
    return np.asarray(image.resize(shape[::-1], Image.Resampling.NEAREST))


def test_the_drawn_tissue_is_found(slide_world, tissue):
    mask, shape = tissue.mask, tissue.mask.shape
    names = ("tissue", "pen", "edge", "hole")
    truth, pen, edge, hole = (region(slide_world, name, shape) for name in names)
    assert (mask & truth & ~pen).sum() > 0.97 * (truth & ~pen).sum()
    assert (mask & truth).sum() > 0.98 * mask.sum()
    assert not (mask & edge).any()
    assert (mask & pen).sum() < 0.02 * pen.sum()
    assert (mask & hole).sum() < 0.1 * hole.sum()


def flat(color, shape=(200, 300), rng=None):
    noise = np.random.default_rng(0).normal(0, 5, (*shape, 3))
    return np.clip(np.array(color) + noise, 0, 255).astype(np.uint8)


@pytest.mark.parametrize(
    "color",
    [(225, 150, 200), (238, 208, 222), (70, 50, 120), (120, 120, 190), (150, 100, 60)],
    ids=["eosin", "pale eosin", "dark hematoxylin", "blue hematoxylin", "DAB"],
)
@pytest.mark.parametrize("glass", [GLASS, (238, 236, 215), (200, 195, 200)])
def test_stains_are_tissue_on_glass_of_any_light(color, glass):
    pixels = flat(glass)
    pixels[50:150, 50:250] = flat(np.array(color) * np.array(glass) / 240, (100, 200))
    mask = tissue_of(pixels, 8.0)
    expected = np.zeros(mask.shape, bool)
    expected[50:150, 50:250] = True
    assert (mask == expected).mean() > 0.995


@pytest.mark.parametrize(
    "color",
    [(220, 40, 40), (40, 140, 70), (40, 60, 170), (40, 40, 45), (240, 230, 60), (60, 170, 200)],
    ids=["red", "green", "blue", "black", "yellow", "cyan"],
)
def test_pens_are_no_tissue(color):
    pixels = flat(GLASS)
    pixels[90:100, 20:280] = flat(color, (10, 260))
    assert not tissue_of(pixels, 8.0).any()


@pytest.mark.parametrize(
    "color", [GLASS, (238, 236, 215), (255, 255, 255), (0, 0, 0), (60, 60, 60)]
)
def test_a_slide_without_tissue_is_one_line(color, tmp_path):
    Image.fromarray(flat(color, (400, 500))).save(tmp_path / "a.png")
    with pytest.raises(InputError, match=r"a\.png: no tissue is found on it.*--tissue=FILE"):
        find_tissue(open_slide(tmp_path / "a.png", 4.0))


def test_an_image_that_is_all_tissue(tmp_path):
    Image.fromarray(flat((225, 150, 200), (400, 500))).save(tmp_path / "a.png")
    assert find_tissue(open_slide(tmp_path / "a.png", 4.0)).share == 1


def test_the_fraction_is_exact():
    rng = np.random.default_rng(0)
    tissue = TissueMask(rng.random((30, 40)) < 0.5, (3.0, 2.0))
    fine = np.pad(np.kron(tissue.mask, np.ones((3, 2))), 60)  # a pixel of level 0 each
    y, x = rng.integers(-20, 90, 200), rng.integers(-20, 80, 200)
    expected = [
        fine[60 + a : 60 + a + 11, 60 + b : 60 + b + 17].mean() for a, b in zip(y, x, strict=True)
    ]
    np.testing.assert_allclose(tissue.fraction(y, x, 11, 17), expected, atol=1e-12)
    # Within a pixel of the mask it changes linearly.
    between = tissue.fraction(np.array([0.0, 0.5, 1.0]), np.zeros(3), 11, 17)
    assert between[1] == pytest.approx(between[[0, 2]].mean())


def test_outlines_are_valid_and_have_the_area_of_the_mask(tissue):
    regions = [shapely.Polygon(outer, holes) for outer, *holes in tissue.polygons()]
    assert all(region.is_valid for region in regions)
    pixel = tissue.downsample[0] * tissue.downsample[1]
    area = sum(region.area for region in regions)
    assert area == pytest.approx(tissue.mask.sum() * pixel, rel=0.01)
    inside = shapely.contains_xy(shapely.MultiPolygon(regions), *np.mgrid[:1500:40, :2000:40])
    centers = np.mgrid[:1500:40, :2000:40].reshape(2, -1)
    rows, columns = (centers / np.array(tissue.downsample)[:, None]).astype(int)
    agreement = inside.ravel() == tissue.mask[rows, columns]
    assert agreement.mean() > 0.99


def test_outlines_at_the_edge_of_the_slide_end_there():
    (outer, hole), (small,) = TissueMask(_ring(), (10.0, 20.0)).polygons()
    assert outer.min() == 0 and outer[:, 0].max() == 60 and outer[:, 1].max() == 160
    assert len(hole) == 9 and len(small) == 5
    for ring in (outer, hole, small):
        np.testing.assert_array_equal(ring[0], ring[-1])


def _ring():
    mask = np.zeros((6, 10), bool)
    mask[:, :8] = True
    mask[2:4, 2:4] = False
    mask[2, 9] = True
    return mask


@pytest.mark.parametrize("mode,value", [("L", 255), ("1", 1), ("L", 1), ("RGB", (255, 255, 255))])
def test_a_mask_is_an_image_of_the_whole_slide(slide, tmp_path, mode, value):
    image = Image.new(mode, (200, 150))
    image.paste(value, (100, 0, 150, 75))
    image.save(tmp_path / "mask.png")
    tissue = read_tissue(tmp_path / "mask.png", slide)
    inside = tissue.fraction(np.array([0, 0, 750]), np.array([1000, 500, 1000]), 750, 500)
    np.testing.assert_allclose(inside, [1, 0, 0])


def test_each_class_of_a_mask_is_tissue_and_the_noise_of_jpeg_is_not(slide, tmp_path):
    classes = np.zeros((150, 200), np.uint8)
    classes[:75, 100:150], classes[75:, 100:150] = 85, 255
    Image.fromarray(classes).save(tmp_path / "classes.png")
    noise = np.random.default_rng(0).integers(0, 30, classes.shape, np.uint8)
    Image.fromarray(np.where(classes, 255 - noise, noise)).save(tmp_path / "lossy.jpg")
    for name in ("classes.png", "lossy.jpg"):
        mask = read_tissue(tmp_path / name, slide).mask
        assert (mask == (classes > 0)).mean() > 0.98


def test_a_mask_with_transparent_pixels_is_one_line(slide, tmp_path):
    image = Image.new("RGBA", (200, 150), (0, 0, 0, 0))
    image.paste((255, 255, 255, 255), (100, 0, 150, 75))
    image.save(tmp_path / "a.png")
    with pytest.raises(InputError, match=r"a\.png: a mask with transparent pixels"):
        read_tissue(tmp_path / "a.png", slide)


SQUARE = [[1000, 0], [1500, 0], [1500, 750], [1000, 750], [1000, 0]]
HOLE = [[1100, 100], [1200, 100], [1200, 200], [1100, 200], [1100, 100]]
POLYGON = {"type": "Polygon", "coordinates": [SQUARE, HOLE]}

TILE = {"type": "Polygon", "coordinates": [[[0, 0], [90, 0], [90, 90], [0, 90], [0, 0]]]}


def feature(geometry, name="Tumor"):
    properties = {"objectType": "annotation", "classification": {"name": name}}
    return {"type": "Feature", "geometry": geometry, "properties": properties}


@pytest.mark.parametrize(
    "content",
    [
        POLYGON,
        {"type": "MultiPolygon", "coordinates": [[SQUARE, HOLE]]},
        feature(POLYGON),
        [feature(POLYGON), feature({"type": "Point", "coordinates": [1, 2]})],
        {
            "type": "FeatureCollection",
            "features": [
                feature(POLYGON),
                feature({"type": "Polygon", "coordinates": [[[0, 0], [9, 0], [9, 9]]]}, "Ignore*"),
                {"type": "Feature", "geometry": None, "properties": None},
                feature({"type": "Polygon", "coordinates": []}),
                feature(TILE) | {"properties": {"objectType": "tile"}},
            ],
        },
    ],
    ids=["geometry", "several", "feature", "list", "collection"],
)
def test_regions_of_qupath(slide, tmp_path, content):
    (tmp_path / "a.geojson").write_text(json.dumps(content))
    tissue = read_tissue(tmp_path / "a.geojson", slide)
    inside = tissue.fraction(np.array([0, 220, 110]), np.array([0, 1000, 1110]), 80, 80)
    np.testing.assert_allclose(inside, [0, 1, 0], atol=0.01)
    area = tissue.mask.sum() * tissue.downsample[0] * tissue.downsample[1]
    assert area == pytest.approx(500 * 750 - 100 * 100, rel=0.03)


@pytest.mark.parametrize(
    "name,content,message",
    [
        ("a.geojson", "no", "is not GeoJSON"),
        ("a.geojson", "{}", "is not GeoJSON"),
        ("a.geojson", '{"type": "Topology"}', "is not GeoJSON"),
        ("a.geojson", "[" * 100_000, "is not GeoJSON"),
        ("a.geojson", '{"type": "Polygon", "coordinates": [[[0, 0], [1, 1]]]}', "fewer than three"),
        ("a.geojson", '{"type": "Polygon", "coordinates": [[[0, 0], [1, 1], [NaN, 1]]]}', "no num"),
        ("a.geojson", '{"type": "Polygon", "coordinates": [[0, 0]]}', "is not GeoJSON"),
        ("a.geojson", '{"type": "Point", "coordinates": [1, 2]}', "has no polygons"),
        (
            "a.geojson",
            '{"type": "Polygon", "coordinates": [[[0, 0], [1100, 0], [1100, 1800]]]}',
            "to x=1100, y=1800, beyond the slide of 2000×1500 pixels",
        ),
        ("a.png", (100, 100), "has another shape than the slide of 2000×1500"),
        ("a.png", (200, 150), "states no tissue on"),
        ("a.txt", "no", "is not an image"),
    ],
)
def test_a_bad_file_of_tissue_is_one_line(slide, tmp_path, name, content, message):
    if isinstance(content, tuple):
        Image.new("L", content).save(tmp_path / name)
    else:
        (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=rf"a\.\w+: .*{message}") as info:
        read_tissue(tmp_path / name, slide)
    assert "\n" not in str(info.value)
