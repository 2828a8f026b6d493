"""Which images an epoch shows and how often: each once, or rare classes and patients more often.

An epoch is a pure function of (seed, epoch), so resuming needs no state. Where an image comes
more than once, each turn has a number of its own, from which augmentation makes another view.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from densenet_flax.common.errors import InputError
from densenet_flax.data.batching import epoch_order
from densenet_flax.data.dataset import Dataset

SAMPLINGS = ("shuffle", "class", "patient")
_DRAW = 1  # sets these draws apart from those of the order


@dataclasses.dataclass(frozen=True, eq=False)
class Sampler:
    """The epochs of a run, as `make_sampler` sets them up.

    Attributes:
      size: examples in an epoch, the same in each.
      repeats: the most often that one id can come in an epoch.
      seed: of the run.
      classes: for each class the rows of each of its patients; () for each image once, in which
        case `rows` are shuffled.
      rows: all rows to train on.
    """

    size: int
    repeats: int
    seed: int
    rows: np.ndarray = dataclasses.field(repr=False)
    classes: Sequence[Sequence[np.ndarray]] = dataclasses.field(default=(), repr=False)

    def epoch(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """The examples of an epoch in their order.

        Args:
          number: of the epoch in the whole run, from 0.

        Returns:
          (ids int32 [size], views int32 [size]). A view is `number * repeats` plus how often the
          id has come before in this epoch, so no two examples of a run share id and view.
        """
        ids = self.rows
        if self.classes:
            rng = np.random.default_rng(np.random.SeedSequence([self.seed, number, _DRAW]))
            each = self.size // len(self.classes)
            ids = np.concatenate([_draw_class(rng, patients, each) for patients in self.classes])
        ids = ids[epoch_order(self.size, self.seed, number)].astype(np.int32)
        return ids, (number * self.repeats + _turns(ids)).astype(np.int32)


def make_sampler(dataset: Dataset, rows: np.ndarray, how: str, seed: int, *, group: str) -> Sampler:
    """Sets up the epochs of a run.

    Args:
      dataset: whose labels and patients to use.
      rows: the rows to train on.
      how: 'shuffle': each image once. 'class': every class as often as the largest; each image
        of a class comes equally often, up to one, and who comes once more is drawn anew each
        epoch. 'patient': the same number for every class, shared equally, up to one, among its
        patients, and what a patient gets equally, up to one, among his images of that class.
      seed: of the run.
      group: who is one patient; see `Dataset.patients`. Counts for 'patient' only.

    Raises:
      InputError: another `how`, or patients are wanted and not known.
    """
    if how not in SAMPLINGS:
        raise InputError(f"config.sampling={how!r}: expected one of {', '.join(SAMPLINGS)}")
    if how == "shuffle":
        return Sampler(len(rows), 1, seed, rows)
    if how == "patient" and not dataset.patients_known:
        raise InputError(
            f"config.sampling='patient': nothing says whose the images of {dataset.name} are; "
            "choose 'class', or say who the patients are"
        )
    labels = dataset.labels[rows]
    owners = dataset.patients(group)[rows] if how == "patient" else np.zeros(len(rows), int)
    classes = []
    for label in np.unique(labels):
        mine = labels == label
        classes.append([rows[mine & (owners == owner)] for owner in np.unique(owners[mine])])
    each = max(sum(map(len, patients)) for patients in classes)
    repeats = max(
        _at_most(_at_most(each, len(patients)), len(images))
        for patients in classes
        for images in patients
    )
    return Sampler(each * len(classes), repeats, seed, rows, classes)


def _draw_class(rng: np.random.Generator, patients: Sequence[np.ndarray], count: int) -> np.ndarray:
    turns = np.bincount(_draw(rng, np.arange(len(patients)), count), minlength=len(patients))
    return np.concatenate(
        [_draw(rng, images, turn) for images, turn in zip(patients, turns, strict=True)]
    )


def _draw(rng: np.random.Generator, members: np.ndarray, count: int) -> np.ndarray:
    """`count` members: all of them as often as goes, and for the rest some, none of them twice."""
    whole, rest = divmod(int(count), len(members))
    return np.concatenate([np.tile(members, whole), rng.permutation(members)[:rest]])


def _at_most(count: int, members: int) -> int:
    return -(-count // members)


def _turns(ids: np.ndarray) -> np.ndarray:
    """For each place how often its id stands before it."""
    order = np.argsort(ids, kind="stable")
    _, first, counts = np.unique(ids[order], return_index=True, return_counts=True)
    turns = np.empty(len(ids), np.int64)
    turns[order] = np.arange(len(ids)) - np.repeat(first, counts)
    return turns
