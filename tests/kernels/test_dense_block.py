"""The dense block in one buffer, against layers that concatenate and autodiff."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from densenet_flax.kernels.dense_block import default_chunks, dense_block
from densenet_flax.kernels.dense_layer import BnConvParams, DenseBlockSpec
from densenet_flax.models.layers import mean_var
from tests.kernels.comparison import assert_close

N, H, W, IN, GROWTH, LAYERS = 5, 4, 3, 6, 2, 3
EPSILON = 1e-3
TRAINING = ((True, True),) * LAYERS
KERAS_300 = ((False, False), (True, True), (True, True))  # the frontier lies inside the first layer
INFERENCE = ((False, False),) * LAYERS
MIXED = ((False, True), (True, False), (False, True))


def draw_layers(dtype=jnp.float32):
    rng = np.random.default_rng(0)

    def half(c, *kernel):
        running_stats = (rng.normal(size=c), rng.uniform(0.5, 2, c))
        return BnConvParams(
            rng.normal(size=c), rng.normal(size=c), running_stats, rng.normal(size=kernel)
        )

    def layer(i):
        c = IN + i * GROWTH
        return half(c, 1, 1, c, 8), half(8, 3, 3, 8, GROWTH)

    x, layers = rng.normal(size=(N, H, W, IN)), [layer(i) for i in range(LAYERS)]
    as_float32 = lambda leaf: jnp.asarray(leaf, jnp.float32)  # noqa: E731
    return jnp.asarray(x, dtype), jax.tree.map(as_float32, layers)


def reference(use_batch_stats, x, weight, layers):
    """As the paper draws it."""
    bottleneck_stats = []

    def norm_relu(x, params, train):
        mean, var = mean_var(x, weight) if train else params.running_stats
        y = (x - mean) / jnp.sqrt(var + EPSILON) * params.scale + params.bias
        return jax.nn.relu(y).astype(x.dtype)

    def conv(x, kernel):
        return jax.lax.conv_general_dilated(
            x, kernel.astype(x.dtype), (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    for (first, second), (train_0, train_1) in zip(layers, use_batch_stats, strict=True):
        y = conv(norm_relu(x, first, train_0), first.kernel)
        bottleneck_stats.append(mean_var(y, weight) if train_1 else None)
        x = jnp.concatenate([x, conv(norm_relu(y, second, train_1), second.kernel)], axis=-1)
    needs_stats = any(train_0 for train_0, _ in use_batch_stats)
    return x, mean_var(x, weight) if needs_stats else None, bottleneck_stats


def fused(remat, use_batch_stats, x, weight, layers, chunks=1):
    needs_stats = any(train_0 for train_0, _ in use_batch_stats)
    spec = DenseBlockSpec(use_batch_stats, EPSILON, remat, chunks)
    return dense_block(spec, x, mean_var(x, weight) if needs_stats else None, weight, layers)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("use_batch_stats", [TRAINING, KERAS_300, INFERENCE, MIXED])
@pytest.mark.parametrize(
    ("remat", "chunks"),
    [("none", 1), ("bottleneck", 1), ("bottleneck", N), ("block", 1), ("block", N)],
)
def test_values_and_gradients_are_the_reference(remat, chunks, use_batch_stats, weighted):
    x, layers = draw_layers()
    weight = jnp.array([1, 1, 2, 0, 1], jnp.float32) if weighted else None
    expected, expected_vjp = jax.vjp(
        lambda x, p: reference(use_batch_stats, x, weight, p), x, layers
    )
    actual, vjp = jax.vjp(
        lambda x, p: fused(remat, use_batch_stats, x, weight, p, chunks), x, layers
    )
    tolerance = {"float32": 2e-4}
    assert_close(actual, expected, tolerance)
    # Every output has a cotangent of its own: no path back may hide behind another.
    rng = np.random.default_rng(1)
    cotangent = jax.tree.map(lambda y: jnp.asarray(rng.normal(size=y.shape), y.dtype), expected)
    assert_close(vjp(cotangent), expected_vjp(cotangent), tolerance)


@pytest.mark.parametrize("chunks", [1, N])
@pytest.mark.parametrize("use_batch_stats", [TRAINING, INFERENCE])
def test_bfloat16_is_the_reference_to_its_rounding(use_batch_stats, chunks):
    x, layers = draw_layers(jnp.bfloat16)
    expected, expected_vjp = jax.vjp(
        lambda x, p: reference(use_batch_stats, x, None, p)[0], x, layers
    )
    actual, vjp = jax.vjp(
        lambda x, p: fused("bottleneck", use_batch_stats, x, None, p, chunks)[0], x, layers
    )
    tolerance = {"float32": 0.06, "bfloat16": 0.06}  # of the largest; a few roundings of 1/256
    assert_close(actual, expected, tolerance)
    grad = jnp.ones_like(expected)
    assert_close(vjp(grad), expected_vjp(grad), tolerance)


def test_what_is_saved_shrinks_with_remat():
    x, layers = draw_layers()

    def saved(remat):
        run = lambda x, p: fused(remat, TRAINING, x, None, p)[0]  # noqa: E731
        _, vjp = jax.eval_shape(lambda: jax.vjp(run, x, layers))
        return sum(leaf.size for leaf in jax.tree.leaves(vjp))

    assert saved("none") > saved("bottleneck") > saved("block")


def test_in_chunks_the_widest_part_is_never_whole():
    """XLA would merge what is computed again with the forward pass, and keep all of it."""
    modes, images, c = ((True, True),) * 8, 16, 192
    norm = lambda n: (jnp.ones(n), jnp.zeros(n), (jnp.zeros(n), jnp.ones(n)))  # noqa: E731
    layers = [
        (
            BnConvParams(*norm(c + 8 * i), jnp.ones((1, 1, c + 8 * i, 8))),
            BnConvParams(*norm(8), jnp.ones((3, 3, 8, 8))),
        )
        for i in range(8)
    ]
    x = jnp.ones((images, 8, 8, c))

    def temporary_bytes(chunks):
        def loss(layers, x):
            spec = DenseBlockSpec(modes, EPSILON, "bottleneck", chunks)
            return dense_block(spec, x, (jnp.zeros(c), jnp.ones(c)), None, layers)[0].sum()

        compiled = jax.jit(jax.grad(loss)).lower(layers, x).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporary_bytes(images) < 0.6 * temporary_bytes(1)


@pytest.mark.parametrize(
    ("shape", "chunks"), [((32, 14, 14, 8), 16), ((32, 7, 7, 8), 4), ((7, 14, 14, 8), 1)]
)
def test_chunks_divide_the_batch_into_a_few_hundred_positions(shape, chunks, monkeypatch):
    assert default_chunks(shape) == chunks
    monkeypatch.setattr(jax, "device_count", lambda: 2)
    assert default_chunks(shape) == 1  # the devices have divided it already
