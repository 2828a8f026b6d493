import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax

from densenet_flax.models.layers import average_pool, conv3x3, max_pool_of_relu


def reference(x, kernel):
    return lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


@pytest.mark.parametrize("shape", [(2, 7, 7, 12), (1, 4, 9, 5), (3, 1, 2, 4)])
def test_the_convolution_and_its_gradients_are_xlas(shape):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=shape), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(3, 3, shape[-1], 6)), jnp.float32)
    expected, expected_backward = jax.vjp(reference, x, kernel)
    found, backward = jax.vjp(conv3x3, x, kernel)
    gradient = jnp.asarray(rng.normal(size=expected.shape), jnp.float32)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(backward(gradient), expected_backward(gradient), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("size", [(4, 6), (7, 5), (2, 3)])
def test_average_pool_and_its_gradient(size, dtype):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2, *size, 3)), dtype)
    theirs = lambda x: nn.avg_pool(x, (2, 2), strides=(2, 2))  # noqa: E731
    y, back = jax.vjp(average_pool, x)
    wanted, wanted_back = jax.vjp(theirs, x)
    gradient = jnp.asarray(rng.normal(size=y.shape), dtype)
    assert y.dtype == x.dtype
    close = functools.partial(np.testing.assert_allclose, rtol=1e-6 if dtype == "float32" else 0.02)
    close(np.float32(y), np.float32(wanted), atol=1e-2 if dtype == "bfloat16" else 1e-7)
    close(np.float32(back(gradient)[0]), np.float32(wanted_back(gradient)[0]))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("size", [(4, 6), (7, 5), (1, 2)])
def test_max_pool_and_its_gradient(size, dtype):
    rng = np.random.default_rng(0)
    x = jnp.maximum(jnp.asarray(rng.normal(size=(2, *size, 3)), dtype), 0)
    x = x.at[0, 0, 0].set(-0.0).at[0, -1, -1, 0].set(jnp.inf).at[1, 0, 0, 0].set(jnp.nan)
    padding = ((1, 1), (1, 1))
    theirs = lambda x: nn.max_pool(x, (3, 3), strides=(2, 2), padding=padding)  # noqa: E731
    y, back = jax.vjp(max_pool_of_relu, x)
    wanted, wanted_back = jax.vjp(theirs, x)
    gradient = jnp.asarray(rng.normal(size=y.shape), dtype)
    assert y.dtype == x.dtype
    np.testing.assert_array_equal(np.float32(y), np.float32(wanted))
    np.testing.assert_array_equal(
        np.float32(back(gradient)[0]), np.float32(wanted_back(gradient)[0])
    )
