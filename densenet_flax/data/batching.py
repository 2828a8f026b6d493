"""The order of an epoch and the batches of it."""

from collections.abc import Iterator

import numpy as np

from densenet_flax.common.errors import InputError


def epoch_order(n: int, seed: int, epoch: int) -> np.ndarray:
    """The order of `n` examples in an epoch: a pure function, so resuming needs no state."""
    return np.random.default_rng(np.random.SeedSequence([seed, epoch])).permutation(n)


def check_batch_size(n_train: int, batch_size: int) -> None:
    """Refuses a batch size that no batch of training images could fill."""
    if batch_size < 1:
        raise InputError(f"batch_size={batch_size}: expected at least 1")
    if batch_size > n_train:
        raise InputError(
            f"batch_size={batch_size} is larger than the {n_train} training images; choose at most "
            f"{n_train}"
        )


def batches(ids: np.ndarray, batch_size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Cuts ids into batches of one size.

    Yields:
      (ids int32 [batch_size], weights float32 [batch_size]). The last batch is filled up with its
      first id at weight 0, so that sums over weights count every example exactly once.
    """
    for start in range(0, len(ids), batch_size):
        some = np.asarray(ids[start : start + batch_size], np.int32)
        padding = batch_size - len(some)
        weight = np.concatenate([np.ones(len(some), np.float32), np.zeros(padding, np.float32)])
        yield np.concatenate([some, np.repeat(some[:1], padding)]), weight
