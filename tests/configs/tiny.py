"""The quickstart on a tiny DenseNet and few images, for tests of the whole program."""

import functools

from configs import quickstart
from densenet_flax.models.densenet import NETWORKS, DenseNet


def get_config():
    # Not at import: tests that are parametrized over NETWORKS must not depend on what was imported
    # before them.
    NETWORKS["tiny"] = functools.partial(DenseNet, blocks=(2, 2, 3, 2))
    config = quickstart.get_config()
    config.model.name = "tiny"
    config.model.hidden = (8,)
    config.batch_size = 10
    config.log_every = 2
    config.data.image_size = (32, 32)
    config.data.drawn.benign_patients = 5
    config.data.drawn.malignant_patients = 5
    config.data.drawn.tiles_per_patient = 4
    config.data.drawn.size = (44, 29)
    config.split.test_fraction = 0.2
    config.stages.head.duration = "3 epochs"
    config.stages.finetune.duration = "3 epochs"
    config.stages.finetune.unfreeze_from = "conv5_block2_1_conv"
    return config
