import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from densenet_flax.layers import conv3x3


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
