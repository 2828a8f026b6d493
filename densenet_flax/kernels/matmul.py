"""Matrix products in the one form for which XLA's CPU backend has fast bfloat16 kernels.

With AMX those kernels are six times as fast as float32's. XLA takes a product to them only if both
factors lie row by row in memory and the result is float32; any other operation on bfloat16, even a
copy, it converts to float32 and back. So sums are taken in float32 and rounded once, and bfloat16
arrays that are merely moved travel as 16-bit integers (`as_bits`). float32 is left as it is.
"""

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint
from jax.typing import DTypeLike
from jaxtyping import Array, Float


def product_precision(dtype: DTypeLike) -> jax.lax.Precision:
    """Returns what makes products of arrays of this dtype as exact as their dtype says.

    Every product and convolution of the network is given it. By default float32 factors are
    rounded to bfloat16 on a TPU and to TF32 on a GPU; a CPU ignores it.
    """
    # Given to each operation rather than set for all by `jax.default_matmul_precision`: that holds
    # where a function is traced, and so neither in a `custom_vjp`'s backward pass nor in a `jit` of
    # the caller.
    exact = jnp.finfo(dtype).bits > 16
    return jax.lax.Precision.HIGHEST if exact else jax.lax.Precision.DEFAULT


@jax.custom_vjp
def matmul(a: Float[Array, "M C"], b: Float[Array, "C K"]) -> Float[Array, "M K"]:
    """Computes `a @ b` for two matrices of one dtype, which the result has too."""
    return matmul_float32(a, b).astype(a.dtype)


def matmul_float32(a: Float[Array, "M C"], b: Float[Array, "C K"]) -> Float[Array, "M K"]:
    """Computes `a @ b` with sums and result in float32, or in float64 if the factors are."""
    return jnp.dot(
        a,
        b,
        precision=product_precision(a.dtype),
        preferred_element_type=jnp.promote_types(a.dtype, jnp.float32),
    )


def _matmul_forward(a: Array, b: Array):
    return matmul(a, b), (a, b)


def _matmul_backward(residuals: tuple[Array, Array], grad: Array) -> tuple[Array, Array]:
    return matmul_grads(*residuals, grad)


matmul.defvjp(_matmul_forward, _matmul_backward)


def matmul_grads(
    a: Float[Array, "M C"], b: Float[Array, "C K"], grad: Float[Array, "M K"]
) -> tuple[Float[Array, "M C"], Float[Array, "C K"]]:
    """Computes the gradients of `a` and `b` from that of `a @ b`."""
    if a.dtype != jnp.bfloat16:
        return matmul(grad, b.T), matmul(a.T, grad)
    if grad.shape[1] > a.shape[1]:  # transposing costs a copy: transpose the smaller one
        grad_b = matmul(_transpose(a), grad)
    else:
        grad_b = matmul(_transpose(grad), a).T
    return matmul(grad, _transpose(b)), grad_b


def _transpose(matrix: Float[Array, "M C"]) -> Float[Array, "C M"]:
    """Transposes in memory: a transposition that XLA fuses with the product makes it a slow one."""
    row_major = Layout(major_to_minor=(0, 1))
    bits = with_layout_constraint(as_bits(matrix).T, row_major)
    return jax.lax.optimization_barrier(from_bits(bits))


def as_bits(x: Array) -> Array:
    """Views bfloat16 as uint16, to be moved and not computed with; other dtypes stay.

    Writing a slice of a bfloat16 buffer makes XLA convert the whole buffer on a CPU.
    """
    return jax.lax.bitcast_convert_type(x, jnp.uint16) if x.dtype == jnp.bfloat16 else x


def from_bits(x: Array) -> Array:
    """Undoes `as_bits`."""
    return jax.lax.bitcast_convert_type(x, jnp.bfloat16) if x.dtype == jnp.uint16 else x
