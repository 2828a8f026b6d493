"""The order of an epoch, and its batches."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Float32, Int, Int32

from densenet_flax.common.errors import InputError


def epoch_order(n: int, seed: int, epoch: int) -> Int[np.ndarray, "N"]:
    """Returns the order of `n` examples in an epoch, counted from 0, of a run with this seed."""
    # Nothing but the arguments decides it, so that a resumed run needs no state.
    return np.random.default_rng(np.random.SeedSequence([seed, epoch])).permutation(n)


def check_batch_size(n_train: int, batch_size: int) -> None:
    """Raises an `InputError` for a size less than 1 or more than the number of training images."""
    if batch_size < 1:
        raise InputError(f"batch_size={batch_size}: expected at least 1")
    if batch_size > n_train:
        raise InputError(
            f"batch_size={batch_size} is larger than the {n_train} training images; choose at most "
            f"{n_train}"
        )


def split_into_batches(
    ids: Int[np.ndarray, "N"], batch_size: int
) -> Iterator[tuple[Int32[np.ndarray, "B"], Float32[np.ndarray, "B"]]]:
    """Yields ids and weights of batches of one size; the last is padded with ids of weight 0."""
    # One size, so that the step is compiled once; weights, so that sums count each example once.
    for start in range(0, len(ids), batch_size):
        batch = np.asarray(ids[start : start + batch_size], np.int32)
        weight = (np.arange(batch_size) < len(batch)).astype(np.float32)
        padding = np.repeat(batch[:1], batch_size - len(batch))
        yield np.concatenate([batch, padding]), weight


class BatchRows(NamedTuple):
    """Which examples are in a batch: row numbers, weights, and views if images are augmented."""

    ids: Int32[np.ndarray, "B"]
    weight: Float32[np.ndarray, "B"]
    views: Int[np.ndarray, "B"] | None = None


# The examples of an epoch, given its number, in order: row numbers and their views.
EpochOrder: TypeAlias = Callable[[int], tuple[Int[np.ndarray, "N"], Int[np.ndarray, "N"] | None]]


class EpochBatches(Sequence[BatchRows]):
    """Batches of successive epochs, each made when it is indexed.

    They can be read ahead over the end of an epoch, from any thread, and no more than two epochs
    are in memory. Each epoch ends with a padded batch, as in `split_into_batches`.
    """

    def __init__(
        self, order: EpochOrder, size: int, batch_size: int, start: int = 0, stop: int | None = None
    ):
        """Prepares the batches from `start` up to `stop`, both counted from the first epoch.

        Args:
          order: a pure function.
          size: examples in an epoch.
          batch_size: examples in a batch.
          start: number of the first batch.
          stop: number of the batch after the last; by default the end of the first epoch.
        """
        self.batch_size = batch_size
        self._order, self._per_epoch = order, -(-size // batch_size)
        self._numbers = range(start, self._per_epoch if stop is None else stop)
        # By the parity of their numbers: threads that read ahead may be one epoch further.
        self._epochs: list[tuple[int, list[BatchRows]]] = [(-1, []), (-1, [])]

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index: int) -> BatchRows:  # type: ignore[override]
        """The batch at an index from 0, beginning with batch `start`."""
        number, batch = divmod(self._numbers[index], self._per_epoch)
        known, batches = self._epochs[number % 2]
        if known != number:
            ids, views = self._order(number)
            positions = split_into_batches(np.arange(len(ids)), self.batch_size)
            batches = [
                BatchRows(np.asarray(ids[p], np.int32), weight, None if views is None else views[p])
                for p, weight in positions
            ]
            self._epochs[number % 2] = number, batches
        return batches[batch]
