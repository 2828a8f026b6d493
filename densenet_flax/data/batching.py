"""The order of an epoch, and its batches."""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float32, Int, Int32

from densenet_flax.common.errors import InputError


def epoch_order(n: int, seed: int, epoch: int) -> Int[np.ndarray, "N"]:
    """Returns the order of `n` examples in an epoch: a pure function, so resuming needs no state.

    Args:
      n: number of examples.
      seed: of the run.
      epoch: number of the epoch, from 0.
    """
    return np.random.default_rng(np.random.SeedSequence([seed, epoch])).permutation(n)


def check_batch_size(n_train: int, batch_size: int) -> None:
    """Rejects a batch size that no batch of training images could fill.

    Raises:
      InputError: it is less than 1 or more than the number of training images.
    """
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
    """Yields the ids and the weights of batches that all have the same size.

    The last batch is padded with its first id at weight 0, so that sums over weights count every
    example exactly once.
    """
    for start in range(0, len(ids), batch_size):
        batch = np.asarray(ids[start : start + batch_size], np.int32)
        padding = batch_size - len(batch)
        weight = np.ones(batch_size, np.float32)
        weight[len(batch) :] = 0
        yield np.concatenate([batch, np.repeat(batch[:1], padding)]), weight
