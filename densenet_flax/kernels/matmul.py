"""Matrix products, and how bfloat16 is handled on a CPU.

XLA has fast products of bfloat16 for a CPU (with AMX six times as fast as those of float32), but
takes them only in one form, and computes in float32 whatever else it meets in bfloat16, even where
that is only moved. What is here keeps to that form: sums are float32's and are rounded once.
"""

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint


@jax.custom_vjp
def product(rows: jax.Array, matrix: jax.Array) -> jax.Array:
    """`rows [R, C]` times `matrix [C, features]`, both of one dtype, which the result has too."""
    return jax.lax.platform_dependent(rows, matrix, cpu=_on_cpu, default=jnp.matmul)


def _forward(rows: jax.Array, matrix: jax.Array):
    return product(rows, matrix), (rows, matrix)


def _backward(residuals, gradient: jax.Array):
    return jax.lax.platform_dependent(
        *residuals, gradient, cpu=backward_on_cpu, default=_plain_backward
    )


product.defvjp(_forward, _backward)


def _plain_backward(rows: jax.Array, matrix: jax.Array, gradient: jax.Array):
    return gradient @ matrix.T, rows.T @ gradient


def backward_on_cpu(
    rows: jax.Array, matrix: jax.Array, gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """What a gradient of `rows @ matrix`, `[R, features]`, gives for the two factors."""
    if rows.dtype != jnp.bfloat16:
        return _plain_backward(rows, matrix, gradient)
    if gradient.shape[1] > rows.shape[1]:  # the narrower one is the one to turn
        of_matrix = _on_cpu(_turned(rows), gradient)
    else:
        of_matrix = _on_cpu(_turned(gradient), rows).T
    return _on_cpu(gradient, _turned(matrix)), of_matrix


def sums(a: jax.Array, b: jax.Array) -> jax.Array:
    """`a @ b` in float32 at least, the one result that a fast product of bfloat16 has on a CPU."""
    wide = jnp.promote_types(a.dtype, jnp.float32)
    return jnp.dot(a, b, preferred_element_type=wide)


def _on_cpu(a: jax.Array, b: jax.Array) -> jax.Array:
    return sums(a, b).astype(a.dtype)


def _turned(matrix: jax.Array) -> jax.Array:
    """The transpose of `matrix`, row by row in memory.

    Fast products want both factors so. A transposition that XLA may merge with the product makes
    it a slow one.
    """
    row_by_row = Layout(major_to_minor=(0, 1))
    return jax.lax.optimization_barrier(values(with_layout_constraint(bits(matrix).T, row_by_row)))


def bits(x: jax.Array) -> jax.Array:
    """bfloat16 as the integers that it is stored as, to be moved and not computed with.

    Other types stay as they are. Writing a slice of bfloat16 makes XLA convert the whole buffer to
    float32 and back on a CPU.
    """
    return jax.lax.bitcast_convert_type(x, jnp.uint16) if x.dtype == jnp.bfloat16 else x


def values(x: jax.Array) -> jax.Array:
    """The inverse of `bits`."""
    return jax.lax.bitcast_convert_type(x, jnp.bfloat16) if x.dtype == jnp.uint16 else x
