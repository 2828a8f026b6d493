"""Features of a dense block as a list of parts: what entered it, and what its layers created.

Every layer reads all features before it. In the forward pass XLA fuses their concatenation with the
arithmetic that reads it. In the backward pass it would add up the gradients of all features once
for each layer; in parts they are added up once for every few layers.
"""

import functools
import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

# A layer reads at most so many parts; then all but the first become one.
MAX_PARTS = 8


def split_like(x: Float[Array, "... C"], parts: Sequence[Array]) -> list[Float[Array, "... _"]]:
    """Splits the last axis as that of the concatenated parts."""
    ends = list(itertools.accumulate(part.shape[-1] for part in parts))[:-1]
    return jnp.split(x, ends, axis=-1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def affine_relu(
    parts: Sequence[Float[Array, "N H W _"]],
    factor: Float[Array, " C"],
    shift: Float[Array, " C"],
    concatenate_first: bool = False,
) -> Float[Array, "N H W C"]:
    """Computes ReLU(x · factor + shift) of features x given in parts, the C channels one by one.

    The gradient of each part is computed from its own channels of the cotangent, so that XLA can
    add up the gradients that many dense layers have for a part in one pass, without an array of all
    channels for each layer; those of `factor` and `shift` are sums over all channels at once.

    Args:
      parts: of one dtype.
      factor: float32.
      shift: float32.
      concatenate_first: XLA fuses the arithmetic with the concatenation on a GPU, if it comes
        before it; on a TPU with the convolution that reads the result, if it comes after it.

    Returns:
      Of the dtype of the parts; computed in float32 and rounded once.
    """
    dtype = parts[0].dtype
    if concatenate_first:
        return jax.nn.relu(jnp.concatenate(parts, axis=-1) * factor + shift).astype(dtype)
    vectors = [split_like(vector, parts) for vector in (factor, shift)]
    each = [jax.nn.relu(part * f + s) for part, f, s in zip(parts, *vectors, strict=True)]
    return jnp.concatenate([y.astype(dtype) for y in each], axis=-1)


def _affine_relu_forward(
    parts: Sequence[Array], factor: Array, shift: Array, concatenate_first: bool
):
    return affine_relu(parts, factor, shift, concatenate_first), (parts, factor, shift)


def _affine_relu_backward(concatenate_first: bool, residuals: tuple, grad: Array):
    parts, factor, shift = residuals
    x = jnp.concatenate(parts, axis=-1).astype(jnp.float32)
    masked = jnp.where(x * factor + shift > 0, grad.astype(jnp.float32), 0)
    grad_factor, grad_shift = (masked * x).sum((0, 1, 2)), masked.sum((0, 1, 2))
    grad_parts = [
        jnp.where(part * f + s > 0, g.astype(jnp.float32) * f, 0).astype(part.dtype)
        for part, g, f, s in zip(
            parts, *(split_like(leaf, parts) for leaf in (grad, factor, shift)), strict=True
        )
    ]
    return grad_parts, grad_factor, grad_shift


affine_relu.defvjp(_affine_relu_forward, _affine_relu_backward)


@jax.custom_vjp
def concatenate_parts(parts: Sequence[Float[Array, "N H W _"]]) -> Float[Array, "N H W C"]:
    """Concatenates channels; the gradient of the result is computed whole before it is split."""
    return jnp.concatenate(parts, axis=-1)


def _concatenate_forward(parts: Sequence[Array]):
    return concatenate_parts(parts), [jnp.zeros((0, part.shape[-1])) for part in parts]


def _concatenate_backward(empty_parts: Sequence[Array], grad: Array):
    # Else XLA computes each part's share of the sum of all layers' gradients on its own.
    return (split_like(jax.lax.optimization_barrier(grad), empty_parts),)


concatenate_parts.defvjp(_concatenate_forward, _concatenate_backward)
