"""Hands the variables of a dense block's layers to `kernels.dense_block`."""

from collections.abc import Sequence
from typing import Protocol

from jaxtyping import Array, Float

from densenet_flax.kernels.dense_block import default_chunks, dense_block
from densenet_flax.kernels.dense_layer import BnConvParams, DenseBlockSpec
from densenet_flax.kernels.normalization import MeanVar, mean_var
from densenet_flax.kernels.stacking import contiguous
from densenet_flax.models.layers import BatchNorm, Conv


class DenseLayer(Protocol):
    """What is needed of `models.densenet.DenseLayer`, which imports this module."""

    features: int
    norm_0: BatchNorm
    conv_1: Conv
    norm_1: BatchNorm
    conv_2: Conv


def fused_dense_block(
    layers: Sequence[DenseLayer],
    x: Float[Array, "N H W C"],
    weight: Float[Array, " N"] | None,
    epsilon: float,
    remat: str,
) -> tuple[Float[Array, "N H W D"], MeanVar | None]:
    """Runs the bound layers of a dense block as `DenseNet._dense_block` does, by the kernel."""
    params = [
        (_params(layer.norm_0, layer.conv_1), _params(layer.norm_1, layer.conv_2))
        for layer in layers
    ]
    spec = DenseBlockSpec(
        use_batch_stats=tuple((layer.norm_0.train, layer.norm_1.train) for layer in layers),
        epsilon=epsilon,
        remat=remat,
        chunks=1 if remat == "none" else default_chunks(x.shape),
    )
    needs_stats = any(layer.norm_0.train for layer in layers)
    stats = mean_var(x, weight) if needs_stats else None
    x, stats, bottleneck_stats = dense_block(spec, x, stats, weight, params)
    if stats is not None:
        # Each layer's first norm saw the front of the statistics. As parts of one buffer they are
        # cheap to ravel later; as slices each would be a small program.
        means, variances = (
            contiguous([leaf[: layer.features] for layer in layers]) for leaf in stats
        )
        for layer, mean, var in zip(layers, means, variances, strict=True):
            if layer.norm_0.train:
                layer.norm_0.update_running_stats((mean, var))
    for layer, batch in zip(layers, bottleneck_stats, strict=True):
        if batch is not None:
            layer.norm_1.update_running_stats(batch)
    return x, stats


def _params(norm: BatchNorm, conv: Conv) -> BnConvParams:
    return BnConvParams(norm.scale, norm.bias, norm.running_stats, conv.kernel)
