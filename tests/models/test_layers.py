"""Batch normalization with the kernels of a device."""

import jax.numpy as jnp
import numpy as np
import pytest

from densenet_flax.kernels.device_kernels import KERNELS
from densenet_flax.models.layers import BatchNorm


@pytest.mark.parametrize("implementation", KERNELS)
def test_batch_statistics_of_the_last_channels_keep_their_digits(implementation):
    """The running means that one-pass statistics are shifted by are those of these channels."""
    x = np.random.default_rng(0).normal(1e4, 1, (8, 8, 8, 2)).astype(np.float32)
    norm = BatchNorm(5, 1e-3, 0.99, True, KERNELS[implementation])
    mean = jnp.array([0, 0, 0, 1e4, 1e4])
    variables = {"params": {"scale": jnp.ones(5), "bias": jnp.zeros(5)}}
    variables["batch_stats"] = {"mean": mean, "var": jnp.ones(5)}
    actual, var = norm.apply(variables, jnp.asarray(x), method="batch_stats")
    np.testing.assert_allclose(actual, x.mean((0, 1, 2), dtype=np.float64), rtol=1e-6)
    np.testing.assert_allclose(var, x.var((0, 1, 2), dtype=np.float64), rtol=1e-2)
