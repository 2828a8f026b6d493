"""DenseNet (Huang et al., CVPR 2017) in Flax, with the names and numbers of keras.applications.

    stem  conv2_block1 … conv2_block6  pool2  conv3_block1 …  pool4  conv5_block1 …  norm  head

This file is the network: read it top to bottom. `implementation='reference'` computes exactly
what stands here; the others replace operations by those of `kernels`, which compute the same in
forms that suit a kind of device, and are tested against this file.

Padding, epsilon, momentum and initial values are Keras's. Parameters are nested so that a path
joined with `_` is Keras's layer name: the kernel of `conv4_block23_2_conv` is
`params['conv4_block23']['2_conv']['kernel']`. Only the head is nested under a name of its own.
"""

import functools
import itertools
from collections.abc import Callable, Collection, Sequence
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from densenet_flax.kernels.convolution import conv1x1_affine_relu
from densenet_flax.kernels.device_kernels import KERNELS, Kernels
from densenet_flax.kernels.matmul import product_precision
from densenet_flax.kernels.normalization import MeanVar
from densenet_flax.kernels.parts import MAX_PARTS, concatenate_parts, split_like
from densenet_flax.models.fused import fused_dense_block
from densenet_flax.models.layers import BatchNorm, Conv, concatenate_stats
from densenet_flax.models.units import unit_names

Implementation = Literal["reference", "fused", "gpu", "tpu"]
Remat = Literal["none", "bottleneck", "block"]
IMPLEMENTATIONS, REMAT = get_args(Implementation), get_args(Remat)
Weight = Float[Array, " N"] | None
NormFactory = Callable[..., BatchNorm]  # (features, *names): the names joined are Keras's

dense = functools.partial(
    nn.Dense,
    kernel_init=nn.initializers.glorot_uniform(),
    precision=product_precision(jnp.float32),
)


class Stem(nn.Module):
    """7×7 convolution of stride 2, norm, ReLU, 3×3 max pooling of stride 2.

    The padding is explicit, 3 and 1 on every side, as in Keras and PyTorch: 'SAME' would agree at
    some image sizes only.
    """

    features: int
    norm: NormFactory
    kernels: Kernels | None

    @nn.compact
    def __call__(self, x: Float[Array, "N H W 3"], weight: Weight) -> Float[Array, "N h w C"]:
        """Images to features of a quarter of their height and width."""
        conv = Conv((7, 7, x.shape[-1], self.features), strides=2, padding=3, name="conv")
        x = self.kernels.stem_conv(x, conv.kernel) if self.kernels else conv(x)
        x = nn.relu(self.norm(self.features, "conv1", "bn")(x, weight))
        if self.kernels:
            return self.kernels.max_pool(x)
        return nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))


class DenseLayer(nn.Module):
    """Norm, ReLU, 1×1 convolution, norm, ReLU, 3×3 convolution: `growth_rate` new features."""

    features: int
    growth_rate: int
    norm: NormFactory
    kernels: Kernels | None

    def setup(self):
        """Declares the layers under Keras's names."""
        bottleneck = 4 * self.growth_rate
        self.norm_0 = self.norm(self.features, self.name, "0_bn")
        self.conv_1 = Conv((1, 1, self.features, bottleneck), name="1_conv")
        self.norm_1 = self.norm(bottleneck, self.name, "1_bn")
        self.conv_2 = Conv((3, 3, bottleneck, self.growth_rate), padding=1, name="2_conv")

    def __call__(
        self,
        features: Sequence[Float[Array, "N H W _"]],
        stats: Sequence[MeanVar],
        weight: Weight,
    ) -> tuple[Float[Array, "N H W G"], list[MeanVar]]:
        """Computes new features from all features of the dense block so far.

        Args:
          features: what entered the block, then each layer's.
          stats: batch statistics of the first of them, as far as an earlier norm needed them.
          weight: how much each example counts in them.

        Returns:
          The new features, and the batch statistics of those that were read, if a norm used them.
        """
        stats = list(stats)
        if self.norm_0.train:  # each channel's are computed by the first norm that needs them
            unknown = features[len(stats) :]
            rest = jnp.concatenate(unknown, axis=-1) if len(unknown) > 1 else unknown[0]
            means, variances = self.norm_0.batch_stats(rest, weight)
            stats += zip(split_like(means, unknown), split_like(variances, unknown), strict=True)
        # Concatenated in here: with `remat` a layer keeps its parts, not another copy of all.
        y = self.norm_0.then_relu(features, weight, concatenate_stats(stats) if stats else None)
        if self.kernels and not self.norm_1.train:
            y = conv1x1_affine_relu(y, self.conv_1.kernel, *self.norm_1.affine)
            y = checkpoint_name(y, "bottleneck")
        else:
            y = checkpoint_name(self.conv_1(y), "bottleneck")
            y = self.norm_1.then_relu([y], weight)
        return self.conv_2(y), stats


class Transition(nn.Module):
    """Norm, ReLU, 1×1 convolution to half the channels, 2×2 average pooling of stride 2."""

    norm: NormFactory
    kernels: Kernels | None

    @nn.compact
    def __call__(
        self, x: Float[Array, "N H W C"], weight: Weight, stats: MeanVar | None
    ) -> Float[Array, "N H//2 W//2 C//2"]:
        """Halves height, width and channels."""
        c = x.shape[-1]
        x = nn.relu(self.norm(c, self.name, "bn")(x, weight, stats))
        conv = Conv((1, 1, c, c // 2), name="conv")
        if self.kernels:
            return self.kernels.conv1x1_avg_pool(x, conv.kernel)
        return nn.avg_pool(conv(x), (2, 2), strides=(2, 2))


class Head(nn.Module):
    """Global average pooling, then dropout and ReLU layers, then one Dense layer to the logits.

    In float32, whatever the network computes in. `hidden=(256,)` and `dropout=0.5` make the
    recipe's: pool, dropout, Dense 256 ReLU, dropout, Dense `num_classes`.
    """

    num_classes: int
    hidden: Sequence[int]
    dropout: float

    @nn.compact
    def __call__(self, x: Float[Array, "N *hwC"], *, dropout: bool) -> Float[Array, "N K"]:
        """Features `[N, h, w, C]`, or already pooled ones `[N, C]`, to logits."""
        x = global_average_pool(x)
        for i, features in enumerate(self.hidden, start=1):
            x = nn.Dropout(self.dropout, deterministic=not dropout)(x)
            x = nn.relu(dense(features, name=f"dense_{i}")(x))
        x = nn.Dropout(self.dropout, deterministic=not dropout)(x)
        return dense(self.num_classes, name="predictions")(x)


def global_average_pool(x: Float[Array, "N *hwC"]) -> Float[Array, "N C"]:
    """Averages over positions in float32; features that are pooled already stay."""
    return x.mean(axis=(1, 2), dtype=jnp.float32) if x.ndim == 4 else x.astype(jnp.float32)


_POLICIES = jax.checkpoint_policies
_REMATTED = {  # what the backward pass finds saved of a layer: all, the bottleneck, or its inputs
    "none": DenseLayer,
    "bottleneck": nn.remat(
        DenseLayer, policy=_POLICIES.save_only_these_names("bottleneck", "stats")
    ),
    "block": nn.remat(DenseLayer, policy=_POLICIES.save_only_these_names("stats")),
}


class DenseNet(nn.Module):
    """A DenseNet: the backbone, and a head if `num_classes` is given.

    Use `DenseNet121`, `DenseNet161`, `DenseNet169` or `DenseNet201`.

    Attributes:
      blocks: layers in each dense block.
      num_classes: 0 for the backbone alone (Keras: `include_top=False`), which returns features
        `[N, H/32, W/32, C]`; else the model returns logits `[N, num_classes]`, never probabilities.
      hidden: sizes of the ReLU layers between pooling and the last Dense layer; none by default.
      dropout: rate before each Dense layer of the head.
      growth_rate: channels that a dense layer adds.
      stem_features: channels of the stem.
      epsilon: of every BatchNorm; Keras 1.001e-5, PyTorch 1e-5.
      momentum: share of the running statistics kept at each step; Keras 0.99.
      final_relu: whether a ReLU follows the last norm (TIAToolbox's networks have none).
      dtype: what convolutions and activations are computed in; float32 is float32 on a GPU and a
        TPU too. Parameters, statistics and the head are float32 in any case.
      remat: what the backward pass of training computes again instead of keeping it: 'none';
        'bottleneck', concatenations, norms and ReLUs, so that each layer's bottleneck and new
        features are kept once; 'block', the 1×1 convolutions also. The gradients are the same.
        None: 'none' for implementations 'gpu' and 'tpu', else 'bottleneck'.
      implementation: 'reference'; 'fused', 'gpu' or 'tpu', kernels for a CPU, GPU or TPU, which
        compute the same on any device; or None for what is fastest on the default backend.
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
    dtype: DTypeLike = jnp.float32
    remat: Remat | None = None
    implementation: Implementation | None = None

    @property
    def units(self) -> tuple[str, ...]:
        """Names of the units in order; 'head' is last if the model has one."""
        return unit_names(self.blocks) + (("head",) if self.num_classes else ())

    @property
    def computation(self) -> str:
        """In which precision and by which implementation it computes here, in words."""
        dtype = jnp.dtype(self.dtype).name
        precision = "float32 at highest precision"
        if dtype != "float32":
            precision = f"{dtype}, head and statistics in float32"
        return f"{precision}; implementation {self.implementation or default_implementation()}"

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "N *hwC"],
        *,
        start: str | None = None,
        stop: str | None = None,
        train_norms: Collection[str] = (),
        dropout: bool = False,
        weight: Weight = None,
    ) -> Float[Array, "N *_"]:
        """Runs the units from `start` up to, not including, `stop`; by default all of them.

        Args:
          x: preprocessed images `[N, H, W, 3]` with H, W ≥ 32; or, with `start`, the output of the
            unit before it. `start='head'` takes feature maps or pooled features `[N, C]`.
          start: first unit to run.
          stop: unit to stop before.
          train_norms: Keras names of the BatchNorms that use the batch's statistics and, where
            `batch_stats` is mutable, update the running ones. All others are in inference mode.
          dropout: whether dropout is on; needs `rngs={'dropout': key}`.
          weight: how much each example counts in batch statistics; padding has 0.

        Raises:
          ValueError: `start` or `stop` is no unit, or `x` is not what the first unit takes.
        """
        kernels = KERNELS[self.implementation or default_implementation()]

        # One place decides which norms train; modules only ask for a norm by its Keras name.
        def norm(features: int, *names: str) -> BatchNorm:
            train = "_".join(names) in train_norms
            return BatchNorm(features, self.epsilon, self.momentum, train, kernels, name=names[-1])

        units = self._between(start, stop)
        if units[:1] == ("stem",):
            _check_images(x)
        x = x if units[:1] == ("head",) else x.astype(self.dtype)  # the head is float32
        stats: MeanVar | None = None  # of what `x` holds, where a dense block has computed them
        for part, members in itertools.groupby(units, lambda unit: unit.partition("_block")[0]):
            if part == "stem":
                x = Stem(self.stem_features, norm, kernels, name="conv1")(x, weight)
            elif part.startswith("conv"):
                x, stats = self._dense_block(tuple(members), x, weight, norm, kernels)
            elif part.startswith("pool"):
                x, stats = Transition(norm, kernels, name=part)(x, weight, stats), None
            elif part == "norm":
                x = norm(x.shape[-1], "bn")(x, weight, stats)
                x = nn.relu(x) if self.final_relu else x
            else:
                x = Head(self.num_classes, self.hidden, self.dropout, name=part)(x, dropout=dropout)
        return x

    def _dense_block(
        self,
        units: Sequence[str],
        x: Float[Array, "N H W C"],
        weight: Weight,
        norm: NormFactory,
        kernels: Kernels | None,
    ) -> tuple[Float[Array, "N H W D"], MeanVar | None]:
        """Runs consecutive dense layers; returns all features, and the statistics that they used.

        Every layer reads all features before it, so the batch statistics of a channel are the same
        for every norm that sees it: they are computed once, by the first.
        """
        remat = self.remat or (kernels.remat if kernels else "bottleneck")
        whole = kernels is not None and kernels.norm_relu is None
        layer_class = DenseLayer if whole else _REMATTED[remat]
        layers = [
            layer_class(
                x.shape[-1] + i * self.growth_rate, self.growth_rate, norm, kernels, name=unit
            )
            for i, unit in enumerate(units)
        ]
        if whole:
            return fused_dense_block(layers, x, weight, self.epsilon, remat)
        features, stats = [x], list[MeanVar]()
        for layer in layers:
            new, stats = layer(features, stats, weight)
            if kernels and len(features) == MAX_PARTS:
                # Without the first part, which needs no gradient where nothing before it trains.
                features = [features[0], concatenate_parts(features[1:])]
                stats = [stats[0], concatenate_stats(stats[1:])] if stats else []
            features.append(new)
        return jnp.concatenate(features, axis=-1), concatenate_stats(stats) if stats else None

    def _between(self, start: str | None, stop: str | None) -> tuple[str, ...]:
        units = self.units
        for name in (start, stop):
            if name is not None and name not in units:
                raise ValueError(f"{name!r} is no unit of this network: {', '.join(units)}")
        first = units.index(start) if start else 0
        return units[first : units.index(stop) if stop else len(units)]

    def input_shape(self, unit: str, images: Sequence[int]) -> tuple[int, ...]:
        """Computes the shape of what enters a unit from that of the images, `[N, H, W, 3]`.

        It is `[N, H, W, C]`, or `[N, C]`, the pooled features, at 'head'.
        """
        n, h, w, channels = images
        for earlier in self.units[: self.units.index(unit)]:
            if earlier == "stem":  # a convolution and a pooling, each of stride 2 with padding
                h, w, channels = -(-h // 4), -(-w // 4), self.stem_features
            elif earlier.startswith("pool"):
                h, w, channels = h // 2, w // 2, channels // 2
            elif earlier != "norm":
                channels += self.growth_rate
        return (n, channels) if unit == "head" else (n, h, w, channels)


def default_implementation() -> Implementation:
    """Returns what is fastest on the default backend; no other place decides it.

    Measured on a CPU, where a training step from layer 300 takes half the time of the reference's;
    for a TPU v5e and an H100 by XLA's estimates of the compiled programs (docs/benchmarks.md).
    """
    fastest: dict[str, Implementation] = {"cpu": "fused", "gpu": "gpu", "tpu": "tpu"}
    return fastest.get(jax.default_backend(), "reference")


def _check_images(x: Array) -> None:
    if x.ndim != 4 or min(x.shape[1:3]) < 32:
        raise ValueError(f"images: expected [N, H, W, 3] with H, W of at least 32, got {x.shape}")
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(
            f"images: expected preprocessed floats, got {x.dtype}; call preprocess_input first"
        )


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
