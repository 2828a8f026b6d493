import pytest
from ml_collections import ConfigDict

from configs import keras_recipe
from densenet_flax.common.errors import InputError
from densenet_flax.data.data_config import DataConfig


def test_defaults_are_those_of_the_recipe():
    recipe = keras_recipe.get_config().data
    assert DataConfig.from_config(ConfigDict(), "data") == DataConfig()
    recipe.stain = ConfigDict()  # which says 'none'
    assert DataConfig.from_config(recipe, "data") == DataConfig()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("name", "mnist"),
        ("image_size", 224),
        ("image_size", (224,)),
        ("image_size", (0, 224)),
        ("labels", "nine"),
        ("magnification", 50),
        ("require_complete", "yes"),
        ("duplicates", "remove"),
        ("on_bad_image", "ignore"),
        ("storage", "disk"),
        ("workers", -1),
        ("patient_pattern", "("),
        ("class_names", ("a", "a")),
        ("sizes", 3),
    ],
)
def test_invalid_values_name_the_key(key, value):
    with pytest.raises(InputError, match=rf"^data\.{key}[=:]") as caught:
        DataConfig.from_config({key: value}, "data")
    assert "\n" not in str(caught.value)


def test_keys_of_other_data_may_have_any_value():
    assert DataConfig(name="folder", magnification=20).magnification == 20
