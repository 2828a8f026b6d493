import numpy as np
import pytest

from densenet_flax.data.augmentation.settings import AugmentSettings
from densenet_flax.data.augmentation.views import mix
from tests.data.augmentation.images import make_views, noise


def make_mixtures(images, **settings):
    """Mixtures, and the share of each image in each."""
    ids = np.arange(len(images), dtype=np.int32)
    targets = np.eye(len(images), dtype=np.float32)
    settings = AugmentSettings(**settings)
    return map(np.asarray, mix(images, targets, ids, seed=0, epoch=0, settings=settings))


def test_mixup_mixes_image_and_target_in_the_same_shares():
    images = noise(8)
    mixed, shares = make_mixtures(images, mixup=1.0)
    own = np.diagonal(shares)
    np.testing.assert_allclose(shares.sum(1), 1, atol=1e-6)
    assert np.ptp(own) > 0.3
    for i in range(8):
        expected = own[i] * images[i] + (1 - own[i]) * images[i - 1]
        np.testing.assert_allclose(mixed[i], expected, atol=0.01)
        assert shares[i, i - 1] == pytest.approx(1 - own[i])


def test_cutmix_pastes_a_box_and_counts_its_pixels():
    images = noise(8, 20, 20)
    mixed, shares = make_mixtures(images, cutmix=1.0)
    for i in range(8):
        own, other = (mixed[i] == images[i]).all(-1), (mixed[i] == images[i - 1]).all(-1)
        assert (own | other).all()
        assert own.mean() == pytest.approx(shares[i, i], abs=0.01)
    assert np.ptp(np.diagonal(shares)) > 0.3


def test_with_both_each_image_gets_one():
    images = noise(32, 8, 8)
    mixed, _ = make_mixtures(images, mixup=1.0, cutmix=1.0)
    partners = np.roll(images, 1, 0)
    by_cutmix = ((mixed == images) | (mixed == partners)).all((1, 2, 3))
    assert 5 < by_cutmix.sum() < 27


def test_without_either_nothing_is_mixed():
    images = noise(32, 8, 8)
    unmixed, shares = make_mixtures(images)
    np.testing.assert_array_equal(unmixed, images)
    np.testing.assert_array_equal(shares, np.eye(32))


def test_cutout_wipes_a_square_with_the_mean():
    images = noise(20, 40, 40)
    shares = []
    for image, view in zip(images, make_views(images, cutout=0.5), strict=True):
        wiped = (view != image).any(-1)
        np.testing.assert_allclose(view[wiped], [image.mean((0, 1))] * wiped.sum(), atol=0.6)
        rows, columns = np.flatnonzero(wiped.any(1)), np.flatnonzero(wiped.any(0))
        assert 10 <= len(rows) <= 20 and 10 <= len(columns) <= 20
        shares.append(wiped[np.ix_(rows, columns)].mean())
    assert np.mean(shares) > 0.99


@pytest.mark.parametrize(
    ("settings", "expected"),
    [({"mixup": 0.4}, (0.00579, 0.14276, 0.90518)), ({"cutmix": 1.0}, (39 / 64, 58 / 64, 40 / 64))],
)
def test_a_seed_means_the_same_mixtures_in_every_version(settings, expected):
    ids, settings = np.arange(5, 8), AugmentSettings(**settings)
    _, shares = mix(noise(3, 8, 8), np.eye(3), ids, seed=1, epoch=3, settings=settings)
    np.testing.assert_allclose(np.diagonal(shares), expected, atol=1e-5)
