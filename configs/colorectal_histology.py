"""Kather's 5,000 colorectal tiles of 150 px in eight kinds of tissue.

    python main.py --config=configs/colorectal_histology.py --workdir=runs/colorectal

Nothing says which of its ten slides a tile is from, so it can only be split by image: what comes
out is no estimate for new patients, and the report says so. TFDS downloads it (250 MB) and needs
TensorFlow for that once.
"""

from ml_collections import ConfigDict

from configs import breakhis


def get_config() -> ConfigDict:
    config = breakhis.get_config()
    config.data.name = "tfds:colorectal_histology"
    config.data.image_size = (150, 150)
    config.split.policy = "image"
    config.split.group = "patient"
    return config
