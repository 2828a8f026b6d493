"""The images of tests/storage/data on a network of 20,000 parameters, for `test_older_files`.

It was read by the code that wrote those files, so it may only change together with them.
"""

from configs import folder


def get_config():
    config = folder.get_config()
    config.model.name = "small"  # tests that use this configuration add it to NETWORKS
    config.model.weights = "random"
    config.model.hidden = (8,)
    config.batch_size = 6
    config.log_every = 1
    config.evaluate = "last"
    config.explain = ""
    config.data.image_size = (32, 32)
    config.data.patient_pattern = r"p\d+"
    config.split.test_fraction = 0.25
    config.split.validation_fraction = 0.25
    config.ema_decay = 0.5
    config.stages.head.duration = "2 epochs"
    # Four groups of weights: decayed and not, trained before and not.
    config.stages.finetune.duration = "3 epochs"
    config.stages.finetune.unfreeze_from = "conv5_block2_1_conv"
    config.stages.finetune.learning_rate = 1e-3
    config.stages.finetune.optimizer = "adamw"
    config.stages.finetune.weight_decay = 0.01
    config.stages.finetune.keep_moments = True
    config.stages.finetune.restore_best = True
    return config
