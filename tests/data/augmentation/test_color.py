import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from densenet_flax.common.errors import InputError
from densenet_flax.data.augmentation.color import (
    mean_and_std,
    stain_statistics,
    with_stain_statistics,
)
from densenet_flax.data.augmentation.color_spaces import change_dyes, lab_to_rgb, rgb_to_lab
from densenet_flax.data.augmentation.settings import AugmentSettings
from tests.data.augmentation.images import make_views, noise, tissue
from tests.helpers.datasets import make_dataset


def test_contrast_is_about_the_mean_gray():
    (image,) = tissue(1)
    gray = (image @ np.array([0.299, 0.587, 0.114])).mean()
    for view in make_views(np.repeat(image[None], 4, 0), contrast_range=(0.5, 0.6)):
        factor = (view.astype(float) - gray).std() / (image - gray).std()
        assert 0.49 < factor < 0.61
        np.testing.assert_allclose(view, gray + factor * (image - gray), atol=1)


def test_brightness_is_clipped_and_does_not_wrap():
    white = np.full((8, 6, 6, 3), 250, np.uint8)
    assert make_views(white, brightness_range=(1.1, 2)).min() == 255


def test_hed_jitter_draws_factor_and_offset_of_each_dye():
    hed_to_rgb = [[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]]

    def amounts(image):
        density = -np.log(np.maximum(image / 255, 0.4 / 255))
        return (density @ np.linalg.inv(hed_to_rgb)).reshape(-1, 3)

    image = tissue(1)
    before = amounts(image[0])
    fits = []
    for view in make_views(np.repeat(image, 16, 0), hed_range=0.2):
        visible = (view < 255).all(-1).ravel()  # lighter is clipped
        after = amounts(view)
        fits.append([np.polyfit(before[visible, d], after[visible, d], 1) for d in range(3)])
    factors, offsets = np.moveaxis(fits, -1, 0)
    assert np.abs(factors - 1).max() < 0.22 and np.ptp(factors) > 0.3
    assert np.abs(offsets).max() < 0.22 and np.ptp(offsets) > 0.3


def test_changing_no_dye_changes_nothing():
    unchanged = change_dyes(jnp.asarray(noise()[0]), jnp.ones(3), jnp.zeros(3))
    np.testing.assert_array_equal(np.round(unchanged), noise()[0])


def test_changed_dyes_agree_with_scikit_image():
    """To one step of 255 wherever scikit-image does not clip a negative amount of a dye to 0."""
    color = pytest.importorskip("skimage.color")
    image = tissue()[0]
    factor, offset = np.array([1.1, 0.92, 1.05]), np.array([0.06, -0.04, 0.03])
    unit = -np.log(1e-6)  # in which scikit-image measures density
    dyes = color.rgb2hed(image)
    expected = color.hed2rgb(dyes * factor + offset / unit) * 255
    actual = change_dyes(jnp.asarray(image), jnp.asarray(factor), jnp.asarray(offset))
    comparable = (dyes > 0).all(-1)
    assert comparable.mean() > 0.2
    actual = np.clip(actual, 0, 255)
    assert np.abs(actual - expected)[comparable].max() < 1
    amounts = np.log(np.maximum(image / 255, 0.4 / 255)) @ np.linalg.inv(color.rgb_from_hed)
    by_hand = (amounts * factor - offset) @ color.rgb_from_hed
    np.testing.assert_allclose(actual, np.clip(255 * np.exp(by_hand), 0, 255), atol=0.02)


def test_lab_there_and_back():
    rgb = noise()[0] / 255
    lab = rgb_to_lab(jnp.float32(rgb))
    np.testing.assert_allclose(lab_to_rgb(lab), rgb, atol=2e-4)
    white_and_black = rgb_to_lab(jnp.float32([[[1, 1, 1], [0, 0, 0]]]))[0]
    np.testing.assert_allclose(white_and_black, [[100, 0, 0], [0, 0, 0]], atol=0.02)
    color = pytest.importorskip("skimage.color")
    np.testing.assert_allclose(lab, color.rgb2lab(rgb), atol=0.02)


def test_stain_jitter_moves_to_a_random_slide():
    images = tissue()
    fixed = ((60.0, 20.0, -15.0), (0.0,) * 3, (8.0, 6.0, 5.0), (0.0,) * 3)
    for view in make_views(images, stain_jitter=1, stain_statistics=fixed):
        mean, std = np.asarray(mean_and_std(rgb_to_lab(jnp.float32(view / 255))))
        np.testing.assert_allclose(mean, fixed[0], atol=1.5)
        np.testing.assert_allclose(std, fixed[2], atol=1.5)
    statistics = stain_statistics(images)
    assert np.shape(statistics) == (4, 3) and 40 < statistics[0][0] < 95
    settings = {"stain_jitter": 1, "stain_statistics": statistics}
    same = np.repeat(images[:1], 8, 0)
    assert len({view.tobytes() for view in make_views(same, **settings)}) == 8
    np.testing.assert_array_equal(make_views(same, **settings | {"stain_jitter": 0}), same)


def test_stain_jitter_needs_statistics():
    with pytest.raises(InputError, match=r"augment\.stain_statistics"):
        make_views(tissue(), stain_jitter=0.5)


def test_stain_statistics_are_mean_and_deviation_between_images():
    colors = np.array([[200, 100, 150], [100, 60, 140], [230, 200, 220]], np.uint8)
    flat = np.broadcast_to(colors[:, None, None], (3, 5, 5, 3))
    lab = np.asarray(rgb_to_lab(jnp.float32(colors / 255)))
    expected = [lab.mean(0), lab.std(0), np.zeros(3), np.zeros(3)]
    np.testing.assert_allclose(stain_statistics(flat), expected, atol=0.01)


def test_stain_statistics_are_measured_on_training_images_where_needed():
    dataset = make_dataset(patients=4, images=2, size=8)
    rows = np.array([0, 2, 5])
    assert with_stain_statistics(AugmentSettings(), dataset, rows) == AugmentSettings()
    jitter = AugmentSettings(stain_jitter=0.5)
    measured = with_stain_statistics(jitter, dataset, rows)
    assert measured.stain_statistics == stain_statistics(dataset.images[rows])
    given = dataclasses.replace(jitter, stain_statistics=((1.0, 2.0, 3.0),) * 4)
    assert with_stain_statistics(given, dataset, rows) == given
