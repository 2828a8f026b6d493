"""The Keras recipe on the benchmark's images: `configs/keras_recipe.py` with its own data.

`recipe.py` gives the paths and lengths on the command line, as a user would.
"""

from ml_collections import ConfigDict

from configs import keras_recipe


def get_config() -> ConfigDict:
    """The recipe's keys; see `configs/keras_recipe.py`."""
    config = keras_recipe.get_config()
    config.data.name = "folder"
    config.split.policy = "given"
    config.split.group = "patient"
    return config
