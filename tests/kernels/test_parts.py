"""Features in parts, against the same of their concatenation."""

import functools

import jax
import jax.numpy as jnp
import pytest

from densenet_flax.kernels.parts import affine_relu, concatenate_parts, split_like
from tests.kernels.comparison import assert_same_values_and_gradients, draw

WIDTHS = (5, 1, 3)


def draw_parts(dtype="float32"):
    return [draw((2, 3, 4, width), dtype, seed=i) for i, width in enumerate(WIDTHS)]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("concatenate_first", [False, True])
def test_affine_relu(concatenate_first, dtype):
    def plain(parts, factor, shift):
        return jax.nn.relu(jnp.concatenate(parts, -1) * factor + shift).astype(dtype)

    ours = functools.partial(affine_relu, concatenate_first=concatenate_first)
    vectors = [draw((sum(WIDTHS),), seed=3), draw((sum(WIDTHS),), seed=4)]
    assert_same_values_and_gradients(lambda *args: ours(*args), plain, draw_parts(dtype), *vectors)


def test_concatenate_parts():
    plain = functools.partial(jnp.concatenate, axis=-1)
    assert_same_values_and_gradients(concatenate_parts, plain, draw_parts())


def test_split_like_undoes_the_concatenation():
    parts = draw_parts()
    for part, again in zip(parts, split_like(jnp.concatenate(parts, -1), parts), strict=True):
        assert (part == again).all()
