"""The rules by which a data set is split besides `patient_split`, and the choice among them."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from absl import logging

from densenet_flax.common.errors import InputError
from densenet_flax.data.breakhis import folds as breakhis_folds
from densenet_flax.data.splits.split import (
    LEAKY,
    SIDES,
    Split,
    assert_sound,
    build_split,
    check_numbers,
    patient_split,
    patients_of_class,
    relatives,
    share,
)

if TYPE_CHECKING:
    from densenet_flax.data.dataset import Dataset

POLICIES = ("patient", "official", "kfold", "given", LEAKY)


def make_split(dataset: "Dataset", split_config: Any) -> Split:
    """Splits a data set as a configuration says, and asserts that patients are kept apart.

    Args:
      dataset: what to split.
      split_config: a mapping; all keys are optional. `policy` ('patient', 'official', 'kfold',
        'given' or 'image'), `group` ('case70'), `test_fraction` (0.2), `validation_fraction`
        (0.15), `seed` (0), `fold` (1), `folds` (5), `mixed_patients` ('error').

    Raises:
      InputError: a key makes no sense, or the data cannot be split so.
    """
    get = split_config.get
    policy = get("policy", "patient")
    common = {
        "group": get("group", "case70"),
        "validation_fraction": get("validation_fraction", 0.15),
        "seed": get("seed", 0),
        "mixed_patients": get("mixed_patients", "error"),
    }
    if policy == "patient":
        split = patient_split(dataset, test_fraction=get("test_fraction", 0.2), **common)
    elif policy == "official":
        split = official_split(dataset, fold=get("fold", 1), **common)
    elif policy == "kfold":
        split = kfold_split(dataset, fold=get("fold", 1), folds=get("folds", 5), **common)
    elif policy == "given":
        split = given_split(dataset, **common)
    elif policy == LEAKY:
        del common["mixed_patients"]
        split = image_split(dataset, test_fraction=get("test_fraction", 0.2), **common)
    else:
        raise InputError(f"split.policy={policy!r}: expected one of {', '.join(POLICIES)}")
    assert_sound(split, dataset)
    return split


def official_split(
    dataset: "Dataset",
    *,
    fold: int = 1,
    group: str = "case70",
    validation_fraction: float = 0.15,
    seed: int = 0,
    mixed_patients: str = "error",
) -> Split:
    """One of BreakHis's five official folds, with validation patients taken out of training.

    The test side is the published one to the image, so patients are told apart there, and counted
    in the report, as the protocol does: by 'id82'. Validation is drawn by `group` from those who
    train. By 'case70' the official folds leak; how much is logged.

    Args:
      dataset: BreakHis or a part of it.
      fold: 1 to 5.
      group: who counts as one patient between training and validation.
      validation_fraction: share of the training patients of each class.
      seed: of the choice of validation patients.
      mixed_patients: see `patients_of_class`.

    Raises:
      InputError: no such fold, or images that are not BreakHis's.
    """
    check_numbers(seed=seed, validation_fraction=validation_fraction)
    tested = breakhis_folds.test_ids(fold)
    if "id82" not in dataset.groups:
        raise InputError(f"split.policy='official' is of BreakHis, not of {dataset.name}")
    ids = dataset.patients("id82")
    strangers = sorted(set(ids.tolist()) - breakhis_folds.IDS.keys())
    if strangers:
        raise InputError(
            f"split.policy='official': {strangers[0]} of {dataset.name} is not one of BreakHis's "
            "82 ids; choose another policy for these images"
        )
    in_test = np.isin(ids, list(tested))
    rows = {"test": np.flatnonzero(in_test)}
    rows |= _with_validation(
        dataset, np.flatnonzero(~in_test), group, validation_fraction, [seed, fold], mixed_patients
    )
    policy = {
        "kind": "official",
        "group": "id82",
        "validation_group": group,
        "fold": fold,
        "seed": seed,
        "validation_fraction": validation_fraction,
        "mixed_patients": mixed_patients,
    }
    split = build_split(dataset, _ordered(dataset, rows), policy)
    logging.info(
        "official fold %d: %.0f %% of the test images have a block of the same case in training",
        fold,
        100 * relatives(split, dataset.patients("case70")).mean(),
    )
    return split


def kfold_split(
    dataset: "Dataset",
    *,
    fold: int = 1,
    folds: int = 5,
    group: str = "case70",
    validation_fraction: float = 0.15,
    seed: int = 0,
    mixed_patients: str = "error",
) -> Split:
    """Fold `fold` of a cross-validation by patient: each patient is tested in exactly one fold.

    Each class is dealt for itself: patients with many images first, each to the fold with the
    fewest images so far, ties in the order of the seed. Scikit-learn's StratifiedGroupKFold
    balances well too, but may leave a fold without a class when patients are few, and its folds
    are its version's business where these have to stay the same for years.

    Args:
      dataset: what to split.
      fold: which one to test on, from 1.
      folds: how many there are.
      group: who counts as one patient.
      validation_fraction: share of the patients of each class that are not tested.
      seed: same seed, same folds.
      mixed_patients: see `patients_of_class`.

    Raises:
      InputError: no such fold, or a class with too few patients.
    """
    check_numbers(seed=seed, validation_fraction=validation_fraction)
    if folds < 2 or not 1 <= fold <= folds:
        raise InputError(
            f"split.fold={fold}, split.folds={folds}: expected at least 2 folds, and one from 1 on"
        )
    groups = dataset.patients(group)
    images = dict(zip(*np.unique(groups, return_counts=True), strict=True))
    rng = np.random.default_rng(seed)
    chosen: list[str] = []
    for name, patients in patients_of_class(dataset, groups, mixed_patients=mixed_patients).items():
        if len(patients) < max(folds, 3):
            raise InputError(
                f"class {name!r} of {dataset.name} has {len(patients)} patient(s) by {group}, too "
                f"few for split.folds={folds}; choose fewer folds or a finer group"
            )
        order = [patients[i] for i in rng.permutation(len(patients))]
        order.sort(key=lambda patient: -images[patient])
        load = np.zeros(folds, int)
        dealt: list[list[str]] = [[] for _ in range(folds)]
        for patient in order:
            lightest = int(load.argmin())
            load[lightest] += images[patient]
            dealt[lightest].append(patient)
        chosen += dealt[fold - 1]
    in_test = np.isin(groups, chosen)
    rows = {"test": np.flatnonzero(in_test)}
    rows |= _with_validation(
        dataset, np.flatnonzero(~in_test), group, validation_fraction, [seed, fold], mixed_patients
    )
    policy = {
        "kind": "kfold",
        "group": group,
        "fold": fold,
        "folds": folds,
        "seed": seed,
        "validation_fraction": validation_fraction,
        "mixed_patients": mixed_patients,
    }
    return build_split(dataset, _ordered(dataset, rows), policy)


def given_split(
    dataset: "Dataset",
    *,
    group: str = "patient",
    validation_fraction: float = 0.15,
    seed: int = 0,
    mixed_patients: str = "error",
) -> Split:
    """The sides that the data set itself states, by a column `split` or by the splits of TFDS.

    If it states no validation side, one is drawn by patient from training.

    Raises:
      InputError: the data set states none, or no test side.
    """
    check_numbers(seed=seed, validation_fraction=validation_fraction)
    stated = dataset.columns.get("split")
    if stated is None:
        raise InputError(
            f"split.policy='given': {dataset.name} does not say who trains and who tests; choose "
            "another policy, or a CSV with a column 'split'"
        )
    rows = {side: np.flatnonzero(stated == side) for side in SIDES}
    for side in ("train", "test"):
        if not len(rows[side]):
            raise InputError(
                f"split.policy='given': {dataset.name} has no images for {side}, only for "
                f"{', '.join(sorted(set(stated.tolist())))}"
            )
    if not len(rows["validation"]):
        rows |= _with_validation(
            dataset, rows["train"], group, validation_fraction, [seed], mixed_patients
        )
    policy = {
        "kind": "given",
        "group": group,
        "seed": seed,
        "validation_fraction": validation_fraction,
        "mixed_patients": mixed_patients,
    }
    return build_split(dataset, _ordered(dataset, rows), policy)


def image_split(
    dataset: "Dataset",
    *,
    group: str = "case70",
    test_fraction: float = 0.2,
    validation_fraction: float = 0.15,
    seed: int = 0,
) -> Split:
    """Splits by image, whoever it is of: leaky, only to compare with results obtained like that.

    Args:
      dataset: what to split.
      group: who counts as one patient in the report.
      test_fraction: share of the images of each class.
      validation_fraction: share of the other images of each class.
      seed: same seed, same split.

    Raises:
      InputError: a class has fewer than three images.
    """
    fractions = {"test_fraction": test_fraction, "validation_fraction": validation_fraction}
    check_numbers(seed=seed, **fractions)
    rng = np.random.default_rng(seed)
    sides = np.full(len(dataset), "train", dtype="U10")
    for label, name in enumerate(dataset.class_names):
        order = rng.permutation(np.flatnonzero(dataset.labels == label))
        if len(order) < len(SIDES):
            raise InputError(
                f"class {name!r} of {dataset.name} has {len(order)} image(s) and needs at least "
                f"{len(SIDES)}, one each to train, validate and test"
            )
        tests = share(test_fraction, len(order), leave=2)
        validations = share(validation_fraction, len(order) - tests, leave=1)
        sides[order[:tests]] = "test"
        sides[order[tests : tests + validations]] = "validation"
    rows = {side: np.flatnonzero(sides == side) for side in SIDES}
    policy = {"kind": LEAKY, "patient_disjoint": False, "group": group, "seed": seed, **fractions}
    return build_split(dataset, rows, policy)


def _with_validation(
    dataset: "Dataset",
    rows: np.ndarray,
    group: str,
    fraction: float,
    seed: list[int],
    mixed_patients: str,
) -> dict[str, np.ndarray]:
    """Takes a share of the patients of each class among these rows out of training."""
    groups, rng = dataset.patients(group), np.random.default_rng(seed)
    chosen: list[str] = []
    for name, patients in patients_of_class(
        dataset, groups, rows, mixed_patients=mixed_patients
    ).items():
        if len(patients) < 2:
            raise InputError(
                f"class {name!r} of {dataset.name} has {len(patients)} training patient(s) by "
                f"{group} and needs at least 2, one to validate; choose a finer group"
            )
        count = share(fraction, len(patients), leave=1)
        chosen += [patients[i] for i in rng.permutation(len(patients))[:count]]
    mine = np.isin(groups[rows], chosen)
    return {"train": rows[~mine], "validation": rows[mine]}


def _ordered(dataset: "Dataset", rows: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The sides in their order, having made sure that none lacks a class."""
    for side in SIDES:
        there = np.isin(np.arange(len(dataset.class_names)), dataset.labels[rows[side]])
        if not there.all():
            raise InputError(
                f"the {side} side of {dataset.name} has no image of class "
                f"{dataset.class_names[int(there.argmin())]!r}; choose another fold, policy or "
                "group, or add images"
            )
    return {side: rows[side] for side in SIDES}
