"""PatchCamelyon: 327,680 patches of lymph nodes, 96 px, with or without metastasis.

    python main.py --config=configs/patch_camelyon.py --workdir=runs/pcam

Training, validation and test are those of its authors. TFDS downloads it (7.5 GB) and needs
TensorFlow once for that. `data.path` is the folder that TFDS keeps its data in, its default if
empty. Nothing says whose the patches are, so the report does not claim that patients are kept
apart.
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
