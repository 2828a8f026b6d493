"""Pooling by slices, against windows."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from densenet_flax.kernels.pooling import (
    avg_pool,
    avg_pool_conv1x1,
    conv1x1_avg_pool,
    max_pool,
    max_pool_by_windows,
)
from tests.kernels.comparison import assert_same_values_and_gradients, draw
from tests.kernels.test_convolution import xla_convolution

plain_avg_pool = functools.partial(nn.avg_pool, window_shape=(2, 2), strides=(2, 2))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("size", [(4, 6), (7, 5), (2, 3)])
def test_avg_pool(size, dtype):
    assert_same_values_and_gradients(avg_pool, plain_avg_pool, draw((2, *size, 3), dtype))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("size", [(4, 6), (7, 5), (2, 3)])
@pytest.mark.parametrize("ours", [conv1x1_avg_pool, avg_pool_conv1x1])
def test_pooling_first_is_the_same_as_convolving_first(ours, size, dtype):
    plain = lambda x, kernel: plain_avg_pool(xla_convolution(x, kernel))  # noqa: E731
    x, kernel = draw((2, *size, 6), dtype), draw((1, 1, 6, 3), dtype, seed=1)
    assert_same_values_and_gradients(ours, plain, x, kernel)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("size", [(4, 6), (7, 5), (1, 2)])
def test_max_pool_to_the_bit(size, dtype):
    """Also of -0, infinity and NaN, which the order of bits could misplace."""
    x = jnp.maximum(draw((2, *size, 3), dtype), 0)
    x = x.at[0, 0, 0].set(-0.0).at[0, -1, -1, 0].set(jnp.inf).at[1, 0, 0, 0].set(jnp.nan)
    ours, ours_vjp = jax.vjp(max_pool, x)
    expected, expected_vjp = jax.vjp(max_pool_by_windows, x)
    grad = draw(ours.shape, dtype, seed=1)
    assert ours.dtype == x.dtype
    np.testing.assert_array_equal(np.float32(ours), np.float32(expected))
    np.testing.assert_array_equal(np.float32(ours_vjp(grad)[0]), np.float32(expected_vjp(grad)[0]))
