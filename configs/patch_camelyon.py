"""PatchCamelyon: 327,680 patches of lymph nodes, 96 px, with or without metastasis.

    python main.py --config=configs/patch_camelyon.py --workdir=runs/pcam

Its three sides are those of its authors. TFDS downloads it (7.5 GB) and needs TensorFlow for
that once; `data.path` is where TFDS keeps its data, its own place if empty. The patches say
nothing about patients, so the report does not claim that these are kept apart.
"""

from ml_collections import ConfigDict

from configs import breakhis


def get_config() -> ConfigDict:
    config = breakhis.get_config()
    config.data.name = "tfds:patch_camelyon"
    config.data.image_size = (96, 96)
    config.data.duplicates = "keep"
    config.class_weights = "none"  # its authors balanced it
    config.split.policy = "given"
    config.split.group = "patient"
    config.stages.head.duration = "1 epochs"
    config.stages.finetune.duration = "3 epochs"
    return config
