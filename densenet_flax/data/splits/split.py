"""A split into training, validation and test images: kept as `split.json`, checked at each load."""

import dataclasses
import hashlib
import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from absl import logging
from jaxtyping import Bool, Int, Shaped

from densenet_flax.common.errors import InputError, errors_in
from densenet_flax.common.trees import JsonDict
from densenet_flax.data.dataset import Dataset
from densenet_flax.data.splits.split_config import LEAKY
from densenet_flax.storage.json_files import read_json_object, write_json_object

SUBSETS = ("train", "validation", "test")
Rows: TypeAlias = Int[np.ndarray, "rows"]  # row numbers of a data set

_FORMAT = 1
_ADVICE = "put it back or make a new split"


@dataclasses.dataclass(frozen=True)
class SplitPolicy:
    """The rule that made a split, as `split.json` and the report record it.

    What a rule does not use is None and not recorded.

    Attributes:
      kind: one of `split_config.POLICIES`.
      group: the key of `Dataset.groups` by which no patient is in two subsets.
      validation_group: under 'official' the key by which training and validation have no patient
        in common, which may be coarser than that of the protocol.
      fold: see `SplitConfig`, as for the rest.
      patient_disjoint: False if patients are known to be in several subsets, or are not known.
    """

    kind: str
    group: str
    validation_group: str | None = None
    fold: int | None = None
    folds: int | None = None
    seed: int | None = None
    test_fraction: float | None = None
    validation_fraction: float | None = None
    mixed_patients: str | None = None
    patient_disjoint: bool = True

    def to_dict(self) -> JsonDict:
        """Returns what the rule uses, in the form of `split.json`."""
        values = {key: value for key, value in vars(self).items() if value is not None}
        if self.patient_disjoint:
            del values["patient_disjoint"]
        return values

    @classmethod
    def from_dict(cls, values: JsonDict) -> "SplitPolicy":
        """Reads what `to_dict` returned; KeyError or TypeError if kind or group is not text."""
        for key in ("kind", "group"):
            if not isinstance(values[key], str):
                raise TypeError(f"its policy has the {key} {values[key]!r}")
        known = {field.name for field in dataclasses.fields(cls)}
        return cls(**{key: value for key, value in values.items() if key in known})


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """The rows of a data set in each subset, and the rule that put them there.

    Attributes:
      train: rows to train on, ascending.
      validation: rows to choose by (early stopping, threshold, temperature).
      test: rows to evaluate on.
      files: the file name of every row of the data set, also of those in no subset.
      policy: the rule.
      counts: for each subset and class the number of 'images' and of 'patients'.
    """

    train: Rows
    validation: Rows
    test: Rows
    files: Shaped[np.ndarray, "N"] = dataclasses.field(repr=False)
    policy: SplitPolicy
    counts: Mapping[str, Mapping[str, Mapping[str, int]]]

    @property
    def hash(self) -> str:
        """SHA-256 of which file is where: equal for equal splits, whatever rule made them."""
        return _digest(self._subset_of_file())

    @property
    def patient_disjoint(self) -> bool:
        """Whether it is known that no patient is in two subsets."""
        return self.policy.kind != LEAKY and self.policy.patient_disjoint

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the split as JSON; a reader sees the old file or the new one, never a part."""
        content = {
            "format": _FORMAT,
            "policy": self.policy.to_dict(),
            "hash": self.hash,
            "counts": self.counts,
            "files": self._subset_of_file(),
        }
        write_json_object(Path(path), content, indent=1)

    def _subset_of_file(self) -> dict[str, str]:
        return {str(self.files[row]): subset for subset in SUBSETS for row in getattr(self, subset)}


def build_split(dataset: Dataset, rows: Mapping[str, Rows], policy: SplitPolicy) -> Split:
    """Returns the split with these rows, ascending, in its subsets, and counts them."""
    groups = dataset.patients(policy.group)

    def count(rows: Rows) -> dict[str, int]:
        return {"images": len(rows), "patients": len(np.unique(groups[rows]))}

    counts = {
        subset: {
            name: count(rows[subset][dataset.labels[rows[subset]] == label])
            for label, name in enumerate(dataset.class_names)
        }
        for subset in SUBSETS
    }
    # Where each image counts as a patient, subsets with no patient in common prove nothing.
    if not dataset.patients_known:
        policy = dataclasses.replace(policy, patient_disjoint=False)
    return Split(**rows, files=dataset.files, policy=policy, counts=counts)


def load_split(path: str | os.PathLike[str], dataset: Dataset) -> Split:
    """Reads a split and checks that it fits the data set and keeps patients apart.

    Raises:
      InputError: the file is missing or damaged, was edited by hand, does not list each file of
        the data set exactly once, or has a patient in two subsets.
    """
    subset_of_file, policy, saved_hash = _read(path)
    # Sizes and patients could still fit after an edit; the hash says that all is as it was.
    if _digest(subset_of_file) != saved_hash:
        raise InputError(
            f"{path}: its files do not match its hash, so it was changed after it was made; "
            "restore it or make a new split"
        )
    if dataset.awaits_test and "test" not in subset_of_file.values():
        subset_of_file |= dict.fromkeys(_stated_test_files(dataset), "test")
    files = set(dataset.files.tolist())
    only_in = {"split": subset_of_file.keys() - files, "data": files - subset_of_file.keys()}
    for where, unknown in only_in.items():
        if unknown:
            raise InputError(
                f"{path}: does not fit {dataset.name}: {len(unknown)} file(s) only in the {where}, "
                f"such as {min(unknown)}; make a new split for this data"
            )
    subset_of_row = np.array([subset_of_file[file] for file in dataset.files.tolist()])
    rows = {subset: np.flatnonzero(subset_of_row == subset) for subset in SUBSETS}
    with errors_in(f"{path}: "):
        split = build_split(dataset, rows, policy)
        check_patients_apart(split, dataset)
    return split


def _stated_test_files(dataset: Dataset) -> list[str]:
    """The test images that were given after training, which `split.json` does not list."""
    return dataset.files[dataset.columns["split"] == "test"].tolist()


def _digest(subset_of_file: Mapping[str, str]) -> str:
    # Sorted, so that the order of the files on disk does not count.
    lines = sorted(f"{file}\t{subset}\n" for file, subset in subset_of_file.items())
    return hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


def _read(path: str | os.PathLike[str]) -> tuple[dict[str, str], SplitPolicy, str]:
    """Returns the subset of each file, the rule and the hash in a split file."""
    try:
        content = read_json_object(Path(path), _ADVICE, pairs_hook=_refuse_duplicates)
        subset_of_file, saved_hash = content["files"], content["hash"]
        policy = SplitPolicy.from_dict(content["policy"])
        known = content["format"] == _FORMAT and set(subset_of_file.values()) <= set(SUBSETS)
    except InputError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        message = f"{path}: not a complete split file ({error}); make a new split"
        raise InputError(message) from error
    if not known:
        raise InputError(f"{path}: not a split file of format {_FORMAT}; make a new split")
    return subset_of_file, policy, saved_hash


def _refuse_duplicates(pairs: list[tuple[str, Any]]) -> JsonDict:
    """Makes a dictionary of a JSON object; `json` itself would keep the last of equal keys."""
    key, count = Counter(key for key, _ in pairs).most_common(1)[0] if pairs else ("", 0)
    if count > 1:
        raise ValueError(f"{key} appears twice")
    return dict(pairs)


def check_patients_apart(split: Split, dataset: Dataset) -> None:
    """Raises `InputError` unless the split keeps patients apart as its policy says.

    The policy 'image' only causes a warning: it is known to leak.
    """
    groups = dataset.patients(split.policy.group)
    if split.policy.kind == LEAKY:
        logging.warning(
            "config.split.policy='image' leaks: %.0f %% of the test images are of a patient who is "
            "also in training, so the result says nothing about new patients",
            100 * seen_in_training(split, groups).mean(),
        )
        return
    try:
        assert_disjoint(split, groups)
    except InputError as error:
        if split.policy.kind != "given":
            raise
        advice = (
            "These subsets were given: leave the images of this patient out of one of them"
            if dataset.awaits_test
            else f"{dataset.name} states these subsets itself: set config.split.policy='patient' "
            "and config.split.ignore_given=True"
        )
        raise InputError(f"{error}. {advice}") from error
    if split.policy.validation_group is not None:
        # By this coarser key the published test images do have relatives in training.
        without_test = dataclasses.replace(split, test=split.test[:0])
        assert_disjoint(without_test, dataset.patients(split.policy.validation_group))


def assert_disjoint(split: Split, groups: Shaped[np.ndarray, "N"]) -> None:
    """Raises `InputError`, naming the patient, if one is in two subsets of the split."""
    subset_of_patient: dict[str, str] = {}
    for subset in SUBSETS:
        for patient in np.unique(groups[getattr(split, subset)]).tolist():
            if patient in subset_of_patient:
                raise InputError(
                    f"patient {patient} is in both {subset_of_patient[patient]} and {subset}: the "
                    "split leaks; make a new one by patient"
                )
            subset_of_patient[patient] = subset


def check_copies_apart(split: Split, dataset: Dataset) -> None:
    """Raises `InputError`, naming two files, if exact copies of an image are in several subsets."""
    if dataset.contents is None:
        return
    first: dict[str, tuple[str, int]] = {}
    copies: list[tuple[int, int]] = []
    for subset in SUBSETS:
        for row in getattr(split, subset).tolist():
            found, other = first.setdefault(str(dataset.contents[row]), (subset, row))
            if found != subset:
                copies.append((other, row))
    if copies:
        one, two = (split.files[row] for row in copies[0])
        raise InputError(
            f"{len(copies)} image(s) of {dataset.name} are exact copies of images in another "
            f"subset, such as {one} and {two}: the network would be tested on what it has seen; "
            "set config.data.duplicates='drop', or config.split.allow_copies=True to keep them"
        )


def seen_in_training(split: Split, groups: Shaped[np.ndarray, "N"]) -> Bool[np.ndarray, "test"]:
    """Returns for each test row whether its patient is also in training or validation."""
    seen = groups[np.concatenate([split.train, split.validation])]
    return np.isin(groups[split.test], seen)
