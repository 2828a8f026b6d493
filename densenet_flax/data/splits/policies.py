"""The policies by which a data set is split.

- 'patient': a share of the patients of each class tests, another validates.
- 'kfold': cross-validation; each patient is tested in exactly one fold.
- 'official': one of BreakHis's five published folds.
- 'given': the subsets or folds that the data itself states.
- 'auto': 'given' if the data states its subsets, else 'patient'.
- 'image': a share of the images of each class, of whichever patients. Leaky: most published results
  were obtained like that, and it exists to compare with them.

Patients are dealt class by class, so that each subset has patients of each class. Scikit-learn's
splitters balance well too, but may leave a subset without a class when patients are few, and their
splits depend on its version, where these have to stay the same for years.
"""

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
from absl import logging
from jaxtyping import Bool

from densenet_flax.common.errors import InputError
from densenet_flax.data.breakhis.folds import IDS, test_ids
from densenet_flax.data.dataset import Dataset
from densenet_flax.data.splits.split import (
    SUBSETS,
    Rows,
    Split,
    SplitPolicy,
    build_split,
    check_copies_apart,
    check_patients_apart,
    seen_in_training,
)
from densenet_flax.data.splits.split_config import LEAKY, SplitConfig

Subsets: TypeAlias = dict[str, Rows]  # the rows of each subset, ascending
_ONE_EACH = f" and needs at least {len(SUBSETS)}, one each to train, validate and test"


def make_split(dataset: Dataset, config: SplitConfig) -> Split:
    """Splits a data set and checks that no patient is in two subsets, or raises `InputError`."""
    policies: dict[str, Callable[[Dataset, SplitConfig], Subsets]] = {
        "patient": _split_by_patient,
        "kfold": _split_into_folds,
        "official": _split_by_official_fold,
        "given": _split_as_stated,
        LEAKY: _split_by_image,
    }
    config = _resolve_policy(dataset, config)
    rows = policies[config.policy](dataset, config)
    for subset in SUBSETS:
        if subset == "test" and dataset.awaits_test and not len(rows[subset]):
            continue
        present = np.isin(np.arange(len(dataset.class_names)), dataset.labels[rows[subset]])
        if not present.all():
            raise InputError(
                f"the {subset} subset of {dataset.name} has no image of class "
                f"{dataset.class_names[int(present.argmin())]!r}; choose another fold, policy or "
                "group, or add images"
            )
    split = build_split(dataset, rows, _record(config, dataset))
    check_patients_apart(split, dataset)
    if not config.allow_copies:
        check_copies_apart(split, dataset)
    if config.policy == "official":
        logging.info(
            "official fold %d: %.0f %% of the test images have a block of the same case in "
            "training",
            config.fold,
            100 * seen_in_training(split, next(iter(dataset.groups.values()))).mean(),
        )
    return split


def _resolve_policy(dataset: Dataset, config: SplitConfig) -> SplitConfig:
    """Decides what 'auto' is; InputError if a policy would ignore subsets that the data states."""
    stated = dataset.provenance.subsets_from
    uses_stated = bool(stated) and not config.ignore_given
    if config.policy == "auto":
        return dataclasses.replace(config, policy="given" if uses_stated else "patient")
    if uses_stated and config.policy not in ("given", "official"):
        raise InputError(
            f"config.split.policy={config.policy!r}: {dataset.name} states its subsets ({stated}); "
            "set config.split.policy='given' to use them, or config.split.ignore_given=True to "
            "make a new split"
        )
    return config


def _record(config: SplitConfig, dataset: Dataset) -> SplitPolicy:
    """Keeps of a configuration what its policy uses."""
    official = config.policy == "official"
    has_folds = config.policy == "kfold" or (config.policy == "given" and _stated_folds(dataset))
    return SplitPolicy(
        kind=config.policy,
        # The published test images have no id in common with training; by case they do.
        group="id82" if official else config.group,
        validation_group=config.group if official else None,
        fold=config.fold if official or has_folds else None,
        folds=config.folds if has_folds else None,
        seed=config.seed,
        test_fraction=config.test_fraction if config.policy in ("patient", LEAKY) else None,
        validation_fraction=config.validation_fraction,
        mixed_patients=config.mixed_patients if config.policy != LEAKY else None,
        patient_disjoint=config.policy != LEAKY,
    )


def _split_by_patient(dataset: Dataset, config: SplitConfig) -> Subsets:
    groups = dataset.patients(config.group)
    rng = np.random.default_rng(config.seed)
    members: dict[str, list[str]] = {subset: [] for subset in SUBSETS}
    shortage = _ONE_EACH + "; add patients or choose a finer group"
    for stratum in _strata(dataset, config, len(SUBSETS), shortage):
        shuffled = rng.permutation(stratum.patients).tolist()
        # Shares of each class's patients, so that the classes are as frequent in each subset.
        for subset, part in _cut(len(shuffled), config, stratum.covers).items():
            members[subset] += shuffled[part]
    return {subset: np.flatnonzero(np.isin(groups, members[subset])) for subset in SUBSETS}


def _split_by_image(dataset: Dataset, config: SplitConfig) -> Subsets:
    rng = np.random.default_rng(config.seed)
    chosen: dict[str, list[np.ndarray]] = {subset: [] for subset in SUBSETS}
    # Per class, as the policies by patient: only what is dealt differs.
    for label, name in enumerate(dataset.class_names):
        rows = rng.permutation(np.flatnonzero(dataset.labels == label))
        if len(rows) < len(SUBSETS):
            raise InputError(
                f"class {name!r} of {dataset.name} has {len(rows)} image(s){_ONE_EACH}; add images"
            )
        for subset, part in _cut(len(rows), config).items():
            chosen[subset].append(rows[part])
    return {subset: np.sort(np.concatenate(chosen[subset])) for subset in SUBSETS}


def _split_into_folds(dataset: Dataset, config: SplitConfig) -> Subsets:
    """Deals the patients of each class to the folds and tests on one of them.

    Patients with many images come first, each goes to the fold with the fewest images so far, and
    ties are in the order of the seed: the folds are balanced in images and classes.
    """
    groups = dataset.patients(config.group)
    images = dict(zip(*np.unique(groups, return_counts=True), strict=True))
    rng = np.random.default_rng(config.seed)
    tested: list[str] = []
    # Two folds still need three patients: one each to train, validate and test.
    least = max(config.folds, len(SUBSETS))
    advice = "choose fewer folds or a finer group"
    shortage = f", too few for config.split.folds={config.folds}; {advice}"
    for stratum in _strata(dataset, config, least, shortage):
        # Each class begins with empty folds; that balances the classes in every fold.
        images_of_fold = np.zeros(config.folds, int)
        shuffled = rng.permutation(stratum.patients).tolist()
        for patient in sorted(shuffled, key=lambda patient: -images[patient]):
            fold = int(images_of_fold.argmin())
            images_of_fold[fold] += images[patient]
            if fold == config.fold - 1:
                tested.append(patient)
    return _split_fold(dataset, config, np.isin(groups, tested))


def _split_by_official_fold(dataset: Dataset, config: SplitConfig) -> Subsets:
    """Tests on the images of a published fold; validation is taken out of its training images.

    The test subset is the published one to the image, so its patients are, also in the
    report, those of 'id82' as in the protocol; validation is drawn by `config.group`. By 'case70'
    the official folds leak.
    """
    tested = test_ids(config.fold)
    if "id82" not in dataset.groups:
        raise InputError(
            f"config.split.policy='official' is for BreakHis, not for {dataset.name}; choose "
            "another policy"
        )
    ids = dataset.patients("id82")
    unknown = sorted(set(ids.tolist()) - IDS.keys())
    if unknown:
        raise InputError(
            f"config.split.policy='official': {unknown[0]} of {dataset.name} is not one of "
            "BreakHis's 82 ids; choose another policy for these images"
        )
    return _split_fold(dataset, config, np.isin(ids, list(tested)))


def _split_fold(dataset: Dataset, config: SplitConfig, in_test: Bool[np.ndarray, "N"]) -> Subsets:
    """Tests on these rows, and takes validation out of the others."""
    train, test = np.flatnonzero(~in_test), np.flatnonzero(in_test)
    # The fold is part of the seed: folds that share training patients validate on others of them.
    return _take_validation(dataset, config, train, [config.seed, config.fold]) | {"test": test}


def _split_as_stated(dataset: Dataset, config: SplitConfig) -> Subsets:
    """Takes the subsets of the column `split` of a CSV, or the splits of TFDS.

    If the data states no validation subset, one is drawn by patient from training.
    """
    stated = dataset.columns.get("split")
    if stated is None:
        raise InputError(
            f"config.split.policy='given': {dataset.name} does not state its subsets; choose "
            "another policy, or a CSV with a column 'split'"
        )
    if folds := _stated_folds(dataset):
        if others := sorted(set(stated.tolist()) - set(folds)):
            # As all that is not tested trains, images for test would train.
            raise InputError(
                f"config.split.policy='given': {dataset.name} states folds ({', '.join(folds)}) "
                f"and also {', '.join(others)}; leave out the images of one or the other"
            )
        if len(folds) != config.folds or not 1 <= config.fold <= len(folds):
            raise InputError(
                f"config.split.folds={config.folds}, fold={config.fold}: {dataset.name} states "
                f"{len(folds)} folds ({', '.join(folds)}); set config.split.folds={len(folds)}, "
                "and config.split.fold from 1 to that number"
            )
        return _split_fold(dataset, config, stated == folds[config.fold - 1])
    if config.fold != 1:
        raise InputError(
            f"config.split.fold={config.fold}: {dataset.name} states subsets and no folds"
        )
    rows = {subset: np.flatnonzero(stated == subset) for subset in SUBSETS}
    for subset in ("train", "test"):
        if not len(rows[subset]) and not (subset == "test" and dataset.awaits_test):
            raise InputError(
                f"config.split.policy='given': {dataset.name} has no images for {subset}, only "
                f"for {', '.join(sorted(set(stated.tolist())))}"
            )
    if not len(rows["validation"]):
        rows |= _take_validation(dataset, config, rows["train"], [config.seed])
    return rows


def _stated_folds(dataset: Dataset) -> list[str]:
    stated = set(dataset.columns.get("split", np.array([], str)).tolist())
    folds = [name for name in stated if name.startswith("fold_")]
    return sorted(folds, key=lambda name: int(name.removeprefix("fold_")))


def _take_validation(
    dataset: Dataset, config: SplitConfig, train: Rows, seed: list[int]
) -> Subsets:
    """Takes a share of the patients of each class out of training."""
    groups, rng = dataset.patients(config.group), np.random.default_rng(seed)
    chosen: list[str] = []
    shortage = " and needs at least 2, one to validate; choose a finer group"
    for patients, covers in _strata(dataset, config, 2, shortage, train):
        count = _share(config.validation_fraction, len(patients), int(covers), leave=1)
        chosen += rng.permutation(patients).tolist()[:count]
    validates = np.isin(groups[train], chosen)
    return {"train": train[~validates], "validation": train[validates]}


class _Stratum(NamedTuple):
    """Patients who are dealt to the subsets together."""

    patients: list[str]  # sorted
    covers: bool  # whether each subset needs one of them to have all classes


def _strata(
    dataset: Dataset, config: SplitConfig, least: int, shortage: str, rows: Rows | None = None
) -> list[_Stratum]:
    """Returns the patients of each class, each patient once, of these rows or of all.

    With fewer than `least` patients of a class it raises an error, whose end is `shortage`; unless
    as many have all classes, who are dealt together, and the others behind them.
    """
    groups, labels = dataset.patients(config.group), dataset.labels
    if rows is not None:
        groups, labels = groups[rows], labels[rows]
    # Sorted, because what a seed draws depends on the order of the patients.
    labels_of: dict[str, list[int]] = {}
    patients_with: Counter[int] = Counter()
    for patient, label in sorted(set(zip(groups.tolist(), labels.tolist(), strict=True))):
        labels_of.setdefault(patient, []).append(label)
        patients_with[label] += 1
    mixed = [patient for patient, labels_seen in labels_of.items() if len(labels_seen) > 1]
    if mixed and config.mixed_patients == "error":
        raise InputError(
            f"patient {mixed[0]} of {dataset.name} has images of more than one class; correct the "
            "labels, choose a finer group, or set config.split.mixed_patients='rarest'"
        )
    present = [name for label, name in enumerate(dataset.class_names) if patients_with[label]]
    if len(present) < 2:
        raise InputError(
            f"{dataset.name} has images of one class only ({', '.join(present) or 'none'}); "
            f"expected {' and '.join(dataset.class_names)}: add the other one"
        )
    members_of = _count_for_rarest(labels_of, patients_with)
    if any(len(members_of[label]) < least for label in patients_with):
        members_of = _count_evenly(labels_of)
        complete = [patient for patient, seen in labels_of.items() if len(seen) == len(present)]
        is_short = any(len(members_of[label]) < least for label in patients_with)
        if is_short and len(complete) >= least and len(present) == len(dataset.class_names):
            others = sorted(labels_of.keys() - complete)
            return [_Stratum(complete, covers=True), _Stratum(others, covers=False)]
    patients = {name: members_of.get(label, []) for label, name in enumerate(dataset.class_names)}
    noun = "patient(s)" if rows is None else "training patient(s)"
    for name, members in patients.items():
        if len(members) < least:
            number = f"{len(members)} {noun} by {config.group}"
            raise InputError(f"class {name!r} of {dataset.name} has {number}{shortage}")
    return [_Stratum(members, covers=True) for members in patients.values()]


def _count_for_rarest(
    labels_of: Mapping[str, Sequence[int]], patients_with: Mapping[int, int]
) -> dict[int, list[str]]:
    """Returns the patients that count for each class: the rarest of theirs can spare them least.

    Among equally rare ones it is the class that has the fewest so far.
    """
    members_of: dict[int, list[str]] = defaultdict(list)
    for patient, labels in labels_of.items():
        rarest = min(labels, key=lambda n: (patients_with[n], len(members_of[n]), n))
        members_of[rarest].append(patient)
    return members_of


def _count_evenly(labels_of: Mapping[str, Sequence[int]]) -> dict[int, list[str]]:
    """Returns the patients that count for each class, so that the smallest number is large.

    Where (nearly) all patients have all classes, the rarest class would take them all and leave the
    others none. Here the class with the fewest takes the next patient, first those who could count
    for few others.
    """
    members_of: dict[int, list[str]] = defaultdict(list)
    mixed_with: dict[int, list[str]] = defaultdict(list)
    for patient, labels in sorted(labels_of.items(), key=lambda item: (len(item[1]), item[0])):
        if len(labels) == 1:
            members_of[labels[0]].append(patient)
        else:
            for label in labels:
                mixed_with[label].append(patient)
    left = {label: iter(patients) for label, patients in mixed_with.items()}
    taken: set[str] = set()
    while left:
        label = min(left, key=lambda n: (len(members_of[n]), n))
        free = next((name for name in left[label] if name not in taken), None)
        if free is None:
            del left[label]
        else:
            taken.add(free)
            members_of[label].append(free)
    for patients in members_of.values():
        patients.sort()
    return members_of


def _cut(count: int, config: SplitConfig, covers: bool = True) -> dict[str, slice]:
    """Returns where to cut `count` shuffled patients or rows of a class into subsets."""
    tests = _share(config.test_fraction, count, int(covers), leave=2)
    validations = _share(config.validation_fraction, count - tests, int(covers), leave=1)
    return {
        "train": slice(tests + validations, None),
        "validation": slice(tests, tests + validations),
        "test": slice(tests),
    }


def _share(fraction: float, count: int, least: int, *, leave: int) -> int:
    """Returns how many of `count` make up a fraction: at least `least`, and `leave` others stay."""
    return max(0, min(max(least, round(fraction * count)), count - leave))
