"""Images and views of them for the tests of this folder."""

import functools

import jax.numpy as jnp
import numpy as np

from densenet_flax.data.augmentation.settings import AugmentSettings
from densenet_flax.data.augmentation.views import augment
from densenet_flax.data.synthetic.tissue import draw_stain, draw_tile


@functools.cache
def noise(count=4, height=12, width=12):
    return np.random.default_rng(0).integers(0, 256, (count, height, width, 3), np.uint8)


@functools.cache
def tissue(count=3):
    def tile(seed):
        stain = draw_stain(np.random.default_rng(seed))
        return draw_tile(np.random.default_rng(seed), seed % 2, stain, (48, 48))[0]

    return np.stack([tile(seed) for seed in range(count)])


def make_views(images, *, ids=None, seed=0, epoch=0, **settings):
    ids = np.arange(len(images)) if ids is None else np.array(ids)
    settings = AugmentSettings.from_config(settings, "augment")
    views = augment(images, ids.astype(np.int32), seed=seed, epoch=epoch, settings=settings)
    assert views.dtype == jnp.uint8
    return np.asarray(views)


def square_symmetries(image):
    """The image turned zero to three times, mirrored and not."""
    turned = [np.rot90(image, turns) for turns in range(4)]
    return turned + [image[:, ::-1] for image in turned]
