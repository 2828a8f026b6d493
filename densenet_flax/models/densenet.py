"""DenseNet as a line of named units, with Keras's layer names and Keras's numbers.

    stem  conv2_block1 … conv2_block6  pool2  conv3_block1 …  pool4  conv5_block1 …  norm  head

Architecture: Huang, Liu, van der Maaten and Weinberger, "Densely Connected Convolutional
Networks", CVPR 2017. Numbers (padding, epsilon, momentum, initialisers): `keras.applications`,
`densenet.py`. Parameters are nested so that a path joined with `_` is Keras's layer name:
`params['conv4_block23']['2_conv']['kernel']` is the kernel of `conv4_block23_2_conv`.
(The head is the exception: `params['head']['predictions']` is Keras's `predictions`.)
"""

import functools
import itertools
from collections.abc import Callable, Collection, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from densenet_flax.kernels.dense_block import HalfBlock, Manner, dense_stage, side_by_side
from densenet_flax.models.layers import (
    BatchNorm,
    Kernel,
    MeanVar,
    average_pool,
    max_pool_of_relu,
    mean_var,
    pointwise,
)
from densenet_flax.models.units import unit_names


class Block(nn.Module):
    """One unit of a dense stage: norm, ReLU, 1×1, norm, ReLU, 3×3; gives `growth_rate` channels.

    It holds the variables; `dense_stage` computes with them.
    """

    features: int
    growth_rate: int
    norm: Callable[..., BatchNorm]

    def setup(self):
        """Declares the layers under Keras's names."""
        narrow = 4 * self.growth_rate
        self.norm_0 = self.norm(self.features, name="0_bn")
        self.narrow = Kernel((1, 1, self.features, narrow), name="1_conv")
        self.norm_1 = self.norm(narrow, name="1_bn")
        self.grow = Kernel((3, 3, narrow, self.growth_rate), name="2_conv")

    def halves(self) -> tuple[HalfBlock, HalfBlock]:
        """Its variables, as `dense_stage` takes them."""
        return (
            HalfBlock(self.norm_0.scale, self.norm_0.bias, self.norm_0.running, self.narrow()),
            HalfBlock(self.norm_1.scale, self.norm_1.bias, self.norm_1.running, self.grow()),
        )

    def observe(self, moments_0: MeanVar | None, moments_1: MeanVar | None) -> None:
        """Moves the running statistics of its norms towards these moments, where they are given."""
        self.norm_0.observe(moments_0)
        self.norm_1.observe(moments_1)


class Stem(nn.Module):
    """7×7 convolution of stride 2, norm, ReLU, 3×3 max pooling of stride 2.

    The padding is explicit, 3 and 1 on every side, as in Keras and torch: `SAME` would agree at
    some image sizes only.
    """

    features: int
    norm: Callable[..., BatchNorm]
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, weight: jax.Array | None, live: bool) -> jax.Array:
        """Images `[N, H, W, 3]` in, `[N, H/4, W/4, features]` out."""
        x = nn.Conv(
            self.features,
            (7, 7),
            strides=2,
            padding=3,
            use_bias=False,
            dtype=self.dtype,
            kernel_init=nn.initializers.glorot_uniform(),
            name="conv",
        )(x)
        moments = mean_var(x, weight) if live else None
        return max_pool_of_relu(nn.relu(self.norm(self.features, name="bn")(x, moments)))


class Transition(nn.Module):
    """Between two dense stages: norm, ReLU, 2×2 average pooling, 1×1 to half the channels.

    The paper and Keras pool after the convolution. Both are linear, and a mean over positions goes
    past a product over channels: the results are the same, of a quarter of the products.
    """

    norm: Callable[..., BatchNorm]

    @nn.compact
    def __call__(self, x: jax.Array, moments: MeanVar | None) -> jax.Array:
        """`[N, H, W, C]`, and its moments if the norm is live, to `[N, H/2, W/2, C/2]`."""
        c = x.shape[-1]
        x = nn.relu(self.norm(c, name="bn")(x, moments))
        return pointwise(average_pool(x), Kernel((1, 1, c, c // 2), name="conv")())


class Head(nn.Module):
    """Global average pooling, then dropout and ReLU layers, then one Dense layer to the logits.

    In float32, whatever the network computes in. `hidden=(256,)` and `dropout=0.5` are the
    recipe's: pool, dropout, Dense 256 ReLU, dropout, Dense `num_classes`.
    """

    num_classes: int
    hidden: Sequence[int]
    dropout: float

    @nn.compact
    def __call__(self, x: jax.Array, *, dropout: bool) -> jax.Array:
        """Features `[N, h, w, C]`, or already pooled `[N, C]`, to logits `[N, num_classes]`."""
        x = pool(x)
        for i, features in enumerate(self.hidden, start=1):
            x = nn.Dropout(self.dropout, deterministic=not dropout)(x)
            x = nn.relu(nn.Dense(features, name=f"dense_{i}", **_DENSE)(x))
        x = nn.Dropout(self.dropout, deterministic=not dropout)(x)
        return nn.Dense(self.num_classes, name="predictions", **_DENSE)(x)


def pool(x: jax.Array) -> jax.Array:
    """Global average pooling in float32; features `[N, C]` that are pooled already stay."""
    return x.mean(axis=(1, 2), dtype=jnp.float32) if x.ndim == 4 else x.astype(jnp.float32)


class DenseNet(nn.Module):
    """A DenseNet: the backbone, and a head if `num_classes` is given.

    Use `DenseNet121`, `DenseNet161`, `DenseNet169` or `DenseNet201`.

    Attributes:
      blocks: blocks in each dense stage.
      num_classes: 0 for the backbone alone (Keras: `include_top=False`), which returns features
        `[N, H/32, W/32, C]`; else the model returns logits `[N, num_classes]`, never probabilities.
      hidden: sizes of the ReLU layers between pooling and the last Dense layer; none by default.
      dropout: rate before each Dense layer of the head.
      growth_rate: channels that a block adds.
      stem_features: channels of the stem.
      epsilon: of every BatchNorm; Keras 1.001e-5, torch 1e-5.
      momentum: share of the running statistics kept at each step; Keras 0.99.
      final_relu: whether a ReLU follows the last norm (TIAToolbox's networks have none).
      dtype: what convolutions and activations are computed in. Parameters, statistics and the
        head are float32 in any case.
      remat: what the backward pass of training computes again instead of keeping it: 'none';
        'bottleneck', the norms and ReLUs, so that all channels and each block's bottleneck are
        kept once; 'block', the 1×1 convolutions also. The gradients are the same.
    """

    blocks: Sequence[int]
    num_classes: int = 0
    hidden: Sequence[int] = ()
    dropout: float = 0.0
    growth_rate: int = 32
    stem_features: int = 64
    epsilon: float = 1.001e-5
    momentum: float = 0.99
    final_relu: bool = True
    dtype: Any = jnp.float32
    remat: str = "bottleneck"

    @property
    def units(self) -> tuple[str, ...]:
        """Names of the units in order; 'head' is last if the model has one."""
        return unit_names(self.blocks) + (("head",) if self.num_classes else ())

    def entering(self, unit: str, images: Sequence[int]) -> tuple[int, ...]:
        """Shape of what enters a unit: `[N, H, W, C]`, or pooled features `[N, C]` at 'head'.

        Args:
          unit: which.
          images: shape of the images, `[N, H, W, 3]`.
        """
        n, h, w, channels = images
        for passed in self.units[: self.units.index(unit)]:
            if passed == "stem":  # a convolution and a pooling, each of stride 2 with padding
                h, w, channels = -(-h // 4), -(-w // 4), self.stem_features
            elif passed.startswith("pool"):
                h, w, channels = h // 2, w // 2, channels // 2
            elif passed != "norm":
                channels += self.growth_rate
        return (n, channels) if unit == "head" else (n, h, w, channels)

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        *,
        start: str | None = None,
        stop: str | None = None,
        train_norms: Collection[str] = (),
        dropout: bool = False,
        weight: jax.Array | None = None,
    ) -> jax.Array:
        """Runs the units from `start` up to, not including, `stop`; by default all of them.

        Args:
          x: preprocessed images, float `[N, H, W, 3]` with H, W ≥ 32; or, with `start`, what the
            units before it give. `start='head'` takes feature maps or pooled features `[N, C]`.
          start: first unit to run.
          stop: unit to stop before.
          train_norms: Keras names of the BatchNorms that use the batch's statistics and, where
            `batch_stats` is mutable, update the running ones. All others are in inference mode.
          dropout: whether dropout is on; needs `rngs={'dropout': key}`.
          weight: `[N]`, how much each example counts in batch statistics; padding has 0.

        Raises:
          ValueError: `start` or `stop` is no unit, or `x` is not what the first unit takes.
        """
        units = self.units
        for name in (start, stop):
            if name is not None and name not in units:
                raise ValueError(f"{name!r} is no unit of this network: {', '.join(units)}")
        first = units.index(start) if start else 0
        last = units.index(stop) if stop else len(units)
        if first == 0:
            _check_images(x)

        norm = functools.partial(BatchNorm, epsilon=self.epsilon, momentum=self.momentum)
        x = x if units[first] == "head" else x.astype(self.dtype)
        moments: MeanVar | None = None  # of what x holds, once a norm has asked for them
        for part, members in itertools.groupby(units[first:last], _part):
            if part == "head":
                head = Head(self.num_classes, self.hidden, self.dropout, name="head")
                return head(x, dropout=dropout)
            if part == "stem":
                stem = Stem(self.stem_features, norm, self.dtype, name="conv1")
                x = stem(x, weight, "conv1_bn" in train_norms)
            elif part.startswith("conv"):
                x, moments = self._dense_stage(x, tuple(members), norm, train_norms, weight)
                continue
            else:
                live = ("bn" if part == "norm" else f"{part}_bn") in train_norms
                given = (moments or mean_var(x, weight)) if live else None
                if part == "norm":
                    x = norm(x.shape[-1], name="bn")(x, given)
                    x = nn.relu(x) if self.final_relu else x
                else:
                    x = Transition(norm, name=part)(x, given)
            moments = None
        return x

    def _dense_stage(self, x, units, norm, train_norms, weight):
        """Runs blocks that follow each other: to the channels, and their moments if known."""
        live = tuple((f"{u}_0_bn" in train_norms, f"{u}_1_bn" in train_norms) for u in units)
        channels = [x.shape[-1] + i * self.growth_rate for i in range(len(units))]
        blocks = [
            Block(c, self.growth_rate, norm, name=unit)
            for c, unit in zip(channels, units, strict=True)
        ]
        moments = mean_var(x, weight) if any(first for first, _ in live) else None
        x, moments, of_bottlenecks = dense_stage(
            Manner(live, self.epsilon, self.remat, 1 if self.remat == "none" else _pieces(x)),
            x,
            moments,
            weight,
            [block.halves() for block in blocks],
        )
        of_channels = [side_by_side([leaf[:c] for c in channels]) for leaf in moments or ()]
        firsts: Sequence[Any] = list(zip(*of_channels, strict=True)) or [None] * len(blocks)
        for block, (is_live, _), first, second in zip(
            blocks, live, firsts, of_bottlenecks, strict=True
        ):
            block.observe(first if is_live else None, second)
        return x, moments


_POSITIONS = 392  # of a piece, at least: two maps of 14×14


def _pieces(x: jax.Array) -> int:
    """Into how many pieces a dense stage divides a batch, `[N, H, W, C]`.

    On a single CPU device, so many that a piece of whole images has a few hundred positions: it
    stays in the cache then, and its matrix products are still large. Elsewhere 1: other devices
    want all the work at once, and many devices have divided the batch already.
    """
    n, h, w, _ = x.shape
    if jax.default_backend() != "cpu" or jax.device_count() > 1 or not isinstance(n, int):
        return 1
    return max(
        k for k in range(1, n + 1) if n % k == 0 and (k == 1 or n // k * h * w >= _POSITIONS)
    )


def _part(unit: str) -> str:
    """The blocks of a dense stage are one part of the network, every other unit is its own."""
    return unit.partition("_block")[0]


def DenseNet121(**kwargs) -> DenseNet:
    """DenseNet-121: 7,037,504 parameters without the head. Arguments as for `DenseNet`."""
    return DenseNet(blocks=(6, 12, 24, 16), **kwargs)


def DenseNet161(**kwargs) -> DenseNet:
    """DenseNet-161 (torchvision and timm only): growth rate 48, stem of 96 channels."""
    return DenseNet(blocks=(6, 12, 36, 24), growth_rate=48, stem_features=96, **kwargs)


def DenseNet169(**kwargs) -> DenseNet:
    """DenseNet-169: 12,642,880 parameters without the head. Arguments as for `DenseNet`."""
    return DenseNet(blocks=(6, 12, 32, 32), **kwargs)


def DenseNet201(**kwargs) -> DenseNet:
    """DenseNet-201: 18,321,984 parameters without the head. Arguments as for `DenseNet`."""
    return DenseNet(blocks=(6, 12, 48, 32), **kwargs)


NETWORKS: dict[str, Callable[..., DenseNet]] = {
    "densenet121": DenseNet121,
    "densenet161": DenseNet161,
    "densenet169": DenseNet169,
    "densenet201": DenseNet201,
}

_DENSE: dict[str, Any] = {"kernel_init": nn.initializers.glorot_uniform()}


def _check_images(x: jax.Array) -> None:
    if x.ndim != 4 or min(x.shape[1:3]) < 32:
        raise ValueError(f"images: expected [N, H, W, 3] with H, W of at least 32, got {x.shape}")
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(
            f"images: expected preprocessed floats, got {x.dtype}; call preprocess_input first"
        )
