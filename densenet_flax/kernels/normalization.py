"""Batch normalization's arithmetic in forms that XLA's CPU backend computes fast."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

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


def normalize(
    x: Float[Array, "*rows C"],
    scale: Float[Array, " C"],
    bias: Float[Array, " C"],
    stats: MeanVar,
    epsilon: float,
) -> Float[Array, "*rows C"]:
    """Normalizes by these statistics as one multiplication and one addition, in float32."""
    mean, var = stats
    factor = scale * jax.lax.rsqrt(var + epsilon)
    return (x * factor + (bias - mean * factor)).astype(x.dtype)
