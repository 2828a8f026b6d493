"""Your own tiles: a folder with a subfolder for each class, or a CSV with the class of each file.

    python main.py --config=configs/folder.py --config.data.path=tiles --workdir=runs/mine

`--config.data.csv=tiles.csv` names a CSV with the columns file and label, and, where they are
known, patient, site and split. Without a CSV, give a pattern that finds the patient in a file's
path. Without either, each file counts as a patient of its own, and the report says that patients
are unknown.
"""

from ml_collections import ConfigDict

from configs import breakhis


def get_config() -> ConfigDict:
    config = breakhis.get_config()
    config.data.name = "folder"
    config.data.csv = ""
    config.data.patient_pattern = ""  # such as r'/(\w+)_\d+\.png$'
    config.data.class_names = ()  # in the order of their labels; () sorts them by name
    config.data.on_bad_image = "error"  # or 'skip'
    config.data.storage = "array"  # or 'stream', where the resized images do not fit on the disk
    config.data.duplicates = "keep"  # or 'drop', 'error'
    config.split.policy = "patient"  # or 'kfold', 'given' (the CSV's column split), 'image' (leaks)
    config.split.group = "patient"  # or 'site', to test on other sites
    return config
