"""Who trains, validates and tests: decided by patient, kept as a file, checked at each load."""

import dataclasses
import hashlib
import json
import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from absl import logging

from densenet_flax.common.errors import InputError
from densenet_flax.storage.atomic import write_text

if TYPE_CHECKING:
    from densenet_flax.data.dataset import Dataset

SIDES = ("train", "validation", "test")
LEAKY = "image"  # the kind of split that puts the patient of every test image into training
_FORMAT = 1


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """Which row of a data set is on which side, and by what rule.

    Attributes:
      train: rows to train on, ascending.
      validation: rows to choose by (early stopping, threshold, temperature).
      test: rows to judge by.
      files: the file name of every row, also of those on no side.
      policy: the rule: its kind, the group key, the seed, the fractions, and what else the
        kind needs.
      counts: images and patients of each class on each side.
    """

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    files: np.ndarray = dataclasses.field(repr=False)
    policy: Mapping[str, Any]
    counts: Mapping[str, Any]

    @property
    def hash(self) -> str:
        """SHA-256 of who is where; equal for equal splits, whatever rule they came from."""
        lines = sorted(f"{file}\t{side}\n" for file, side in self._sides().items())
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    @property
    def patient_disjoint(self) -> bool:
        """Whether it is known that no patient is on two sides; the report says so if not."""
        return self.policy.get("kind") != LEAKY and self.policy.get("patient_disjoint", True)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the split as JSON; a reader finds the old file or the new one, never half."""
        content = {
            "format": _FORMAT,
            "policy": dict(self.policy),
            "hash": self.hash,
            "counts": self.counts,
            "files": self._sides(),
        }
        write_text(Path(path), json.dumps(content, indent=1) + "\n")

    def _sides(self) -> dict[str, str]:
        return {str(self.files[row]): side for side in SIDES for row in getattr(self, side)}


def patient_split(
    dataset: "Dataset",
    *,
    group: str = "case70",
    test_fraction: float = 0.2,
    validation_fraction: float = 0.15,
    seed: int = 0,
    mixed_patients: str = "error",
) -> Split:
    """Splits by patient, each class for itself, so that every side has patients of each class.

    Patients are drawn class by class and not by scikit-learn's stratified split, which leaves a
    side without one of the classes when patients are few.

    Args:
      dataset: what to split.
      group: who counts as one patient; see `Dataset.patients`.
      test_fraction: share of the patients of each class to test on.
      validation_fraction: share of the *other* patients of each class to validate on.
      seed: same seed, same split.
      mixed_patients: see `patients_of_class`.

    Raises:
      InputError: a class has too few patients, there is only one class, a patient is in both, or
        a fraction is not between 0 and 1.
    """
    fractions = {"test_fraction": test_fraction, "validation_fraction": validation_fraction}
    check_numbers(seed=seed, **fractions)
    groups = dataset.patients(group)
    rng = np.random.default_rng(seed)
    members: dict[str, list[str]] = {side: [] for side in SIDES}
    for name, patients in patients_of_class(dataset, groups, mixed_patients=mixed_patients).items():
        if len(patients) < len(SIDES):
            raise InputError(
                f"class {name!r} of {dataset.name} has {len(patients)} patient(s) by {group} and "
                f"needs at least {len(SIDES)}, one each to train, validate and test; add patients "
                "or choose a finer group"
            )
        order = [patients[i] for i in rng.permutation(len(patients))]
        tests = share(test_fraction, len(order), leave=2)
        validations = share(validation_fraction, len(order) - tests, leave=1)
        members["test"] += order[:tests]
        members["validation"] += order[tests : tests + validations]
        members["train"] += order[tests + validations :]
    rows = {side: np.flatnonzero(np.isin(groups, members[side])) for side in SIDES}
    policy = {"kind": "patient", "group": group, "seed": seed, **fractions}
    policy["mixed_patients"] = mixed_patients
    return build_split(dataset, rows, policy)


def load_split(path: str | os.PathLike[str], dataset: "Dataset") -> Split:
    """Reads a split and asserts that it fits the data set and keeps patients apart.

    Raises:
      InputError: the file is missing or damaged, was edited by hand, does not know each file of
        the data set exactly once, or has a patient on two sides.
    """
    try:
        content = json.loads(Path(path).read_text("utf-8"), object_pairs_hook=_no_repeats)
        assigned, policy, stated = content["files"], content["policy"], content["hash"]
        known = content["format"] == _FORMAT and set(assigned.values()) <= set(SIDES)
        group = policy["group"]
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such split file") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path}: not a whole split file ({error}); make the split anew"
        ) from error
    if not known:
        raise InputError(f"{path}: not a split file of format {_FORMAT}; make the split anew")
    files = set(dataset.files.tolist())
    for unknown, where in ((assigned.keys() - files, "split"), (files - assigned.keys(), "data")):
        if unknown:
            raise InputError(
                f"{path}: does not fit {dataset.name}: {len(unknown)} file(s) only in the {where}, "
                f"such as {min(unknown)}; make the split anew for this data"
            )
    sides = np.array([assigned[file] for file in dataset.files.tolist()])
    if not isinstance(group, str):
        raise InputError(f"{path}: its group is {group!r}; make the split anew")
    split = build_split(dataset, {side: np.flatnonzero(sides == side) for side in SIDES}, policy)
    if split.hash != stated:
        raise InputError(
            f"{path}: its files do not match its hash, so it was changed after it was made; "
            "restore it or make the split anew"
        )
    assert_sound(split, dataset)
    return split


def assert_sound(split: Split, dataset: "Dataset") -> None:
    """Raises `InputError` unless the split keeps apart whom its policy says it does.

    Only the kind 'image' is let through, with a warning: it is known to leak.
    """
    policy = split.policy
    if policy.get("kind") == LEAKY:
        groups = dataset.patients(policy["group"])
        logging.warning(
            "split.policy='image' leaks: %.0f %% of the test images are of a patient who is also "
            "in training, so the result says nothing about new patients",
            100 * relatives(split, groups).mean(),
        )
        return
    assert_disjoint(split, dataset.patients(policy["group"]))
    if "validation_group" in policy:
        nobody = np.zeros(0, split.test.dtype)
        without_test = dataclasses.replace(split, test=nobody)
        assert_disjoint(without_test, dataset.patients(policy["validation_group"]))


def assert_disjoint(split: Split, groups: np.ndarray) -> None:
    """Raises `InputError`, naming the patient, if someone is on two sides of the split."""
    owner: dict[str, str] = {}
    for side in SIDES:
        for patient in np.unique(groups[getattr(split, side)]).tolist():
            if patient in owner:
                raise InputError(
                    f"patient {patient} is in both {owner[patient]} and {side}: the split leaks; "
                    "make it anew by patient"
                )
            owner[patient] = side


def relatives(split: Split, groups: np.ndarray) -> np.ndarray:
    """For each test row, whether its patient also trains or validates."""
    known = groups[np.concatenate([split.train, split.validation])]
    return np.isin(groups[split.test], known)


def build_split(
    dataset: "Dataset", rows: Mapping[str, np.ndarray], policy: Mapping[str, Any]
) -> Split:
    """The split with these rows on its sides, counted."""
    groups = dataset.patients(policy["group"])
    counts = {
        side: {
            name: {
                "images": int((mine := index[dataset.labels[index] == label]).size),
                "patients": len(np.unique(groups[mine])),
            }
            for label, name in enumerate(dataset.class_names)
        }
        for side, index in rows.items()
    }
    known = {} if dataset.patients_known else {"patient_disjoint": False}
    return Split(**rows, files=dataset.files, policy={**policy, **known}, counts=counts)


def patients_of_class(
    dataset: "Dataset",
    groups: np.ndarray,
    rows: np.ndarray | None = None,
    *,
    mixed_patients: str = "error",
) -> dict[str, list[str]]:
    """The sorted patients of each class; refuses data that cannot be split at all.

    Args:
      dataset: whose labels to use.
      groups: the patient of each row of the data set.
      rows: the rows to look at; all by default.
      mixed_patients: what to do with a patient of several classes: 'error', or 'rarest' to count
        him for the one of his classes that has the fewest patients. All his images stay together.
    """
    if mixed_patients not in ("error", "rarest"):
        raise InputError(f"split.mixed_patients={mixed_patients!r}: expected 'error' or 'rarest'")
    rows = np.arange(len(groups)) if rows is None else rows
    pairs = sorted(set(zip(groups[rows].tolist(), dataset.labels[rows].tolist(), strict=True)))
    classes: dict[str, list[int]] = {}
    for patient, label in pairs:
        classes.setdefault(patient, []).append(label)
    both = [patient for patient, labels in classes.items() if len(labels) > 1]
    if both and mixed_patients == "error":
        raise InputError(
            f"patient {both[0]} of {dataset.name} has images of more than one class; correct the "
            "labels, choose a finer group, or set split.mixed_patients='rarest'"
        )
    sizes = Counter(label for _, label in pairs)
    patients: dict[str, list[str]] = {name: [] for name in dataset.class_names}
    for patient, labels in classes.items():
        label = min(labels, key=lambda label: (sizes[label], label))
        patients[dataset.class_names[label]].append(patient)
    present = [name for label, name in enumerate(dataset.class_names) if sizes[label]]
    if len(present) < 2:
        raise InputError(
            f"{dataset.name} has images of one class only ({', '.join(present) or 'none'}); "
            f"expected {' and '.join(dataset.class_names)}: add the other one"
        )
    return patients


def check_numbers(*, seed: int, **fractions: float) -> None:
    """Refuses a seed or a share that makes no sense, by the name of its key."""
    for key, value in fractions.items():
        if not 0 < value < 1:
            raise InputError(f"split.{key}={value}: expected a share between 0 and 1")
    if seed < 0:
        raise InputError(f"split.seed={seed}: expected 0 or a positive number")


def share(fraction: float, count: int, leave: int) -> int:
    """How many of `count` make up `fraction`: at least one, and `leave` others stay."""
    return min(max(1, round(fraction * count)), count - leave)


def _no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        twice = next(key for key, count in Counter(k for k, _ in pairs).items() if count > 1)
        raise ValueError(f"{twice} appears twice")
    return content
