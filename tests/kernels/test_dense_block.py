"""The run of blocks in one buffer, against blocks that concatenate and autodiff."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from densenet_flax.kernels import dense_block as ds
from densenet_flax.kernels.dense_block import HalfBlock, Manner, dense_stage
from densenet_flax.training.raveled import Raveled

N, H, W, ENTERING, GROWTH, BLOCKS = 5, 4, 3, 6, 2, 3
EPSILON = 1e-3
ALL_LIVE = ((True, True),) * BLOCKS
KERAS_300 = ((False, False), (True, True), (True, True))  # cut inside the first block
FROZEN = ((False, False),) * BLOCKS
MIXED = ((False, True), (True, False), (False, True))


@pytest.fixture(scope="module")
def arguments():
    rng = np.random.default_rng(0)

    def half(c, *kernel):
        running = (rng.normal(size=c), rng.uniform(0.5, 2, c))
        return HalfBlock(rng.normal(size=c), rng.normal(size=c), running, rng.normal(size=kernel))

    def block(i):
        c = ENTERING + i * GROWTH
        return half(c, 1, 1, c, 8), half(8, 3, 3, 8, GROWTH)

    x = rng.normal(size=(N, H, W, ENTERING))
    return jax.tree.map(
        lambda leaf: jnp.asarray(leaf, jnp.float32), (x, [block(i) for i in range(BLOCKS)])
    )


def moments_of(x, weight):
    share = (jnp.ones(N) if weight is None else weight)[:, None, None, None]
    share = share / (share.sum() * H * W)
    mean = (share * x).sum((0, 1, 2))
    return mean, (share * (x - mean) ** 2).sum((0, 1, 2))


def as_the_paper_draws_it(live, x, weight, blocks):
    seen = []

    def normalised(x, norm, is_live):
        mean, var = moments_of(x, weight) if is_live else norm.running
        return jax.nn.relu((x - mean) / jnp.sqrt(var + EPSILON) * norm.scale + norm.bias)

    for (narrow, grow), (first, second) in zip(blocks, live, strict=True):
        y = normalised(x, narrow, first) @ narrow.kernel[0, 0]
        seen.append(moments_of(y, weight) if second else None)
        y = normalised(y, grow, second)
        numbers = ("NHWC", "HWIO", "NHWC")
        born = jax.lax.conv_general_dilated(
            y, grow.kernel, (1, 1), "SAME", dimension_numbers=numbers
        )
        x = jnp.concatenate([x, born], axis=-1)
    return x, moments_of(x, weight) if any(first for first, _ in live) else None, seen


def in_one_buffer(remat, live, x, weight, blocks, pieces=1):
    moments = moments_of(x, weight) if any(first for first, _ in live) else None
    return dense_stage(Manner(live, EPSILON, remat, pieces), x, moments, weight, blocks)


def close(got, wanted):
    assert jax.tree.structure(got) == jax.tree.structure(wanted)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4 * float(jnp.abs(b).max() + 1e-3))


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("live", [ALL_LIVE, KERAS_300, FROZEN, MIXED])
@pytest.mark.parametrize(
    ("remat", "pieces"),
    [("none", 1), ("bottleneck", 1), ("bottleneck", N), ("block", 1), ("block", N)],
)
def test_it_is_what_autodiff_makes_of_concatenations(arguments, remat, pieces, live, weighted):
    x, blocks = arguments
    weight = jnp.array([1, 1, 2, 0, 1], jnp.float32) if weighted else None
    wanted, backward = jax.vjp(lambda x, b: as_the_paper_draws_it(live, x, weight, b), x, blocks)
    got, ours = jax.vjp(lambda x, b: in_one_buffer(remat, live, x, weight, b, pieces), x, blocks)
    close(got, wanted)
    # Every output has a gradient of its own: no path back may hide behind another.
    rng = np.random.default_rng(1)
    gradient = jax.tree.map(lambda y: jnp.asarray(rng.normal(size=y.shape), jnp.float32), wanted)
    close(ours(gradient), backward(gradient))


def test_what_is_kept_shrinks_with_remat(arguments):
    x, blocks = arguments

    def kept(remat):
        run = lambda x, b: in_one_buffer(remat, ALL_LIVE, x, None, b)[0]  # noqa: E731
        _, backward = jax.eval_shape(lambda: jax.vjp(run, x, blocks))
        return sum(leaf.size for leaf in jax.tree.leaves(backward))

    assert kept("none") > kept("bottleneck") > kept("block")


def test_in_pieces_the_wide_half_is_never_whole():
    """XLA would merge what is computed again with the forward pass's, and keep all of it."""
    live, images, c = ((True, True),) * 8, 16, 192
    norm = lambda n: (jnp.ones(n), jnp.zeros(n), (jnp.zeros(n), jnp.ones(n)))  # noqa: E731
    blocks = [
        (
            HalfBlock(*norm(c + 8 * i), jnp.ones((1, 1, c + 8 * i, 8))),
            HalfBlock(*norm(8), jnp.ones((3, 3, 8, 8))),
        )
        for i in range(8)
    ]
    x = jnp.ones((images, 8, 8, c))

    def temporaries(pieces):
        def loss(blocks, x):
            manner = Manner(live, EPSILON, "bottleneck", pieces)
            return dense_stage(manner, x, (jnp.zeros(c), jnp.ones(c)), None, blocks)[0].sum()

        compiled = jax.jit(jax.grad(loss)).lower(blocks, x).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporaries(images) < 0.6 * temporaries(1)


def test_half_precision_comes_out_as_it_went_in(arguments):
    x, blocks = arguments
    run = lambda x: in_one_buffer("bottleneck", ALL_LIVE, x, None, blocks)[0]  # noqa: E731
    y, backward = jax.vjp(run, x.astype(jnp.bfloat16))
    assert y.dtype == jnp.bfloat16
    assert backward(jnp.ones_like(y))[0].dtype == jnp.bfloat16


def test_packing_what_is_side_by_side_takes_whole_buffers():
    """Or packing costs a program for each part, and compiling as many as there are leaves."""

    def pack(stack, moments):
        tree = {f"block{i}": {"scale": part} for i, part in enumerate(ds._unstacked(stack, 20))}
        for i, part in enumerate(ds.side_by_side([moments[: 8 * i + 8] for i in range(20)])):
            tree[f"block{i}"]["mean"] = part
        return Raveled.of(tree, jax.tree.map(lambda _: "", tree)).vectors[""]

    stack, moments = jnp.arange(20 * 6.0).reshape(20, 6), jnp.arange(160.0)
    compiled = jax.jit(pack).lower(stack, moments).compile()
    assert compiled.as_text().count(" fusion(") <= 4  # 19 if parts of the second are slices of it
    wanted = [np.arange(8 * i + 8) for i in range(20)] + [np.arange(120)]
    np.testing.assert_array_equal(compiled(stack, moments), np.concatenate(wanted))
