"""Convolutions: XLA's own, and forms that it computes faster on a CPU or a TPU."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from densenet_flax.kernels.matmul import (
    as_bits,
    from_bits,
    matmul,
    matmul_float32,
    matmul_grads,
    product_precision,
)

_OFFSETS = [(i, j) for i in range(3) for j in range(3)]


def conv1x1(x: Float[Array, "*rows C"], kernel: Float[Array, "1 1 C K"]) -> Float[Array, "*rows K"]:
    """Computes a 1×1 convolution in the dtype of `x`."""
    matrix = kernel.reshape(kernel.shape[-2:]).astype(x.dtype)
    return matmul(x.reshape(-1, x.shape[-1]), matrix).reshape(*x.shape[:-1], -1)


@jax.custom_vjp
def conv3x3(x: Float[Array, "N H W C"], kernel: Float[Array, "3 3 C K"]) -> Float[Array, "N H W K"]:
    """Computes a 3×3 convolution with zero padding; both arguments have one dtype.

    In a dense layer C is four times K. One product gives all nine taps of every position, 9·K
    numbers of C, and the result is the sum of nine shifted slices of them. The gradient of XLA's
    own convolution takes three times as long on a CPU.
    """
    n, h, w, c = x.shape
    taps = matmul_float32(x.reshape(-1, c), _as_matrix(kernel)).reshape(n, h, w, -1)
    taps = jnp.pad(taps, ((0, 0), (1, 1), (1, 1), (0, 0)))
    parts = jnp.split(taps, 9, axis=-1)
    shifted = (part[:, i : i + h, j : j + w] for part, (i, j) in zip(parts, _OFFSETS, strict=True))
    return functools.reduce(jnp.add, shifted).astype(x.dtype)


def _conv3x3_forward(x: Array, kernel: Array):
    return conv3x3(x, kernel), (x, kernel)


def _conv3x3_backward(residuals: tuple[Array, Array], grad: Array) -> tuple[Array, Array]:
    x, kernel = residuals
    n, h, w, c = x.shape
    padded = jnp.pad(as_bits(grad), ((0, 0), (1, 1), (1, 1), (0, 0)))
    # A tap that took its input from offset (i, j) sends its gradient back from the opposite one.
    taps = [padded[:, 2 - i : 2 - i + h, 2 - j : 2 - j + w] for i, j in _OFFSETS]
    rows = from_bits(jnp.concatenate(taps, axis=-1).reshape(n * h * w, -1))
    grad_x, grad_matrix = matmul_grads(x.reshape(-1, c), _as_matrix(kernel), rows)
    grad_kernel = grad_matrix.reshape(c, 3, 3, -1).transpose(1, 2, 0, 3)
    return grad_x.reshape(x.shape), grad_kernel


conv3x3.defvjp(_conv3x3_forward, _conv3x3_backward)


def conv2d(
    x: Float[Array, "N H W C"],
    kernel: Float[Array, "kh kw C K"],
    *,
    strides: tuple[int, int] = (1, 1),
    padding: int | Sequence[tuple[int, int]] = 0,
) -> Float[Array, "N h w K"]:
    """Computes XLA's own convolution in the dtype of `x`."""
    return jax.lax.conv_general_dilated(
        x,
        kernel.astype(x.dtype),
        strides,
        [(padding, padding)] * 2 if isinstance(padding, int) else padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=product_precision(x.dtype),
    )


def conv1x1_affine_relu(
    x: Float[Array, "N H W C"],
    kernel: Float[Array, "1 1 C K"],
    factor: Float[Array, " K"],
    shift: Float[Array, " K"],
) -> Float[Array, "N H W K"]:
    """Computes ReLU(y · factor + shift) of a 1×1 convolution y, with the factor in its kernel.

    So a norm in inference mode is no pass of its own: cuDNN adds a shift and applies ReLU in the
    convolution, and XLA fuses them with it on a TPU.
    """
    y = conv2d(x, kernel * factor)
    return jax.nn.relu(y + shift.astype(y.dtype))


def stem_conv(
    x: Float[Array, "N H W C"], kernel: Float[Array, "7 7 C K"]
) -> Float[Array, "N H/2 W/2 K"]:
    """Computes the stem's convolution, of stride 2 and padding 3."""
    return conv2d(x, kernel, strides=(2, 2), padding=3)


def stem_conv_by_squares(
    x: Float[Array, "N H W C"], kernel: Float[Array, "7 7 C K"]
) -> Float[Array, "N H/2 W/2 K"]:
    """Computes `stem_conv` with the pixels of a 2×2 square as channels of one position.

    Three channels fill 3 of the 128 lanes of a TPU's memory. Odd sizes are left to XLA.
    """
    n, h, w, c = x.shape
    if h % 2 or w % 2:
        return stem_conv(x, kernel)
    # Output row r reads the rows 2r-3 to 2r+3: with one more above, four rows of squares.
    kernel = jnp.pad(kernel, ((1, 0), (1, 0), (0, 0), (0, 0))).reshape(4, 2, 4, 2, c, -1)
    kernel = kernel.transpose(0, 2, 1, 3, 4, 5).reshape(4, 4, 4 * c, -1)
    x = x.reshape(n, h // 2, 2, w // 2, 2, c).transpose(0, 1, 3, 2, 4, 5)
    return conv2d(x.reshape(n, h // 2, w // 2, 4 * c), kernel, padding=[(2, 1), (2, 1)])


def _as_matrix(kernel: Float[Array, "3 3 C K"]) -> Float[Array, "C 9*K"]:
    return kernel.transpose(2, 0, 1, 3).reshape(kernel.shape[2], -1)
