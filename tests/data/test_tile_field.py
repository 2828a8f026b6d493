"""How much tissue a tile shows, as far as configuration and data say."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest

from densenet_flax.common.errors import InputError
from densenet_flax.data.breakhis.optics import micrometers_per_pixel
from densenet_flax.data.data_config import DataConfig
from densenet_flax.data.dataset import TileField
from densenet_flax.data.images.image_table import ImageTable
from densenet_flax.data.sources.source import Annotations
from densenet_flax.data.synthetic.breakhis_tree import DrawnConfig
from densenet_flax.data.tile_field import tile_field
from densenet_flax.experiments.evaluate_run import _tiles
from densenet_flax.storage.json_files import write_json_object
from densenet_flax.storage.workdir import Workdir

BREAKHIS = DataConfig(name="breakhis")
FOLDER = DataConfig(name="folder", mpp=0.5)


def field(config, sizes, magnifications=()):
    names = [f"{i}.png" for i in range(len(sizes))]
    table = {"file": names}
    if None not in sizes:
        table |= {"tile_height": [h for h, _ in sizes], "tile_width": [w for _, w in sizes]}
    columns = {"magnification": np.array(magnifications)}
    return tile_field(config, ImageTable(table, ""), Annotations([], {}, columns))


def test_breakhis_has_the_pixels_of_its_optics():
    """The two digits that are published."""
    values = [round(micrometers_per_pixel(m), 2) for m in (40, 100, 200, 400)]
    assert values == [0.49, 0.20, 0.10, 0.05]
    shown = field(BREAKHIS, [(460, 700)] * 3, [40] * 3)
    assert shown.size_um == pytest.approx((226.5, 344.7), abs=0.1)
    assert shown.mpp[0] == shown.mpp[1]


def test_a_drawn_tile_shows_as_much_whatever_its_pixels():
    sizes = [field(_drawn(width, height), [(height, width)], [100]) for width, height in SIZES]
    assert [s.size_um for s in sizes] == [pytest.approx((92, 140), rel=0.01)] * 2


SIZES = ((175, 115), (700, 460))


def _drawn(width, height):
    return DataConfig(name="drawn", drawn=DrawnConfig(size=(width, height)))


def test_the_configuration_wins_and_may_differ_down_and_across():
    config = dataclasses.replace(BREAKHIS, mpp=(0.5, 0.25))
    assert field(config, [(100, 200)], [40]) == TileField((0.5, 0.25), (50, 50))


@pytest.mark.parametrize(
    "config,sizes,magnifications",
    [
        (DataConfig(name="folder"), [(100, 100)], ()),
        (BREAKHIS, [(460, 700)] * 2, [40, 100]),
        (FOLDER, [(100, 100), (200, 200)], ()),
        (FOLDER, [None], ()),
    ],
    ids=["nothing stated", "several magnifications", "several sizes", "an earlier version's table"],
)
def test_without_a_single_field_there_is_none(config, sizes, magnifications):
    assert field(config, sizes, magnifications) is None


def test_a_few_tiles_of_nearly_the_same_size_change_nothing():
    sizes = [(460, 700)] * 98 + [(456, 700), (900, 1400)]
    assert field(FOLDER, sizes) == TileField((0.5, 0.5), (230, 350))


@pytest.mark.parametrize("mpp", [0.0, 350.0, (0.5, -1.0), float("nan")])
def test_an_impossible_resolution_is_rejected(mpp):
    with pytest.raises(InputError, match=r"mpp=.*micrometers per pixel from 0\.02 to 20"):
        DataConfig(mpp=mpp)


def test_what_is_stated_after_training_is_kept_by_the_next_evaluation(tmp_path):
    run = SimpleNamespace(dataset=SimpleNamespace(field=None), workdir=Workdir(tmp_path))
    path = run.workdir.operating_point
    assert _tiles(run) == {}
    stated = {"mpp": [0.5, 0.5], "field_um": [16.0, 20.0]}
    write_json_object(path, {"step": 3, "tiles": stated}, indent=2)
    assert _tiles(run) == stated
    path.write_text("{")
    assert _tiles(run) == {}
