"""Batch normalization's arithmetic in forms that XLA computes fast."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from densenet_flax.kernels.parts import affine_relu

MeanVar = tuple[Float[Array, " C"], Float[Array, " C"]]  # of each channel, float32


def mean_var(x: Float[Array, "N H W C"], weight: Float[Array, " N"] | None = None) -> MeanVar:
    """Computes mean and biased variance of each channel over a batch, in float32 and two passes.

    Column sums are products with the vector of weights, because XLA's reduction over rows is slow
    on a CPU.

    Args:
      x: any floating dtype.
      weight: how much each example counts; padding has 0. None: all count the same.
    """
    n, h, w, c = x.shape
    rows = x.astype(jnp.float32).reshape(-1, c)
    weight = jnp.ones(n, jnp.float32) if weight is None else weight.astype(jnp.float32)
    share = jnp.repeat(weight / (weight.sum() * h * w), h * w)
    # HIGHEST: TF32 on a GPU would round the statistics to ten bits.
    column_sums = lambda y: jnp.dot(share, y, precision=jax.lax.Precision.HIGHEST)  # noqa: E731
    mean = column_sums(rows)
    return mean, column_sums(jnp.square(rows - mean))


def mean_var_one_pass(
    x: Float[Array, "N H W C"],
    weight: Float[Array, " N"] | None,
    near: Float[Array, " C"],
) -> MeanVar:
    """Computes what `mean_var` does in one pass over `x`, as E[(x - near)²] - E[x - near]².

    One pass can be part of the operation that computes `x`, and on several devices both sums are
    exchanged together. Any `near` gives the same numbers but for rounding: of the variance's digits
    it costs those of 1 + (mean - near)² / variance. The running mean, being an average of batch
    means, costs next to none; 0, as in E[x²] - E[x]², can cost all of them.

    Args:
      x: any floating dtype.
      weight: how much each example counts; padding has 0. None: all count the same.
      near: a number near the mean of each channel; a constant to gradients.
    """
    n, h, w, _ = x.shape
    weight = jnp.ones(n) if weight is None else weight
    share = (weight / (weight.sum() * h * w)).astype(jnp.float32)[:, None, None, None]
    near = jax.lax.stop_gradient(near)
    shifted = x.astype(jnp.float32) - near
    mean = (share * shifted).sum(axis=(0, 1, 2))
    mean_square = (share * jnp.square(shifted)).sum(axis=(0, 1, 2))
    return mean + near, jnp.maximum(mean_square - jnp.square(mean), 0)


def affine(
    scale: Float[Array, " C"], bias: Float[Array, " C"], stats: MeanVar, epsilon: float
) -> tuple[Float[Array, " C"], Float[Array, " C"]]:
    """Writes a norm as x · factor + shift; returns both."""
    mean, var = stats
    factor = scale * jax.lax.rsqrt(var + epsilon)
    return factor, bias - mean * factor


def normalize(
    x: Float[Array, "*rows C"],
    scale: Float[Array, " C"],
    bias: Float[Array, " C"],
    stats: MeanVar,
    epsilon: float,
) -> Float[Array, "*rows C"]:
    """Normalizes by these statistics as one multiplication and one addition, in float32."""
    factor, shift = affine(scale, bias, stats, epsilon)
    return (x * factor + shift).astype(x.dtype)


def norm_relu(
    parts: Sequence[Float[Array, "N H W _"]],
    scale: Float[Array, " C"],
    bias: Float[Array, " C"],
    stats: MeanVar,
    epsilon: float,
    concatenate_first: bool = False,
) -> Float[Array, "N H W C"]:
    """Normalizes features given in parts, and applies ReLU, by `affine_relu`."""
    return affine_relu(parts, *affine(scale, bias, stats, epsilon), concatenate_first)
