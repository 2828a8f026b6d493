import itertools
import re

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from densenet_flax.kernels.matmul import bits, product, values
from densenet_flax.models.layers import conv3x3

ROWS, CHANNELS = 96, 40


def close(found, expected, dtype):
    """To the rounding of the result."""
    assert found.dtype == dtype
    np.testing.assert_allclose(np.float64(found), expected, rtol=1 / 128, atol=0)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("features", [8, 72])  # narrower and wider than what enters
def test_a_product_and_its_gradients_are_those_of_float64(dtype, features):
    """Small whole numbers are exact in each type, and their sums in float32."""
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.integers(-8, 9, shape).astype(np.float64)  # noqa: E731
    rows, matrix, gradient = draw(ROWS, CHANNELS), draw(CHANNELS, features), draw(ROWS, features)
    given = [jnp.asarray(part, dtype) for part in (rows, matrix, gradient)]

    @jax.jit
    def run(rows, matrix, gradient):
        y, backward = jax.vjp(product, rows, matrix)
        return y, backward(gradient)

    y, (of_rows, of_matrix) = run(*given)
    close(y, rows @ matrix, dtype)
    close(of_rows, gradient @ matrix.T, dtype)
    close(of_matrix, rows.T @ gradient, dtype)


def test_in_half_precision_the_convolution_sums_in_float32():
    """The nine taps of a position are added before anything is rounded."""
    rng = np.random.default_rng(0)
    x = rng.integers(-8, 9, (2, 5, 6, 16)).astype(np.float32)
    kernel = rng.integers(-8, 9, (3, 3, 16, 4)).astype(np.float32)
    gradient = rng.integers(-8, 9, (2, 5, 6, 4)).astype(np.float32)
    found, exact = (
        jax.tree.map(np.float32, (y, backward(gradient.astype(y.dtype))))
        for y, backward in (
            jax.vjp(conv3x3, *(jnp.asarray(part, dtype) for part in (x, kernel)))
            for dtype in (jnp.bfloat16, jnp.float32)
        )
    )
    rounded = jax.tree.map(lambda part: np.float32(part.astype(ml_dtypes.bfloat16)), exact)
    jax.tree.map(np.testing.assert_array_equal, found, rounded)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="about the compiler for CPUs")
def test_a_cpu_multiplies_bfloat16_as_bfloat16():
    """What is slow there is a factor that was made float32 first, or a loop instead of a kernel."""

    def step(rows, matrix, gradient):
        y, backward = jax.vjp(product, rows, matrix)
        return y, backward(gradient)

    shapes = ((392, 1280), (1280, 128), (392, 128))
    given = [jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in shapes]
    program = jax.jit(step).lower(*given).compile().as_text()
    if "ynn_fusion" not in program:
        pytest.skip("this jaxlib has no such kernels here")
    factors = re.findall(r" dot\((%[\w.]+), (%[\w.]+)\)", program)
    assert len(factors) == 3
    for name in itertools.chain(*factors):
        assert re.search(rf"{re.escape(name)} = bf16\[", program), program


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16, np.float32])
def test_bits_come_back_as_they_were(dtype):
    special = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1e-30, 65000.0, -1.5], dtype)
    x = jnp.asarray(special)
    assert bits(x).dtype == (np.uint16 if dtype == ml_dtypes.bfloat16 else dtype)
    back = np.asarray(values(bits(x)))
    assert back.tobytes() == special.tobytes()
