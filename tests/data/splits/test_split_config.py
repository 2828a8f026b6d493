import pytest
from ml_collections import ConfigDict

from configs import keras_recipe
from densenet_flax.common.errors import InputError
from densenet_flax.data.splits.split_config import SplitConfig


def test_the_recipe_has_the_defaults():
    assert SplitConfig.from_config(keras_recipe.get_config().split, "split") == SplitConfig()
    assert SplitConfig.from_config(ConfigDict(), "split") == SplitConfig()


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"policy": "random"}, "split.policy='random'"),
        ({"mixed_patients": "no"}, "split.mixed_patients='no'"),
        ({"seed": -1}, "split.seed=-1"),
        ({"seed": 0.5}, "split.seed=0.5"),
        ({"fold": "1"}, "split.fold='1'"),
        ({"policy": "kfold", "fold": 0}, "split.fold=0, folds=5"),
        ({"policy": "kfold", "fold": 6}, "split.fold=6, folds=5"),
        ({"policy": "kfold", "folds": 1}, "split.fold=1, folds=1"),
        ({"policy": "image", "test_fraction": 1}, "split.test_fraction=1"),
        ({"test_fractoin": 0.1}, "split.test_fractoin: no such key; did you mean 'test_fraction'"),
    ],
)
def test_bad_keys_are_named(keys, message):
    with pytest.raises(InputError, match=message):
        SplitConfig.from_config(keys, "split")


@pytest.mark.parametrize("key", ["test_fraction", "validation_fraction"])
@pytest.mark.parametrize("value", [0, 1, -0.1, 1.5, float("nan")])
def test_fractions_are_between_0_and_1(key, value):
    with pytest.raises(InputError, match=f"split.{key}="):
        SplitConfig.from_config({key: value}, "split")


def test_keys_that_the_policy_does_not_use_are_not_checked():
    SplitConfig(policy="given", test_fraction=0, fold=0)
    SplitConfig(policy="official", folds=1)
