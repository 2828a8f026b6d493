"""The configurations of data sets: that they are consistent, without training anything."""

import importlib

import pytest

from configs import breakhis, keras_recipe
from densenet_flax.data.augmentation.settings import AugmentConfig
from densenet_flax.data.breakhis.name_list import dataset_of_names, list_file_names
from densenet_flax.data.splits.policies import make_split
from densenet_flax.data.splits.split_config import SplitConfig

NAMES = ("breakhis", "colorectal_histology", "folder", "keras_recipe", "patch_camelyon")


@pytest.mark.parametrize("name", NAMES)
def test_keys_are_those_of_the_recipe_and_views_make_sense(name):
    def keys(block):
        return {key: keys(block[key]) if hasattr(block[key], "keys") else None for key in block}

    config = importlib.import_module(f"configs.{name}").get_config()
    recipe = keras_recipe.get_config()
    for block in (config, recipe):
        del block["augment"]
    assert keys(config) == keys(recipe)
    config = importlib.import_module(f"configs.{name}").get_config()
    settings = AugmentConfig.from_config(config.augment, "config.augment").settings
    assert settings.symmetries == (name != "keras_recipe")
    assert config.sampling == "shuffle" or config.class_weights == "none"  # balanced once


@pytest.mark.parametrize("arguments", ["", "fold=3", "labels=subtype", "labels=subtype,seed=7"])
def test_all_of_breakhis_can_be_split_as_recommended(breakhis_folds, arguments):
    config = breakhis.get_config(arguments)
    dataset = dataset_of_names(list_file_names(breakhis_folds / "dsfold1.txt"), config.data.labels)
    split = make_split(dataset, SplitConfig.from_config(config.split, "config.split"))
    assert split.patient_disjoint and split.policy.group == (
        "id82" if "fold" in arguments else config.split.group
    )
    for rows in (split.train, split.validation, split.test):
        assert set(dataset.labels[rows]) == set(range(len(dataset.class_names)))


def test_arguments():
    config = breakhis.get_config("fold=2,magnification=100,seed=5")
    assert (config.split.policy, config.split.fold, config.data.magnification) == (
        "official",
        2,
        100,
    )
    assert config.seed == config.split.seed == 5 and config.data.duplicates == "keep"
    assert breakhis.get_config().data.duplicates == "drop"
    for wrong in ("labels=nine", "fold=x", "speed=3"):
        with pytest.raises(ValueError, match=f"{wrong}: expected fold="):
            breakhis.get_config(wrong)
