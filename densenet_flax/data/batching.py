"""The order of an epoch, and its batches."""

from collections.abc import Iterator

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
