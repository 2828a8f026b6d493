"""The convolutions as products, against XLA's own."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from densenet_flax.kernels.convolution import conv1x1, conv3x3, stem_conv, stem_conv_by_squares
from tests.kernels.comparison import assert_same_values_and_gradients, draw


def xla_convolution(x, kernel):
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("shape", [(2, 7, 7, 12), (1, 4, 9, 5), (3, 1, 2, 4)])
def test_values_and_gradients_are_those_of_the_convolution(shape, size, dtype):
    x = draw(shape, dtype)
    kernel = draw((size, size, shape[-1], 6), dtype, seed=1)
    ours = conv1x1 if size == 1 else conv3x3
    assert_same_values_and_gradients(ours, xla_convolution, x, kernel)


def test_bfloat16_sums_in_float32():
    """The nine taps of a position are added before anything is rounded."""
    rng = np.random.default_rng(0)
    x = rng.integers(-8, 9, (2, 5, 6, 16)).astype(np.float32)
    kernel = rng.integers(-8, 9, (3, 3, 16, 4)).astype(np.float32)
    grad = rng.integers(-8, 9, (2, 5, 6, 4)).astype(np.float32)

    def run(dtype):
        y, vjp = jax.vjp(conv3x3, jnp.asarray(x, dtype), jnp.asarray(kernel, dtype))
        return jax.tree.map(np.float32, (y, vjp(jnp.asarray(grad, dtype))))

    exact = run(jnp.float32)  # small whole numbers: float32 does not round them
    rounded = jax.tree.map(lambda leaf: np.float32(leaf.astype(ml_dtypes.bfloat16)), exact)
    jax.tree.map(np.testing.assert_array_equal, run(jnp.bfloat16), rounded)


@pytest.mark.parametrize("size", [(8, 12), (14, 6), (7, 8), (9, 9)])
def test_the_stem_by_squares_is_the_stem(size):
    x, kernel = draw((2, *size, 3)), draw((7, 7, 3, 5), seed=1)
    assert_same_values_and_gradients(stem_conv_by_squares, stem_conv, x, kernel)
