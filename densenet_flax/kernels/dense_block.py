"""The layers of a dense block, and their backward pass, in one buffer.

Each layer of a dense block reads all features before it. Written with concatenations, every layer
copies them, and the backward pass keeps a copy for each. Here all features lie in one buffer of the
block's final width: a layer reads the front of it and writes its new features behind that. The
front never changes, so the finished buffer is all that the backward pass needs to compute every
norm and ReLU again, which is cheap. (Pleiss et al., "Memory-Efficient Implementation of DenseNets",
arXiv:1707.06990, 2017, share storage for the same reason.)

Two things are there for XLA's CPU backend. Consecutive layers share a `lax.scan`, the narrower ones
widened by rows of zeros in their 1×1 kernel: two hundred layers unrolled take minutes to compile.
And the widest part of a layer, norm, ReLU and 1×1 convolution over all features, goes through the
batch in chunks that stay in the processor's cache, forwards and backwards.
"""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from densenet_flax.common.trees import PyTree
from densenet_flax.kernels.dense_layer import (
    DenseBlockSpec,
    LayerParams,
    ScannedLayers,
    Stack,
    stack_layers,
    unstack_layers,
)
from densenet_flax.kernels.matmul import as_bits, from_bits
from densenet_flax.kernels.normalization import MeanVar
from densenet_flax.kernels.stacking import stack, unstack

_CHUNK_POSITIONS = 392  # of a chunk, at least: two maps of 14×14


def default_chunks(shape: Sequence[int]) -> int:
    """Chooses how many chunks to divide a batch of features `[N, H, W, C]` into.

    On a single CPU device as many as leave a chunk a few hundred positions: it then stays in the
    cache, and its matrix products are still large. Elsewhere 1: other devices want all the work at
    once, and with many devices the batch is divided already.
    """
    n, h, w, _ = shape
    if jax.default_backend() != "cpu" or jax.device_count() > 1 or not isinstance(n, int):
        return 1
    divisors = [k for k in range(1, n + 1) if n % k == 0]
    return max(k for k in divisors if k == 1 or n // k * h * w >= _CHUNK_POSITIONS)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def dense_block(
    spec: DenseBlockSpec,
    x: Float[Array, "N H W C"],
    stats: MeanVar | None,
    weight: Float[Array, " N"] | None,
    layers: Sequence[LayerParams],
) -> tuple[Float[Array, "N H W D"], MeanVar | None, list[MeanVar | None]]:
    """Runs dense layers one after the other, D = C + growth · layers.

    The batch statistics of a feature are the same for every later norm of the block, so they are
    computed once, when the feature is created.

    Args:
      spec: how.
      x: the features that enter.
      stats: batch statistics of `x`, if any norm of the block needs them.
      weight: how much each example counts in the statistics; None: all the same.
      layers: the variables of each layer.

    Returns:
      All features; their batch statistics, if those of `x` were given; and for each layer those of
      its bottleneck, if its second norm uses them.
    """
    stacks = [stack_layers(layers, scan) for scan in spec.scans()]
    spec = dataclasses.replace(spec, remat="block")  # no backward pass follows: save nothing
    if spec.chunks == 1 or any(any(modes) for modes in spec.use_batch_stats):
        return _run(spec, x, stats, weight, stacks)[0]
    # In inference mode no example needs another: a chunk goes through all layers at once.
    one_chunk = dataclasses.replace(spec, chunks=1)
    in_chunks = x.reshape(spec.chunks, -1, *x.shape[1:])
    run = lambda chunk: as_bits(_run(one_chunk, chunk, None, None, stacks)[0][0])  # noqa: E731
    features = from_bits(jax.lax.map(run, in_chunks))
    return features.reshape(*x.shape[:-1], -1), stats, [None] * len(layers)


def _dense_block_forward(spec: DenseBlockSpec, x, stats, weight, layers: Sequence[LayerParams]):
    stacks = [stack_layers(layers, scan) for scan in spec.scans()]
    return _run(spec, x, stats, weight, stacks)


def _run(
    spec: DenseBlockSpec,
    x: Array,
    stats: MeanVar | None,
    weight: Array | None,
    stacks: Sequence[Stack],
) -> tuple[PyTree, PyTree]:
    """Computes what `dense_block` returns, and the residuals of its backward pass."""
    growth = stacks[0][2].kernel.shape[-1]
    # The buffer has its final width from the start; a layer writes into it in place.
    to_come = (0, growth * len(spec.use_batch_stats))
    # As rows of channels: XLA's CPU backend makes slow loops of slices over four axes.
    rows = as_bits(x).reshape(spec.chunks, -1, x.shape[-1])
    buffer = jnp.pad(rows, ((0, 0), (0, 0), to_come))
    stats = jax.tree.map(lambda leaf: jnp.pad(leaf, to_come), stats)
    bottleneck_stats, saved = [], []
    for scan, layers in zip(spec.scans(), stacks, strict=True):
        step = ScannedLayers(spec, scan, x.shape[:-1], x.shape[-1], growth, weight)
        (buffer, stats), (scan_stats, scan_saved) = jax.lax.scan(
            step.forward, (buffer, stats), layers
        )
        bottleneck_stats += unstack(scan_stats, len(scan))
        saved.append((layers, scan_saved))
    features = from_bits(buffer).reshape(*x.shape[:-1], -1)
    return (features, stats, bottleneck_stats), (buffer, stats, weight, saved)


def _dense_block_backward(spec: DenseBlockSpec, residuals, grads):
    """Goes through the scans in reverse.

    The gradient of the buffer is kept in two parts, of what entered and of what was created: where
    nothing before the block trains, XLA drops the former.
    """
    buffer, stats, weight, saved = residuals
    grad_features, grad_stats, grad_bottleneck_stats = grads
    growth = saved[0][0][2].kernel.shape[-1]  # of the first scan's second convolution
    in_channels = grad_features.shape[-1] - growth * len(spec.use_batch_stats)
    grad_buffer = as_bits(grad_features).reshape(buffer.shape)
    grad_x, grad_new = grad_buffer[..., :in_channels], grad_buffer[..., in_channels:]
    if spec.remat != "none":
        # Without the barrier XLA merges the recomputation with the forward pass, and so keeps
        # everything that was to be dropped.
        grad_new, buffer = jax.lax.optimization_barrier((grad_new, buffer))
    grad_layers: list[LayerParams] = []
    for scan, ((_, first, second), scan_saved) in reversed(
        list(zip(spec.scans(), saved, strict=True))
    ):
        step = ScannedLayers(spec, scan, grad_features.shape[:-1], in_channels, growth, weight)
        grad_scan_stats = stack(grad_bottleneck_stats[scan.start : scan.stop])
        (grad_x, grad_new, grad_stats), grad_scan = jax.lax.scan(
            functools.partial(step.backward, buffer, stats),
            (grad_x, grad_new, grad_stats),
            (jnp.arange(len(scan)), first, second, scan_saved, grad_scan_stats),
            reverse=True,
        )
        widths = [in_channels + growth * i for i in scan]
        grad_layers = unstack_layers(grad_scan, widths) + grad_layers
    grad_x = from_bits(grad_x).reshape(*grad_features.shape[:-1], -1)
    grad_stats = jax.tree.map(lambda leaf: leaf[:in_channels], grad_stats)
    return grad_x, grad_stats, jax.tree.map(jnp.zeros_like, weight), grad_layers


dense_block.defvjp(_dense_block_forward, _dense_block_backward)
