"""DenseNet as a line of named units, with Keras's layer names and Keras's numbers.

    stem  conv2_block1 … conv2_block6  pool2  conv3_block1 …  pool4  conv5_block1 …  norm  head

Architecture: Huang, Liu, van der Maaten and Weinberger, "Densely Connected Convolutional
Networks", CVPR 2017. Numbers (padding, epsilon, momentum, initialisers): `keras.applications`,
`densenet.py`. Parameters are nested so that a path joined with `_` is Keras's layer name:
`params['conv4_block23']['2_conv']['kernel']` is the kernel of `conv4_block23_2_conv`.
(The head is the exception: `params['head']['predictions']` is Keras's `predictions`.)
"""

import zlib
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name

from densenet_flax.layers import BatchNorm, Conv3x3, Moments, Pointwise, batch_moments

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

REMAT = ("none", "bottleneck", "block")


def preprocess_input(images, mode: str = "torch") -> jax.Array:
    """Pixels to what the network was trained on.

    Args:
      images: `[..., H, W, 3]` RGB, 0 to 255, usually uint8.
      mode: `'torch'`, x/255 less the ImageNet mean, over the ImageNet standard deviation, which is
        what `keras.applications.densenet.preprocess_input` does; or `'scale'`, x/255 alone.

    Returns:
      float32 of the same shape.

    Raises:
      ValueError: the mode is unknown, or the last axis is not three channels.
    """
    x = jnp.asarray(images)
    if x.shape[-1] != 3:
        raise ValueError(f"images: expected RGB with 3 channels last, got shape {x.shape}")
    x = x.astype(jnp.float32) / 255.0
    if mode == "torch":
        return (x - jnp.array(IMAGENET_MEAN)) / jnp.array(IMAGENET_STD)
    if mode == "scale":
        return x
    raise ValueError(f"preprocessing mode {mode!r}: expected 'torch' or 'scale'")


class Block(nn.Module):
    """One unit of a dense stage: norm, ReLU, 1×1, norm, ReLU, 3×3; gives `growth_rate` channels.

    The batch moments of a channel are the same for every later norm of the stage, so they are
    computed once, when the channel is born, and handed along with the features.
    """

    growth_rate: int
    norm: Callable[..., BatchNorm]
    dtype: Any

    @nn.compact
    def __call__(self, pieces, moments, is_live, weight):
        """All channels before, in pieces, and their moments if known; to the new channels."""
        x = _concatenate(pieces)
        live = moments if is_live(f"{self.name}_0_bn") else None
        y = nn.relu(self.norm(name="0_bn")(x, live))
        y = Pointwise(4 * self.growth_rate, self.dtype, name="1_conv")(y)
        y = checkpoint_name(y, "bottleneck")
        live = batch_moments(y, weight) if is_live(f"{self.name}_1_bn") else None
        y = nn.relu(self.norm(name="1_bn")(y, live))
        return Conv3x3(self.growth_rate, self.dtype, name="2_conv")(y)


class Stem(nn.Module):
    """7×7 convolution of stride 2, norm, ReLU, 3×3 max pooling of stride 2.

    The padding is explicit, 3 and 1 on every side, as in Keras and torch: `SAME` would agree at
    some image sizes only.
    """

    features: int
    norm: Callable[..., BatchNorm]
    dtype: Any

    @nn.compact
    def __call__(self, x, is_live, weight):
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
        live = batch_moments(x, weight) if is_live(f"{self.name}_bn") else None
        x = nn.relu(self.norm(name="bn")(x, live))
        # After a ReLU, max_pool's padding with -inf equals Keras's padding with zeros.
        return nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))


class Transition(nn.Module):
    """Between two dense stages: norm, ReLU, 1×1 to half the channels, 2×2 average pooling."""

    norm: Callable[..., BatchNorm]
    dtype: Any

    @nn.compact
    def __call__(self, x, moments, is_live):
        """`[N, H, W, C]` and its moments if known in, `[N, H/2, W/2, C/2]` out."""
        x = nn.relu(self.norm(name="bn")(x, moments if is_live(f"{self.name}_bn") else None))
        x = Pointwise(x.shape[-1] // 2, self.dtype, name="conv")(x)
        return nn.avg_pool(x, (2, 2), strides=(2, 2))


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
        'bottleneck', each block's first norm and ReLU, which are its widest; 'block', all of a
        block. The gradients are the same.
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
    remat: str = "none"

    @property
    def units(self) -> tuple[str, ...]:
        """Names of the units in order; 'head' is last if the model has one."""
        return line_of_units(self.blocks) + (("head",) if self.num_classes else ())

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        *,
        start: str | None = None,
        stop: str | None = None,
        live_norms: Collection[str] = (),
        dropout: bool = False,
        weight: jax.Array | None = None,
    ) -> jax.Array:
        """Runs the units from `start` up to, not including, `stop`; by default all of them.

        Args:
          x: preprocessed images, float `[N, H, W, 3]` with H, W ≥ 32; or, with `start`, what the
            units before it give. `start='head'` takes feature maps or pooled features `[N, C]`.
          start: first unit to run.
          stop: unit to stop before.
          live_norms: Keras names of the BatchNorms that use the batch's statistics and, where
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

        def is_live(layer: str) -> bool:
            return layer in live_norms

        def norm(name: str) -> BatchNorm:
            return BatchNorm(self.epsilon, self.momentum, self.dtype, name=name)

        block: Any = Block
        if self.remat != "none":
            saved = ["bottleneck"] if self.remat == "bottleneck" else []
            policy = jax.checkpoint_policies.save_only_these_names(*saved)
            block = nn.remat(Block, policy=policy, static_argnums=(3,))
        # The channels of a dense stage, and their moments once a norm of the stage is live. To
        # compute again what was concatenated, one must keep the pieces that it was made from.
        pieces: tuple[jax.Array, ...] = (x if units[first] == "head" else x.astype(self.dtype),)
        moments: Moments | None = None
        for unit in units[first:last]:
            opens = _first_norm_is_live(unit, is_live)
            if opens and moments is None:
                moments = batch_moments(_concatenate(pieces), weight)
            if unit == "head":
                head = Head(self.num_classes, self.hidden, self.dropout, name="head")
                return head(_concatenate(pieces), dropout=dropout)
            if "_block" in unit:
                run = block(self.growth_rate, norm, self.dtype, name=unit)
                born = run(pieces, moments, is_live, weight)
                pieces = (*pieces, born)
                if self.remat == "none":
                    pieces = (_concatenate(pieces),)
                if moments is not None:
                    mean, var = batch_moments(born, weight)
                    moments = (
                        jnp.concatenate([moments[0], mean]),
                        jnp.concatenate([moments[1], var]),
                    )
                continue
            x = _concatenate(pieces)
            if unit == "stem":
                stem = Stem(self.stem_features, norm, self.dtype, name="conv1")
                x = stem(x, is_live, weight)
            elif unit == "norm":
                x = norm(name="bn")(x, moments if opens else None)
                x = nn.relu(x) if self.final_relu else x
            else:
                x = Transition(norm, self.dtype, name=unit)(x, moments, is_live)
            pieces, moments = (x,), None
        return _concatenate(pieces)


def _first_norm_is_live(unit: str, is_live: Callable[[str], bool]) -> bool:
    """Whether the norm that a unit begins with needs the moments of what enters."""
    if unit in ("stem", "head"):
        return False
    if unit == "norm":
        return is_live("bn")
    return is_live(f"{unit}_0_bn" if "_block" in unit else f"{unit}_bn")


def _concatenate(pieces: Sequence[jax.Array]) -> jax.Array:
    return pieces[0] if len(pieces) == 1 else jnp.concatenate(pieces, axis=-1)


def line_of_units(blocks: Sequence[int]) -> tuple[str, ...]:
    """The units of a backbone in order, from 'stem' to 'norm'."""
    line = ["stem"]
    for stage, count in enumerate(blocks, start=2):
        line += [f"conv{stage}_block{i}" for i in range(1, count + 1)]
        line += [f"pool{stage}"] if stage < len(blocks) + 1 else ["norm"]
    return tuple(line)


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


def init_variables(model: DenseNet, seed: int) -> dict[str, Any]:
    """Random variables: Keras's initial values (Glorot uniform kernels), drawn leaf by leaf.

    The same distributions as `model.init`, without its compilation of six hundred random draws;
    each leaf depends on the seed and its own name alone, so a head is the same on any backbone.

    Returns:
      `{'params': …, 'batch_stats': …}` of float32 NumPy arrays.
    """
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))

    def draw(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        name = path[-1].key
        if name != "kernel":
            return np.full(leaf.shape, name in ("scale", "var"), np.float32)
        rng = np.random.default_rng([seed, zlib.crc32(jax.tree_util.keystr(path).encode())])
        receptive_field = int(np.prod(leaf.shape[:-2]))
        limit = np.sqrt(6 / (receptive_field * (leaf.shape[-2] + leaf.shape[-1])))
        return rng.uniform(-limit, limit, leaf.shape).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def key_of_unit(unit: str) -> str:
    """The top-level name of a unit in the trees of parameters and statistics."""
    return {"stem": "conv1", "norm": "bn"}.get(unit, unit)


def select(tree: Mapping[str, Any], units: Collection[str]) -> dict[str, Any]:
    """The part of a tree of parameters or statistics that belongs to these units."""
    keys = {key_of_unit(unit) for unit in units}
    return {key: value for key, value in tree.items() if key in keys}


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
