"""Which training images an epoch shows: each once, or rare classes and patients more often.

An epoch is a pure function of (seed, epoch), so resuming needs no state. Where an image comes
several times in an epoch, each occurrence has a view number of its own, from which augmentation
makes another view.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int, Int32, Shaped

from densenet_flax.common.errors import InputError
from densenet_flax.data.batching import epoch_order
from densenet_flax.data.dataset import Dataset
from densenet_flax.data.splits.split import Rows

SAMPLINGS = ("shuffle", "class", "patient")
_DRAW = 1  # separates the random stream of these draws from that of `epoch_order`


@dataclasses.dataclass(frozen=True, eq=False)
class Sampler:
    """The epochs of a run, as `make_sampler` sets them up.

    Attributes:
      size: examples in an epoch, the same in each.
      repeats: the most often that one id can come in an epoch.
      seed: seed of the run.
      rows: all rows to train on.
      classes: for each class the rows of each of its patients; empty to show each row once.
    """

    size: int
    repeats: int
    seed: int
    rows: Rows = dataclasses.field(repr=False)
    classes: Sequence[Sequence[Rows]] = dataclasses.field(default=(), repr=False)

    def epoch(self, number: int) -> tuple[Int32[np.ndarray, "size"], Int32[np.ndarray, "size"]]:
        """Returns (ids, views) of an epoch, numbered in the whole run from 0, in their order.

        A view is `number * repeats` plus how often the id has come before in this epoch, so no two
        examples of a run share id and view.
        """
        ids = self.rows
        if self.classes:
            rng = np.random.default_rng(np.random.SeedSequence([self.seed, number, _DRAW]))
            # Every class is drawn as often as the largest, so the size divides evenly.
            size = self.size // len(self.classes)
            ids = np.concatenate([_draw_class(rng, patients, size) for patients in self.classes])
        ids = ids[epoch_order(self.size, self.seed, number)].astype(np.int32)
        return ids, (number * self.repeats + count_before(ids)).astype(np.int32)


def make_sampler(dataset: Dataset, rows: Rows, sampling: str, seed: int, *, group: str) -> Sampler:
    """Sets up the epochs of a run.

    Args:
      dataset: whose labels and patients to use.
      rows: the rows to train on.
      sampling: 'shuffle': each image once. 'class': every class as often as the largest, and each
        image of a class equally often, up to one; which images come once more is drawn in each
        epoch. 'patient': every class as often as the largest, shared equally, up to one, among its
        patients, and what a patient gets equally, up to one, among their images of that class.
      seed: seed of the run.
      group: the key of `Dataset.groups` that tells patients apart; used by 'patient' only.

    Raises:
      InputError: another `sampling`, or 'patient' where patients are not known.
    """
    if sampling not in SAMPLINGS:
        raise InputError(f"config.sampling={sampling!r}: expected one of {', '.join(SAMPLINGS)}")
    if sampling == "shuffle":
        return Sampler(len(rows), 1, seed, rows)
    if sampling == "patient" and not dataset.patients_known:
        raise InputError(
            f"config.sampling='patient': the patients of {dataset.name} are not known; choose "
            "'class', or give the patients"
        )
    labels = dataset.labels[rows]
    # 'class' is 'patient' with all images of a class as those of one patient.
    patients = np.zeros(len(rows), int)
    if sampling == "patient":
        patients = dataset.patients(group)[rows]
    classes = [
        [rows[mask & (patients == patient)] for patient in np.unique(patients[mask])]
        for mask in (labels == label for label in np.unique(labels))
    ]
    largest = max(sum(map(len, by_patient)) for by_patient in classes)
    # A patient's share is rounded up, and so is that of the patient's images.
    repeats = max(
        math.ceil(math.ceil(largest / len(by_patient)) / min(map(len, by_patient)))
        for by_patient in classes
    )
    return Sampler(largest * len(classes), repeats, seed, rows, classes)


def _draw_class(rng: np.random.Generator, patients: Sequence[Rows], size: int) -> Rows:
    """Shares `size` examples of a class among its patients, and among the images of each."""
    drawn = _draw_evenly(rng, np.arange(len(patients)), size)
    shares = np.bincount(drawn, minlength=len(patients)).tolist()
    return np.concatenate(
        [_draw_evenly(rng, images, share) for images, share in zip(patients, shares, strict=True)]
    )


def _draw_evenly(rng: np.random.Generator, members: Rows, size: int) -> Rows:
    """Draws each member equally often, up to one; which come once more is random."""
    whole, rest = divmod(size, len(members))
    return np.concatenate([np.tile(members, whole), rng.permutation(members)[:rest]])


def count_before(ids: Shaped[np.ndarray, "size"]) -> Int[np.ndarray, "size"]:
    """Returns for each position how often its id stands before it."""
    order = np.argsort(ids, kind="stable")
    # Sorted stably, equal ids stand in a row, in the order in which they occur.
    _, first, counts = np.unique(ids[order], return_index=True, return_counts=True)
    before = np.empty(len(ids), np.int64)
    before[order] = np.arange(len(ids)) - np.repeat(first, counts)
    return before
