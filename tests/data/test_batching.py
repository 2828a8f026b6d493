import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from densenet_flax.common.errors import InputError
from densenet_flax.data.batching import (
    EpochBatches,
    check_batch_size,
    epoch_order,
    split_into_batches,
)


def test_epoch_order_is_a_pure_function():
    np.testing.assert_array_equal(np.sort(epoch_order(50, 0, 0)), np.arange(50))
    np.testing.assert_array_equal(epoch_order(50, 0, 3), epoch_order(50, 0, 3))
    orders = {tuple(epoch_order(50, seed, epoch)) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9


@given(count=st.integers(0, 40), size=st.integers(1, 12))
def test_every_example_counts_exactly_once(count, size):
    ids = np.random.default_rng(count).permutation(100)[:count]
    total = np.zeros(100)
    for batch, weight in split_into_batches(ids, size):
        assert batch.shape == weight.shape == (size,)
        assert batch.dtype == np.int32 and weight.dtype == np.float32
        assert set(batch) <= set(ids)
        np.add.at(total, batch, weight)
    np.testing.assert_array_equal(total, np.isin(np.arange(100), ids))


def test_invalid_batch_sizes():
    check_batch_size(16, 16)
    with pytest.raises(InputError, match="larger than the 16 training images"):
        check_batch_size(16, 17)
    with pytest.raises(InputError, match="at least 1"):
        check_batch_size(16, 0)


@given(
    size=st.integers(1, 20), batch=st.integers(1, 7), start=st.integers(0, 12), n=st.integers(0, 12)
)
def test_batches_over_several_epochs_are_those_of_each(size, batch, start, n):
    def order(number):
        ids = epoch_order(size, 5, number)
        return ids, ids + 100 * number

    straight = [
        (epoch, *b) for epoch in range(30) for b in split_into_batches(order(epoch)[0], batch)
    ]
    batches = EpochBatches(order, size, batch, start, start + n)
    assert len(batches) == n
    # In any order, as threads that read ahead ask for them.
    for index in np.random.default_rng(n).permutation(n):
        epoch, ids, weight = straight[start + index]
        rows = batches[index]
        np.testing.assert_array_equal(rows.ids, ids)
        np.testing.assert_array_equal(rows.weight, weight)
        np.testing.assert_array_equal(rows.views, ids + 100 * epoch)
    with pytest.raises(IndexError):
        batches[n]
