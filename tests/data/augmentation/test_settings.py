import math

import pytest

from configs import keras_recipe
from densenet_flax.common.errors import InputError
from densenet_flax.data.augmentation.settings import AugmentConfig, AugmentSettings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rotation": 20}, r"augment\.rotation: no such key; did you mean 'rotation_range'"),
        ({"rotation_range": -1}, r"augment\.rotation_range=-1\.0: expected a number from 0 to 180"),
        ({"rotation_range": math.nan}, r"augment\.rotation_range=nan"),
        ({"rotation_range": "20"}, r"augment\.rotation_range='20': expected a number"),
        ({"zoom_range": 1}, r"augment\.zoom_range=1"),
        ({"zoom_range": (1.2, 0.8)}, r"augment\.zoom_range="),
        ({"zoom_range": (1,)}, r"augment\.zoom_range="),
        ({"fill_mode": "constant"}, r"augment\.fill_mode='constant'"),
        ({"brightness_range": (0.8,)}, r"augment\.brightness_range="),
        ({"contrast_range": (2, 1)}, r"augment\.contrast_range="),
        ({"cutout": 2}, r"augment\.cutout=2"),
        ({"mixup": math.inf}, r"augment\.mixup=inf"),
        ({"stain_statistics": (1, 2)}, r"augment\.stain_statistics"),
        ({"stain_statistics": ((1.0, 2.0, 3.0),)}, r"augment\.stain_statistics"),
        ({"views": -1}, r"augment\.views=-1"),
        ({"views": 1.5}, r"augment\.views=1.5"),
    ],
)
def test_bad_keys_are_named(settings, message):
    with pytest.raises(InputError, match=message):
        AugmentConfig.from_config(settings, "augment")


def test_the_recipe_has_the_defaults_and_no_augmentation():
    config = AugmentConfig.from_config(keras_recipe.get_config().augment, "config.augment")
    assert config == AugmentConfig() and not config.settings.active


@pytest.mark.parametrize(
    "settings",
    [
        {"symmetries": True},
        {"horizontal_flip": True},
        {"vertical_flip": True},
        {"rotation_range": 1},
        {"width_shift_range": 0.1},
        {"height_shift_range": 0.1},
        {"shear_range": 1},
        {"zoom_range": 0.1},
        {"zoom_range": (1, 1.1)},
        {"brightness_range": (0.9, 1)},
        {"contrast_range": (0.9, 1)},
        {"hed_range": 0.1},
        {"stain_jitter": 0.1},
        {"cutout": 0.1},
        {"mixup": 0.1},
        {"cutmix": 0.1},
    ],
)
def test_each_operation_is_active_when_switched_on(settings):
    assert AugmentSettings.from_config(settings, "augment").active


def test_settings_without_effect_are_not_active():
    without_effect = {"zoom_range": (1, 1), "brightness_range": (1, 1), "contrast_range": [1, 1]}
    assert not AugmentSettings.from_config(without_effect, "augment").active
    assert not AugmentSettings(fill_mode="nearest", stain_statistics=((1.0,) * 3,) * 4).active
