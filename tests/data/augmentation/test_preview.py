import dataclasses

import numpy as np
import pytest
from PIL import Image

from densenet_flax.common.errors import InputError
from densenet_flax.data.augmentation.preview import _make_views, choose_rows, write_preview
from densenet_flax.data.augmentation.settings import AugmentSettings
from densenet_flax.data.augmentation.views import augment
from densenet_flax.experiments import run as experiment
from tests.configs import tiny
from tests.helpers.datasets import make_dataset


@pytest.fixture(scope="module")
def dataset():
    return make_dataset(patients=10, images=4)


def test_classes_take_turns_and_each_patient_comes_before_one_comes_again(dataset):
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
    views, shares = _make_views(dataset.images[ids], labels, ids, settings, seed=3, view=2)
    expected = augment(dataset.images[ids], ids, seed=3, epoch=2, settings=settings)
    np.testing.assert_array_equal(views, expected)
    np.testing.assert_array_equal(shares, 1)
    mixing = dataclasses.replace(settings, mixup=1.0)
    labels = np.array([0, 1])
    views, shares = _make_views(dataset.images[ids], labels, ids, mixing, seed=3, view=2)
    assert (views != expected).any() and ((shares > 0) & (shares < 1)).all()


def test_a_sheet_shows_originals_and_views(dataset, tmp_path):
    path = tmp_path / "new" / "preview.png"
    options = {"group": "case70", "seed": 0, "images": 3, "views": 2}

    def write(settings):
        write_preview(path, dataset, np.arange(len(dataset)), settings, **options)
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))

    plain, dark = write(AugmentSettings()), write(AugmentSettings(brightness_range=(0.1, 0.2)))
    views = plain.shape[1] * 4 // 6  # after the originals and their dyes
    np.testing.assert_array_equal(plain[:, : views - 9], dark[:, : views - 9])
    assert dark[:, views:].mean() < plain[:, views:].mean() - 20
    with pytest.raises(InputError, match="no training images to show"):
        write_preview(path, dataset, np.arange(0), AugmentSettings(), **options)


def test_the_preview_mode_writes_one_file_and_no_split(tmp_path):
    config = tiny.get_config()
    config.cache_dir = str(tmp_path / "cache")
    path = experiment.preview(config, str(tmp_path / "run"))
    assert path == tmp_path / "run" / "preview.png" and Image.open(path).size[0] > 500
    assert [child.name for child in path.parent.iterdir()] == ["preview.png"]
