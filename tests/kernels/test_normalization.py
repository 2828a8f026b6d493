"""Batch statistics as products, against means over axes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from densenet_flax.kernels import normalization
from densenet_flax.models import layers
from tests.kernels.comparison import assert_same_values_and_gradients, draw

# One rule for both: float32 statistics of bfloat16 features are float32's.
MEAN_VAR = {
    "two passes": normalization.mean_var,
    "one pass": lambda x, weight=None: normalization.mean_var_one_pass(x, weight, x[0, 0, 0]),
    "reference": layers.mean_var,
}


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", [(5, 4, 6, 7), (3, 1, 1, 2), (2, 7, 5, 3)])
@pytest.mark.parametrize("mean_var", [*MEAN_VAR][:2])
def test_mean_var_is_the_reference(mean_var, shape, dtype, weighted):
    weight = jnp.asarray([1, 0.5, 2, 0, 1][: shape[0]], jnp.float32) if weighted else None
    assert_same_values_and_gradients(
        lambda x: MEAN_VAR[mean_var](x, weight),
        lambda x: layers.mean_var(x, weight),
        draw(shape, dtype),
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_normalize_is_the_reference(dtype):
    def reference(x, scale, bias, stats):
        y = (x - stats[0]) / jnp.sqrt(stats[1] + 1e-3) * scale + bias
        return y.astype(x.dtype)

    stats = (draw((6,)), jnp.square(draw((6,), seed=1)) + 0.5)
    assert_same_values_and_gradients(
        lambda *args: normalization.normalize(*args, epsilon=1e-3),
        reference,
        draw((3, 5, 4, 6), dtype),
        draw((6,), seed=2),
        draw((6,), seed=3),
        stats,
    )


@pytest.mark.parametrize("mean_var", MEAN_VAR.values(), ids=MEAN_VAR)
def test_padding_has_no_weight(mean_var):
    x = np.random.default_rng(0).normal(3, 2, (5, 4, 6, 7)).astype(np.float32)
    padded = np.concatenate([x, 1e3 * np.ones((3, 4, 6, 7), np.float32)])
    weight = jnp.array([1, 1, 1, 1, 1, 0, 0, 0], jnp.float32)
    mean, var = mean_var(jnp.asarray(padded), weight)
    np.testing.assert_allclose(mean, x.mean((0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(var, x.var((0, 1, 2)), rtol=1e-5)


@pytest.mark.parametrize("mean_var", MEAN_VAR.values(), ids=MEAN_VAR)
def test_the_variance_survives_a_large_mean(mean_var):
    x = np.random.default_rng(0).normal(1e4, 1, (8, 8, 8, 3)).astype(np.float32)
    _, var = mean_var(jnp.asarray(x))
    # E[x²] - E[x]² would be off by more than the variance itself.
    np.testing.assert_allclose(var, x.var((0, 1, 2), dtype=np.float64), rtol=1e-2)


def test_statistics_are_summed_at_the_highest_precision():
    """A GPU would use TF32 and a TPU bfloat16 for the products that the sums are written as."""
    program = jax.jit(normalization.mean_var).lower(jnp.ones((2, 3, 3, 4))).as_text()
    products = [line for line in program.splitlines() if "dot_general" in line]
    assert products and all("precision = [HIGHEST, HIGHEST]" in line for line in products)
