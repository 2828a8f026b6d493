"""Colorectal textures (Kather et al. 2016): 5,000 tiles of 150×150, eight classes, from TFDS.

    python main.py --config=configs/colorectal_histology.py --workdir=runs/colorectal

TFDS downloads it (246 MB) and needs TensorFlow once for that. `data.path` is the folder that TFDS
keeps its data in, its default if empty. TFDS names no patient, and all tiles come from few slides,
so that tiles of one slide are in training, validation and test: the result says how well textures
are told apart on these slides and not on new ones, and the report claims nothing about patients.
"""

from ml_collections import ConfigDict

from configs import breakhis


def get_config() -> ConfigDict:
    config = breakhis.get_config()
    config.threshold = "fixed"
    config.class_weights = "none"  # 625 tiles of each class
    config.data.name = "tfds:colorectal_histology"
    config.data.image_size = (150, 150)
    config.data.duplicates = "keep"
    config.split.group = "patient"
    return config
