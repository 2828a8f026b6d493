"""Data sets without pixels, and what a split of them has to keep."""

import numpy as np

from densenet_flax.data.breakhis import folds, names
from densenet_flax.data.breakhis.name_list import dataset_of_names
from densenet_flax.data.splits.split import SUBSETS
from densenet_flax.data.splits.split_config import SplitConfig
from tests.helpers.datasets import dataset_of_labels


def make_dataset(rows, class_names=("no", "yes"), **fields):
    """A data set that is not BreakHis from (label, patient) rows."""
    labels, patients = zip(*rows, strict=True)
    return dataset_of_labels(labels, class_names, groups={"patient": np.array(patients)}, **fields)


def make_patients(*counts, images=3):
    """So many patients of each class, with some images each."""
    rows = [(label, f"{label}-{i}") for label, count in enumerate(counts) for i in range(count)]
    class_names = tuple("abcdefgh"[: len(counts)])
    return make_dataset([row for row in rows for _ in range(images)], class_names)


def make_breakhis(rows):
    """A data set with BreakHis's groups from (label, subtype, slide id) rows."""
    labels, subtypes, slides = zip(*rows, strict=True)
    cases = [slide.rstrip("ABCDEFG") for slide in slides]
    groups = names.patient_groups(subtypes, slides, cases)
    return dataset_of_labels(labels, ("benign", "malignant"), groups=groups)


def make_official_dataset():
    """Two made-up names of each of the 82 ids."""
    tokens = {subtype: token for token, (subtype, _) in names.SUBTYPES.items()}
    files = []
    for name in folds.IDS:
        subtype, slide = name.split("/")
        token = tokens[subtype]
        letter = names.SUBTYPES[token][1][0].upper()
        files += [f"SOB_{letter}_{token}-14-{slide}-40-00{i}.png" for i in (1, 2)]
    return dataset_of_names(files)


def by_patient(**keys):
    return SplitConfig(group="patient", **keys)


def patients_of_subsets(dataset, split, group):
    groups = dataset.patients(group)
    return [set(groups[getattr(split, subset)]) for subset in SUBSETS]


def assert_patients_apart(dataset, split, group):
    train, validation, test = patients_of_subsets(dataset, split, group)
    assert not train & validation and not train & test and not validation & test
