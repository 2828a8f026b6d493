"""Symmetric views of an image."""

import numpy as np
import pytest

from densenet_flax.data.augmentation.settings import AugmentSettings
from densenet_flax.data.augmentation.views import augment
from densenet_flax.inference.tta import mean_over_views, num_views, symmetric_views


def symmetries_by_numpy(image):
    """The image turned zero to three times, mirrored and not, as far as the shape stays."""
    turned = [np.rot90(image, turns) for turns in range(4)]
    return [x for y in turned for x in (y, y[:, ::-1]) if x.shape == image.shape]


@pytest.mark.parametrize(("size", "count"), [((6, 6), 8), ((5, 5), 8), ((4, 7), 4)])
def test_views_are_all_symmetries_once_and_the_image_first(size, count):
    images = np.random.default_rng(0).integers(0, 256, (3, *size, 3), np.uint8)
    views = np.asarray(symmetric_views(images)).reshape(3, count, *size, 3)
    assert num_views(size) == count
    for image, views_of_image in zip(images, views, strict=True):
        assert np.array_equal(views_of_image[0], image)
        expected = {x.tobytes() for x in symmetries_by_numpy(image)}
        assert len(expected) == count and {x.tobytes() for x in views_of_image} == expected


def test_views_are_the_symmetries_of_the_augmentation():
    image = np.random.default_rng(1).integers(0, 256, (1, 9, 9, 3), np.uint8)
    views = {x.tobytes() for x in np.asarray(symmetric_views(image))}
    settings = AugmentSettings(symmetries=True)
    drawn = (augment(image, np.arange(1), seed=0, epoch=e, settings=settings) for e in range(40))
    assert {np.asarray(x).tobytes() for x in drawn} == views


def test_mean_over_views_averages_the_rows_of_each_image():
    probability = np.array([[0.0, 1.0], [0.5, 0.5], [1.0, 0.0], [0.2, 0.8]])
    assert np.allclose(mean_over_views(probability, 2), [[0.25, 0.75], [0.6, 0.4]])
