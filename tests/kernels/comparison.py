"""Compares a kernel with the plain form of the same operation."""

import jax
import jax.numpy as jnp
import numpy as np

TOLERANCE = {"float32": 1e-5, "bfloat16": 2e-2}  # of the largest value; bfloat16 has 8 bits


def draw(shape, dtype="float32", seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def assert_same_values_and_gradients(ours, reference, *args, tolerance=TOLERANCE):
    """Both functions give the same value, and for one drawn cotangent the same gradients."""
    ours, ours_vjp = jax.vjp(ours, *args)
    expected, expected_vjp = jax.vjp(reference, *args)
    assert_close(ours, expected, tolerance)
    cotangent = jax.tree.map(lambda leaf: draw(leaf.shape, leaf.dtype, seed=2), expected)
    assert_close(ours_vjp(cotangent), expected_vjp(cotangent), tolerance)


def assert_close(actual, expected, tolerance=TOLERANCE):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        b = np.float32(b)
        np.testing.assert_allclose(
            np.float32(a), b, rtol=0, atol=tolerance[a.dtype.name] * (np.abs(b).max() + 1e-3)
        )
