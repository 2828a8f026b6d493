"""Convolution and batch normalization with Keras's initial values and rules."""

from collections.abc import Sequence
from typing import TypeVar

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from densenet_flax.kernels.convolution import conv2d
from densenet_flax.kernels.device_kernels import Kernels
from densenet_flax.kernels.normalization import MeanVar, affine, normalize

Tree = TypeVar("Tree")


class Conv(nn.Module):
    """A convolution without bias.

    Attributes:
      shape: of the kernel, [height, width, channels in, channels out].
      strides: in both directions.
      padding: pixels of zeros on every side.
    """

    shape: Sequence[int]
    strides: int = 1
    padding: int = 0

    def setup(self):
        """Declares the kernel."""
        initializer = nn.initializers.glorot_uniform()
        self.kernel = self.param("kernel", initializer, tuple(self.shape), jnp.float32)

    def __call__(self, x: Float[Array, "N H W C"]) -> Float[Array, "N h w K"]:
        """Convolves in the dtype of `x`."""
        strides = (self.strides, self.strides)
        return conv2d(x, self.kernel, strides=strides, padding=self.padding)


def mean_var(x: Float[Array, "N H W C"], weight: Float[Array, " N"] | None = None) -> MeanVar:
    """Computes mean and biased variance of each channel over a batch, in float32.

    Args:
      x: any floating dtype.
      weight: how much each example counts; padding has 0. None: all count the same.
    """
    n, h, w, _ = x.shape
    weight = jnp.ones(n) if weight is None else weight
    # Each example's share in the mean, of its H·W positions together.
    share = (weight / (weight.sum() * h * w)).astype(jnp.float32)[:, None, None, None]
    x = x.astype(jnp.float32)
    mean = (share * x).sum(axis=(0, 1, 2))
    return mean, (share * jnp.square(x - mean)).sum(axis=(0, 1, 2))


def concatenate_stats(stats: Sequence[MeanVar]) -> MeanVar:
    """Joins the statistics of features that are concatenated."""
    means, variances = zip(*stats, strict=True)
    return jnp.concatenate(means), jnp.concatenate(variances)


class BatchNorm(nn.Module):
    """Batch normalization whose mode is an attribute and whose statistics can be handed in.

    Flax's own has no weights for padding, no way to reuse known statistics, and updates running
    statistics by another rule than Keras where a batch is padded.

    Attributes:
      features: channels.
      epsilon: added to the variance.
      momentum: share of the running statistics that an update keeps.
      train: normalize with the batch's statistics and update the running ones, as in training.
      kernels: what to compute with; None for what stands here.
    """

    features: int
    epsilon: float
    momentum: float
    train: bool
    kernels: Kernels | None

    def setup(self):
        """Declares parameters and running statistics, with Keras's initial values."""
        shape = (self.features,)
        # Statistics and parameters stay float32 in a bfloat16 network: updates of 1 % would vanish.
        self.scale = self.param("scale", nn.initializers.ones_init(), shape, jnp.float32)
        self.bias = self.param("bias", nn.initializers.zeros_init(), shape, jnp.float32)
        self.mean = self.variable("batch_stats", "mean", jnp.zeros, shape, jnp.float32)
        self.var = self.variable("batch_stats", "var", jnp.ones, shape, jnp.float32)

    @property
    def running_stats(self) -> MeanVar:
        """Mean and variance that inference mode uses."""
        return self.mean.value, self.var.value

    @property
    def affine(self) -> tuple[Float[Array, " C"], Float[Array, " C"]]:
        """Factor and shift of each channel that inference mode amounts to."""
        return affine(self.scale, self.bias, self.running_stats, self.epsilon)

    def batch_stats(
        self, x: Float[Array, "N H W c"], weight: Float[Array, " N"] | None = None
    ) -> MeanVar:
        """Computes the batch's statistics of the last channels that this norm reads.

        Args:
          x: those channels; all of them or fewer.
          weight: how much each example counts.
        """
        if self.kernels is None:
            stats = mean_var(x, weight)
        else:
            stats = self.kernels.mean_var(x, weight, self.mean.value[-x.shape[-1] :])
        return checkpoint_name(stats, "stats")  # small, and a pass over all rows to compute again

    def __call__(
        self,
        x: Float[Array, "N H W C"],
        weight: Float[Array, " N"] | None = None,
        stats: MeanVar | None = None,
    ) -> Float[Array, "N H W C"]:
        """Normalizes in float32, to the dtype of `x`.

        Args:
          x: any floating dtype.
          weight: how much each example counts in the batch's statistics.
          stats: the batch's statistics of the first channels or of all, where they are known.
        """
        if self.train:
            known = len(stats[0]) if stats else 0
            if known < self.features:
                rest = self.batch_stats(x[..., known:], weight)
                stats = concatenate_stats([stats, rest]) if stats else rest
            assert stats is not None
            self.update_running_stats(stats)
        else:
            stats = self.running_stats
        if self.kernels is not None:
            return normalize(x, self.scale, self.bias, stats, self.epsilon)
        mean, var = stats
        # float32 statistics make the whole expression float32; it is rounded once, at the end.
        y = (x - mean) * (self.scale * jax.lax.rsqrt(var + self.epsilon)) + self.bias
        return y.astype(x.dtype)

    def then_relu(
        self,
        parts: Sequence[Float[Array, "N H W _"]],
        weight: Float[Array, " N"] | None = None,
        stats: MeanVar | None = None,
    ) -> Float[Array, "N H W C"]:
        """Normalizes features given in parts and applies ReLU; arguments as for the norm alone."""
        if self.kernels is None or self.kernels.norm_relu is None:
            return nn.relu(self(jnp.concatenate(parts, axis=-1), weight, stats))
        if self.train:
            if stats is None:
                stats = self.batch_stats(jnp.concatenate(parts, axis=-1), weight)
            self.update_running_stats(stats)
        else:
            stats = self.running_stats
        return self.kernels.norm_relu(parts, self.scale, self.bias, stats, self.epsilon)

    def update_running_stats(self, stats: MeanVar) -> None:
        """Moves the running statistics towards those of a batch.

        Where the collection `mean_var` is mutable, the batch's statistics are stored there too, for
        a caller who updates all running statistics at once.
        """
        if self.is_initializing():
            return
        if self.is_mutable_collection("mean_var"):
            self.put_variable("mean_var", "mean", stats[0])
            self.put_variable("mean_var", "var", stats[1])
        if self.is_mutable_collection("batch_stats"):
            updated = ema_update(self.running_stats, stats, self.momentum)
            self.mean.value, self.var.value = updated


def ema_update(average: Tree, new: Tree, momentum: float) -> Tree:
    """Updates exponential moving averages, a tree of arrays, by Keras's rule."""
    return jax.tree.map(lambda a, b: momentum * a + (1 - momentum) * b, average, new)
