"""Your own tiles: a folder with a subfolder for each class, or a table with the class of each file.

    python main.py --config=configs/folder.py --config.data.path=tiles --workdir=runs/mine

Folders train, val and test, or fold_1, fold_2, …, above the classes are the split. Where folders
can be read in more than one way the run stops and says which key states it: docs/data.md has the
flags for public data sets.

`--config.data.csv=tiles.csv` names a table with the columns file and label, and, where they are
known, patient, site and split. Without one, give a pattern that finds the patient in a file's
path. Without either, patients are those of BreakHis's names; of other names each file counts as a
patient of its own, and the report says that patients are unknown.
"""

from ml_collections import ConfigDict

from configs import breakhis


def get_config() -> ConfigDict:
    config = breakhis.get_config()
    config.data.name = "folder"
    config.data.csv = ""
    config.data.patient_pattern = ""  # such as r'/(\w+)_\d+\.png$'
    config.data.class_names = ()  # in the order of their labels: of two, the second is looked for
    config.data.on_bad_image = "error"  # or 'skip'
    config.data.storage = "array"  # or 'stream', where the resized images do not fit on the disk
    config.data.duplicates = "keep"  # or 'drop', 'error'
    # 'given' if folders or the table state the subsets, else 'patient'; or 'kfold', 'image' (leaks)
    config.split.policy = "auto"
    config.split.group = "patient"  # or 'site', to test on other sites
    return config
