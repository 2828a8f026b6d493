"""Products in bfloat16 as XLA's CPU backend has fast kernels for."""

import itertools
import re

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from densenet_flax.kernels.matmul import as_bits, from_bits, matmul

ROWS, CHANNELS = 96, 40


def assert_close(actual, expected, dtype):
    """To the rounding of the result."""
    assert actual.dtype == dtype
    np.testing.assert_allclose(np.float64(actual), expected, rtol=1 / 128, atol=0)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("features", [8, 72])  # narrower and wider than what enters
def test_a_product_and_its_gradients_are_those_of_float64(dtype, features):
    """Small whole numbers are exact in each type, and their sums in float32."""
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.integers(-8, 9, shape).astype(np.float64)  # noqa: E731
    rows, matrix, gradient = draw(ROWS, CHANNELS), draw(CHANNELS, features), draw(ROWS, features)
    args = [jnp.asarray(part, dtype) for part in (rows, matrix, gradient)]

    @jax.jit
    def run(rows, matrix, gradient):
        y, backward = jax.vjp(matmul, rows, matrix)
        return y, backward(gradient)

    y, (grad_rows, grad_matrix) = run(*args)
    assert_close(y, rows @ matrix, dtype)
    assert_close(grad_rows, gradient @ matrix.T, dtype)
    assert_close(grad_matrix, rows.T @ gradient, dtype)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="about the compiler for CPUs")
def test_a_cpu_multiplies_bfloat16_as_bfloat16():
    """What is slow there is a factor that was made float32 first, or a loop instead of a kernel."""

    def step(rows, matrix, gradient):
        y, backward = jax.vjp(matmul, rows, matrix)
        return y, backward(gradient)

    shapes = ((392, 1280), (1280, 128), (392, 128))
    args = [jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in shapes]
    program = jax.jit(step).lower(*args).compile().as_text()
    if "ynn_fusion" not in program:
        pytest.skip("this jaxlib has no such kernels here")
    factors = re.findall(r" dot\((%[\w.]+), (%[\w.]+)\)", program)
    assert len(factors) == 3
    for name in itertools.chain(*factors):
        assert re.search(rf"{re.escape(name)} = bf16\[", program), program


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16, np.float32])
def test_from_bits_undoes_as_bits(dtype):
    special = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1e-30, 65000.0, -1.5], dtype)
    x = jnp.asarray(special)
    assert as_bits(x).dtype == (np.uint16 if dtype == ml_dtypes.bfloat16 else dtype)
    back = np.asarray(from_bits(as_bits(x)))
    assert back.tobytes() == special.tobytes()
