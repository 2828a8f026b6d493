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

from densenet_flax.errors import InputError
from densenet_flax.files import write_text

if TYPE_CHECKING:
    from densenet_flax.data.source import Dataset

SIDES = ("train", "validation", "test")
_FORMAT = 1


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """Which row of a data set is on which side, and by what rule.

    Attributes:
      train: rows to train on, ascending.
      validation: rows to choose by (early stopping, threshold, temperature).
      test: rows to judge by.
      files: the file name of every row, also of those on no side.
      policy: the rule: its kind, the group key, the seed, the fractions.
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
) -> Split:
    """Splits by patient, each class for itself, so that every side has patients of each class.

    Patients are drawn class by class and not by scikit-learn's stratified split, which leaves a
    side without one of the classes when patients are few.

    Args:
      dataset: what to split.
      group: who counts as one patient: 'case70', 'slide81' or 'id82'.
      test_fraction: share of the patients of each class to test on.
      validation_fraction: share of the *other* patients of each class to validate on.
      seed: same seed, same split.

    Raises:
      InputError: a class has too few patients, there is only one class, a patient is in both, or
        a fraction is not between 0 and 1.
    """
    fractions = {"test_fraction": test_fraction, "validation_fraction": validation_fraction}
    for key, value in fractions.items():
        if not 0 < value < 1:
            raise InputError(f"split.{key}={value}: expected a share between 0 and 1")
    if seed < 0:
        raise InputError(f"split.seed={seed}: expected 0 or a positive number")
    groups = dataset.patients(group)
    rng = np.random.default_rng(seed)
    members: dict[str, list[str]] = {side: [] for side in SIDES}
    for name, patients in _patients_of_class(dataset, groups).items():
        if len(patients) < len(SIDES):
            raise InputError(
                f"class {name!r} of {dataset.name} has {len(patients)} patient(s) by {group} and "
                f"needs at least {len(SIDES)}, one each to train, validate and test; add patients "
                "or choose a finer group"
            )
        order = [patients[i] for i in rng.permutation(len(patients))]
        tests = _share(test_fraction, len(order), leave=2)
        validations = _share(validation_fraction, len(order) - tests, leave=1)
        members["test"] += order[:tests]
        members["validation"] += order[tests : tests + validations]
        members["train"] += order[tests + validations :]
    rows = {side: np.flatnonzero(np.isin(groups, members[side])) for side in SIDES}
    policy = {"kind": "patient", "group": group, "seed": seed, **fractions}
    return _make_split(dataset, rows, policy)


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
    split = _make_split(dataset, {side: np.flatnonzero(sides == side) for side in SIDES}, policy)
    if split.hash != stated:
        raise InputError(
            f"{path}: its files do not match its hash, so it was changed after it was made; "
            "restore it or make the split anew"
        )
    assert_disjoint(split, dataset.patients(group))
    return split


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


def _make_split(
    dataset: "Dataset", rows: dict[str, np.ndarray], policy: Mapping[str, Any]
) -> Split:
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
    return Split(**rows, files=dataset.files, policy=policy, counts=counts)


def _patients_of_class(dataset: "Dataset", groups: np.ndarray) -> dict[str, list[str]]:
    """The sorted patients of each class; refuses data that cannot be split at all."""
    pairs = sorted(set(zip(groups.tolist(), dataset.labels.tolist(), strict=True)))
    both = [patient for patient, count in Counter(p for p, _ in pairs).items() if count > 1]
    if both:
        raise InputError(
            f"patient {both[0]} of {dataset.name} has images of more than one class; correct the "
            "labels, or choose a finer group"
        )
    patients: dict[str, list[str]] = {name: [] for name in dataset.class_names}
    for patient, label in pairs:
        patients[dataset.class_names[label]].append(patient)
    present = [name for name, some in patients.items() if some]
    if len(present) < 2:
        raise InputError(
            f"{dataset.name} has images of one class only ({', '.join(present) or 'none'}); "
            f"expected {' and '.join(dataset.class_names)}: add the other one"
        )
    return patients


def _share(fraction: float, count: int, leave: int) -> int:
    """How many of `count` make up `fraction`: at least one, and `leave` others stay."""
    return min(max(1, round(fraction * count)), count - leave)


def _no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        twice = next(key for key, count in Counter(k for k, _ in pairs).items() if count > 1)
        raise ValueError(f"{twice} appears twice")
    return content
