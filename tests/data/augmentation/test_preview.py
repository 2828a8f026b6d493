import dataclasses

import numpy as np
import pytest
from PIL import Image

from densenet_flax.common.errors import InputError
from densenet_flax.data.augmentation.preview import _view, choose_rows, write_preview
from densenet_flax.data.augmentation.views import AugmentSettings, augment, settings_for
from densenet_flax.data.data_config import DataConfig
from densenet_flax.data.loading import open_dataset
from densenet_flax.experiments import run as experiment
from tests.configs import tiny


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    config = tiny.get_config()
    config.cache_dir = str(tmp_path_factory.mktemp("cache"))
    return config


@pytest.fixture(scope="module")
def dataset(config):
    return open_dataset(DataConfig.from_config(config.data, "data"), config.cache_dir)


def test_classes_take_turns_and_patients_come_first(dataset):
    rows = choose_rows(dataset, np.arange(len(dataset)), "case70", 8, seed=0)
    assert dataset.labels[rows].tolist() in ([0, 1] * 4, [1, 0] * 4)
    assert len(set(dataset.patients("case70")[rows])) == 8
    assert rows == choose_rows(dataset, np.arange(len(dataset)), "case70", 8, seed=0)
    everything = choose_rows(dataset, np.arange(len(dataset)), "case70", 999, seed=0)
    assert sorted(everything) == list(range(len(dataset)))
    assert set(choose_rows(dataset, np.array([3, 5]), "case70", 8, seed=0)) == {3, 5}


def test_the_views_are_those_of_training(dataset):
    ids, labels = np.array([4, 9], np.int32), dataset.labels[[4, 9]]
    settings = AugmentSettings(symmetries=True, hed_range=0.1)
    found, shares = _view(dataset.images[ids], labels, ids, settings, seed=3, view=2)
    expected = augment(dataset.images[ids], ids, seed=3, epoch=2, settings=settings)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(shares, 1)
    mixing = dataclasses.replace(settings, mixup=1.0)
    found, shares = _view(dataset.images[ids], np.array([0, 1]), ids, mixing, seed=3, view=2)
    assert (found != expected).any() and ((shares > 0) & (shares < 1)).all()


def test_a_sheet_is_written(dataset, tmp_path):
    path = tmp_path / "new" / "preview.png"
    options = {"group": "case70", "seed": 0, "images": 3, "views": 2}
    write_preview(path, dataset, np.arange(len(dataset)), AugmentSettings(), **options)
    with Image.open(path) as image:
        plain = np.asarray(image.convert("RGB"))
    settings = AugmentSettings(brightness_range=(0.1, 0.2))
    write_preview(path, dataset, np.arange(len(dataset)), settings, **options)
    with Image.open(path) as image:
        dark = np.asarray(image.convert("RGB"))
    third = plain.shape[1] // 3
    np.testing.assert_array_equal(plain[:, : third - 9], dark[:, : third - 9])  # the originals
    assert dark[:, third:].mean() < plain[:, third:].mean() - 20
    with pytest.raises(InputError, match="no training images to show"):
        write_preview(path, dataset, np.arange(0), settings, **options)


def test_settings_of_a_configuration(dataset):
    rows = np.arange(0, len(dataset), 2)
    assert settings_for({"views": 4, "symmetries": True}, dataset, rows).symmetries
    assert settings_for({}, dataset, rows) == AugmentSettings()
    measured = settings_for({"stain_jitter": 0.5}, dataset, rows)
    assert np.shape(measured.stain_statistics) == (4, 3)
    given = ((1.0, 2.0, 3.0),) * 4
    kept = settings_for({"stain_jitter": 0.5, "stain_statistics": given}, dataset, rows)
    assert kept.stain_statistics == given
    with pytest.raises(InputError, match=r"augment\.turns: no such setting"):
        settings_for({"turns": 1}, dataset, rows)


def test_the_mode_writes_one_file_and_leaves_no_split(config, tmp_path):
    path = experiment.preview(config, str(tmp_path / "run"))
    assert path == tmp_path / "run" / "preview.png" and Image.open(path).size[0] > 500
    assert [child.name for child in path.parent.iterdir()] == ["preview.png"]
