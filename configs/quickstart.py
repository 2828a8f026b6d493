"""Synthetic tissue tiles, minutes on two CPU cores, no download: what `make demo` runs."""

from ml_collections import ConfigDict

from configs import keras_recipe


def get_config() -> ConfigDict:
    config = keras_recipe.get_config()
    config.evaluate = "best"
    config.model.weights = "random"  # those of ImageNet are a download
    # Within a hundred steps 0.99 would not forget the initial statistics.
    config.model.bn_momentum = 0.9
    config.data.name = "drawn"
    config.data.image_size = (64, 96)
    config.data.drawn = ConfigDict()
    config.data.drawn.benign_patients = 24
    config.data.drawn.malignant_patients = 24
    config.data.drawn.tiles_per_patient = 10
    config.data.drawn.size = (175, 115)
    config.data.drawn.seed = 0
    config.split.test_fraction = 0.25
    config.stages.head.duration = "8 epochs"
    config.stages.finetune.duration = "6 epochs"
    config.stages.finetune.learning_rate = 3e-4
    config.stages.finetune.schedule = "cosine"  # from random weights a constant rate oscillates
    return config
