"""Symmetries of an image, and the mean over them."""

import itertools

import numpy as np
import pytest

from densenet_flax.common.sharding import make_mesh, replicate
from densenet_flax.data.augmentation.views import AugmentSettings, augment
from densenet_flax.inference.segments import SegmentedModel, predict_logits, probabilities
from densenet_flax.inference.tta import (
    mean_over_views,
    num_views,
    predict_probabilities,
    symmetric_views,
)


def symmetries(image):
    """By NumPy: turned zero to three times, and mirrored or not."""
    turned = [np.rot90(image, turns) for turns in range(4)]
    return [x for y in turned for x in (y, y[:, ::-1]) if x.shape == image.shape]


@pytest.mark.parametrize(("size", "count"), [((6, 6), 8), ((5, 5), 8), ((4, 7), 4)])
def test_views_are_the_symmetries_each_once(size, count):
    images = np.random.default_rng(0).integers(0, 256, (3, *size, 3), np.uint8)
    found = np.asarray(symmetric_views(images)).reshape(3, count, *size, 3)
    assert num_views(size) == count
    for image, made in zip(images, found, strict=True):
        assert np.array_equal(made[0], image)
        wanted = {x.tobytes() for x in symmetries(image)}
        assert len(wanted) == count and {x.tobytes() for x in made} == wanted


def test_they_are_those_of_training():
    image = np.random.default_rng(1).integers(0, 256, (1, 9, 9, 3), np.uint8)
    mine = {x.tobytes() for x in np.asarray(symmetric_views(image))}
    settings = AugmentSettings(symmetries=True)
    drawn = (augment(image, np.arange(1), seed=0, epoch=e, settings=settings) for e in range(40))
    assert {np.asarray(x).tobytes() for x in drawn} == mine


def test_the_mean_over_views_does_not_depend_on_how_the_tissue_lay(tiny, tiny_variables, dataset):
    mesh = make_mesh()
    pipeline, variables = SegmentedModel(tiny, mesh), replicate(tiny_variables, mesh)
    ids = np.arange(11)
    plain = predict_probabilities(pipeline, variables, dataset, ids, 16)
    logits = predict_logits(pipeline, variables, dataset, ids, 16)
    assert np.array_equal(plain, probabilities(logits))
    seen = []
    mean = predict_probabilities(
        pipeline, variables, dataset, ids, 16, tta=True, progress=seen.append
    )
    assert sum(seen) == len(ids) and np.abs(mean - plain).max() > 1e-3
    # One by one, without any of our batching.
    images = np.asarray(symmetric_views(dataset.images[ids]))
    each = probabilities(np.asarray(pipeline.run(variables, images)))
    assert np.allclose(mean_over_views(each, 8), mean, atol=1e-6)
    turned = type(dataset)(
        **{**vars(dataset), "images": np.rot90(dataset.images, 1, axes=(1, 2))[:, :, ::-1]}
    )
    for batch_size, rows in itertools.product((3, 16), (ids,)):
        other = predict_probabilities(pipeline, variables, turned, rows, batch_size, tta=True)
        assert np.allclose(other, mean, atol=1e-6)
