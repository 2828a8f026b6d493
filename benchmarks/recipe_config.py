"""The Keras recipe on the benchmark's images: `configs/keras_recipe.py` with other data.

`recipe.py` passes paths and durations on the command line, as a user would.
"""

from ml_collections import ConfigDict

from configs import keras_recipe


def get_config() -> ConfigDict:
    """Returns the configuration; `configs/keras_recipe.py` explains its keys."""
    config = keras_recipe.get_config()
    config.data.name = "folder"
    config.split.policy = "given"
    config.split.group = "patient"
    return config
