"""The layers that a block is made of: batch normalisation, the 1×1 and the 3×3 convolution."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from densenet_flax.kernels.matmul import backward_on_cpu, bits, product, sums, values

MeanVar = tuple[jax.Array, jax.Array]  # mean and variance of each channel, float32 [C]


def mean_var(x: jax.Array, weight: jax.Array | None = None) -> MeanVar:
    """Mean and biased variance of each channel over a batch, in float32 and two passes.

    Args:
      x: `[N, H, W, C]`.
      weight: `[N]`, how much each example counts; padding has weight 0. None: all count alike.
    """
    n, h, w, c = x.shape
    rows = x.astype(jnp.float32).reshape(-1, c)
    weight = jnp.ones(n, jnp.float32) if weight is None else weight.astype(jnp.float32)
    share = jnp.repeat(weight / (weight.sum() * h * w), h * w)
    # Column sums written as a product with the weights: XLA's reduction over rows is slow on CPU.
    # HIGHEST: TF32 on a GPU would round the statistics to ten bits.
    column_sums = lambda y: jnp.dot(share, y, precision=jax.lax.Precision.HIGHEST)  # noqa: E731
    mean = column_sums(rows)
    return mean, column_sums(jnp.square(rows - mean))


class BatchNorm(nn.Module):
    """Batch normalisation whose mode is the caller's: running statistics, or the given moments."""

    features: int
    epsilon: float
    momentum: float

    def setup(self):
        """Declares the variables, with Keras's initial values."""
        shape = (self.features,)
        self.scale = self.param("scale", nn.initializers.ones_init(), shape, jnp.float32)
        self.bias = self.param("bias", nn.initializers.zeros_init(), shape, jnp.float32)
        self.mean = self.variable("batch_stats", "mean", jnp.zeros, shape, jnp.float32)
        self.var = self.variable("batch_stats", "var", jnp.ones, shape, jnp.float32)

    @property
    def running(self) -> MeanVar:
        """The running statistics."""
        return self.mean.value, self.var.value

    def __call__(self, x: jax.Array, moments: MeanVar | None = None) -> jax.Array:
        """Normalises `x [..., C]` by `moments`, or by the running statistics if None."""
        used = self.running if moments is None else moments
        y = normalize(x, self.scale, self.bias, used, self.epsilon)
        self.observe(moments)
        return y

    def observe(self, moments: MeanVar | None) -> None:
        """Tells of the batch's moments what the caller has asked for.

        Where `batch_stats` is mutable, the running statistics move towards them; where `moments`
        is, they are left there, for a caller who moves all statistics at once.
        """
        if moments is None or self.is_initializing():
            return
        if self.is_mutable_collection("moments"):
            self.put_variable("moments", "mean", moments[0])
            self.put_variable("moments", "var", moments[1])
        if self.is_mutable_collection("batch_stats"):
            self.mean.value = ema_update(self.mean.value, moments[0], self.momentum)
            self.var.value = ema_update(self.var.value, moments[1], self.momentum)


def ema_update(running: Any, batch: Any, momentum: float) -> Any:
    """A tree of running statistics after a batch with these moments, by Keras's rule."""
    return jax.tree.map(lambda old, new: momentum * old + (1 - momentum) * new, running, batch)


def normalize(
    x: jax.Array, scale: jax.Array, bias: jax.Array, moments: MeanVar, epsilon: float
) -> jax.Array:
    """Batch normalisation of `x [..., C]` by these moments, computed in float32."""
    mean, var = moments
    factor = scale * jax.lax.rsqrt(var + epsilon)
    return (x * factor + (bias - mean * factor)).astype(x.dtype)


class Kernel(nn.Module):
    """The kernel of a convolution without bias, in Keras's shape and with its initial values."""

    shape: Sequence[int]

    @nn.compact
    def __call__(self) -> jax.Array:
        """`[height, width, channels in, channels out]`, float32."""
        return self.param("kernel", nn.initializers.glorot_uniform(), self.shape, jnp.float32)


def pointwise(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """A 1×1 convolution as the matrix product that it is: `[..., C]` to `[..., features]`.

    XLA computes the gradient of a product several times faster than that of a 1×1 convolution on
    CPU.

    Args:
      x: `[..., C]`.
      kernel: `[1, 1, C, features]`.
    """
    matrix = kernel.reshape(kernel.shape[-2:]).astype(x.dtype)
    return product(x.reshape(-1, x.shape[-1]), matrix).reshape(*x.shape[:-1], -1)


@jax.custom_vjp
def max_pool_of_relu(x: jax.Array) -> jax.Array:
    """3×3 max pooling of stride 2 with a frame of zeros, of what a ReLU gave.

    On a CPU as the largest of nine shifted slices, two to ten times as fast as XLA's windows.

    Args:
      x: `[N, H, W, C]`, no number below 0.

    Returns:
      `[N, ceil(H / 2), ceil(W / 2), C]`.
    """
    return jax.lax.platform_dependent(x, cpu=_largest_of_nine, default=_max_of_windows)


def _largest_of_nine(x: jax.Array) -> jax.Array:
    _, h, w, _ = x.shape
    ordered = bits(x)
    if ordered.dtype != x.dtype:  # without signs, bits are in the order of the numbers
        ordered &= 0x7FFF  # -0 has one
    padded = jnp.pad(ordered, ((0, 0), (1, 1), (1, 1), (0, 0)))
    parts = [padded[:, i : i + h : 2, j : j + w : 2] for i in range(3) for j in range(3)]
    return values(functools.reduce(jnp.maximum, parts))


def _max_of_windows(x: jax.Array) -> jax.Array:
    # After a ReLU, padding with -inf is padding with zeros.
    return nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))


def _max_pool_forward(x: jax.Array):
    return max_pool_of_relu(x), x


def _max_pool_backward(x: jax.Array, gradient: jax.Array):
    return jax.vjp(_max_of_windows, x)[1](gradient)


max_pool_of_relu.defvjp(_max_pool_forward, _max_pool_backward)


def average_pool(x: jax.Array) -> jax.Array:
    """2×2 average pooling of stride 2: `[N, H, W, C]` to `[N, H // 2, W // 2, C]`.

    As sums of slices, and back as a repetition: XLA's windows over four axes are slow on a CPU.
    """
    _, h, w, _ = x.shape
    return _mean_of_squares(x[:, : h // 2 * 2, : w // 2 * 2])


@jax.custom_vjp
def _mean_of_squares(x: jax.Array) -> jax.Array:
    n, h, w, c = x.shape
    squares = x.reshape(n, h // 2, 2, w // 2, 2, c).astype(jnp.promote_types(x.dtype, jnp.float32))
    parts = (squares[:, :, i, :, j] for i in (0, 1) for j in (0, 1))
    return (functools.reduce(jnp.add, parts) / 4).astype(x.dtype)


def _mean_forward(x: jax.Array):
    return _mean_of_squares(x), None


def _mean_backward(_: None, gradient: jax.Array):
    n, h, w, c = gradient.shape
    quarter = (gradient / 4)[:, :, None, :, None]
    return (jnp.broadcast_to(quarter, (n, h, 2, w, 2, c)).reshape(n, 2 * h, 2 * w, c),)


_mean_of_squares.defvjp(_mean_forward, _mean_backward)


@jax.custom_vjp
def conv3x3(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """A 3×3 convolution of stride 1 with a frame of zeros.

    A block's has four times as many channels coming in as going out. On a CPU it is therefore
    computed as one matrix product that gives the nine taps of every position, and nine shifted
    sums of these; XLA's gradient of the convolution itself takes three times as long there. Other
    devices have convolutions of their own.

    Args:
      x: `[N, H, W, C]`.
      kernel: `[3, 3, C, features]`.

    Returns:
      `[N, H, W, features]`.
    """
    return jax.lax.platform_dependent(x, kernel, cpu=_sum_of_taps, default=_convolution)


def _conv3x3_forward(x: jax.Array, kernel: jax.Array):
    return conv3x3(x, kernel), (x, kernel)


def _conv3x3_backward(residuals, gradient: jax.Array):
    return jax.lax.platform_dependent(
        *residuals, gradient, cpu=_taps_backward, default=_convolution_backward
    )


conv3x3.defvjp(_conv3x3_forward, _conv3x3_backward)


def _convolution(x: jax.Array, kernel: jax.Array) -> jax.Array:
    numbers = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=numbers)


def _convolution_backward(x: jax.Array, kernel: jax.Array, gradient: jax.Array):
    return jax.vjp(_convolution, x, kernel)[1](gradient)


def _sum_of_taps(x: jax.Array, kernel: jax.Array) -> jax.Array:
    n, h, w, c = x.shape
    taps = sums(x.reshape(-1, c), _as_matrix(kernel))
    taps = jnp.pad(taps.reshape(n, h, w, -1), ((0, 0), (1, 1), (1, 1), (0, 0)))
    parts = jnp.split(taps, 9, axis=-1)
    shifted = (parts[3 * i + j][:, i : i + h, j : j + w] for i in range(3) for j in range(3))
    return functools.reduce(jnp.add, shifted).astype(x.dtype)


def _taps_backward(x: jax.Array, kernel: jax.Array, gradient: jax.Array):
    n, h, w, c = x.shape
    padded = jnp.pad(bits(gradient), ((0, 0), (1, 1), (1, 1), (0, 0)))
    # What reached a position through tap (i, j) came from the position that lies opposite.
    taps = [padded[:, 2 - i : 2 - i + h, 2 - j : 2 - j + w] for i in range(3) for j in range(3)]
    rows = values(jnp.concatenate(taps, axis=-1).reshape(n * h * w, -1))
    of_rows, of_kernel = backward_on_cpu(x.reshape(-1, c), _as_matrix(kernel), rows)
    return of_rows.reshape(x.shape), of_kernel.reshape(c, 3, 3, -1).transpose(1, 2, 0, 3)


def _as_matrix(kernel: jax.Array) -> jax.Array:
    """`[3, 3, C, features]` as `[C, 9 · features]`."""
    return kernel.transpose(2, 0, 1, 3).reshape(kernel.shape[2], -1)
