"""One dense layer of `dense_block`: its variables, its forward and its backward step.

The layers of a `lax.scan` share one program, so everything here is about layer `k` of a scan; what
differs between layers lies in the arrays.
"""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from densenet_flax.common.trees import PyTree
from densenet_flax.kernels.convolution import conv1x1, conv3x3
from densenet_flax.kernels.matmul import as_bits, from_bits
from densenet_flax.kernels.normalization import MeanVar, mean_var, normalize
from densenet_flax.kernels.stacking import contiguous, list_of_trees, stack, unstack


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class BnConvParams:
    """The variables of batch norm, ReLU and convolution, half a dense layer.

    Attributes:
      scale: of the norm.
      bias: of the norm.
      running_stats: of the norm, for inference mode.
      kernel: of the convolution: `[1, 1, C, bottleneck]` or `[3, 3, bottleneck, growth]`.
    """

    scale: Float[Array, " C"]
    bias: Float[Array, " C"]
    running_stats: MeanVar
    kernel: Float[Array, "h w C K"]


LayerParams = tuple[BnConvParams, BnConvParams]
Stack = tuple[Array, BnConvParams, BnConvParams]  # a scan's layers: 0, 1, 2, … and their params


@dataclasses.dataclass(frozen=True)
class DenseBlockSpec:
    """How a dense block is computed.

    Attributes:
      use_batch_stats: for each layer, whether its first and its second norm use the batch's
        statistics (training mode) instead of the running ones.
      epsilon: of the norms.
      remat: what the backward pass computes again; see `DenseNet.remat`.
      chunks: how many chunks of whole images the batch is divided into for the widest part of a
        layer; a divisor of the batch size, and 1 if `remat` is 'none'.
      layers_per_scan: how many layers share a scan, at most.
    """

    use_batch_stats: tuple[tuple[bool, bool], ...]
    epsilon: float
    remat: str = "bottleneck"
    chunks: int = 1
    layers_per_scan: int = 4

    def scans(self) -> list[range]:
        """The layers that share a scan: consecutive ones whose norms are in the same mode."""
        scans: list[range] = []
        for i, modes in enumerate(self.use_batch_stats):
            last = scans[-1] if scans else range(0)
            if last and len(last) < self.layers_per_scan and self.use_batch_stats[last[0]] == modes:
                scans[-1] = range(last.start, i + 1)
            else:
                scans.append(range(i, i + 1))
        return scans


@dataclasses.dataclass(frozen=True)
class ScannedLayers:
    """The layers of one scan: one forward and one backward step for all of them.

    Features are rows, `[N · H · W, C]`; in the buffer they are divided into chunks,
    `[chunks, rows of a chunk, C]`.

    Attributes:
      spec: of the block.
      layers: which layers of the block.
      spatial_shape: (N, H, W).
      in_channels: of the block.
      growth: features that a layer creates.
      weight: how much each example counts in batch statistics.
    """

    spec: DenseBlockSpec
    layers: range
    spatial_shape: tuple[int, ...]
    in_channels: int
    growth: int
    weight: Array | None

    @property
    def width(self) -> int:
        """Features that the widest of the layers reads, to which the others are widened."""
        return self.in_channels + self.growth * self.layers[-1]

    def forward(self, carry: PyTree, inputs: Stack) -> tuple[PyTree, PyTree]:
        """Runs layer `k` of the scan, and saves for `backward` what `remat` says."""
        buffer, stats = carry
        k, first, second = inputs
        front_stats = jax.tree.map(lambda leaf: leaf[: self.width], stats)
        saved: PyTree
        if self.spec.remat == "none":
            front = _read_chunk(buffer, 0, self.width)
            bottleneck, bottleneck_vjp = jax.vjp(self.bottleneck, front, front_stats, first)
            (new, bottleneck_stats), new_vjp = jax.vjp(self.new_features, bottleneck, second)
            saved = (bottleneck_vjp, new_vjp)
        else:
            bottleneck = self.bottleneck_by_chunks(buffer, front_stats, first)
            new, bottleneck_stats = self.new_features(bottleneck, second)
            saved = bottleneck if self.spec.remat == "bottleneck" else None
        start = self.in_channels + self.growth * (self.layers.start + k)
        if stats is not None:
            write = lambda leaf, part: jax.lax.dynamic_update_slice(leaf, part, (start,))  # noqa: E731
            stats = jax.tree.map(write, stats, self.mean_var(new))
        new = as_bits(new).reshape(self.spec.chunks, -1, self.growth)
        buffer = jax.lax.dynamic_update_slice(buffer, new, (0, 0, start))
        return (buffer, stats), (bottleneck_stats, jax.tree.map(as_bits, saved))

    def backward(
        self, buffer: Array, stats: MeanVar | None, carry: PyTree, inputs: PyTree
    ) -> tuple[PyTree, LayerParams]:
        """Adds what layer `k` contributes to the gradients; returns those of its variables.

        When it is reached, every later layer has added to the gradient of the features that this
        one created, so that gradient is complete.

        Args:
          buffer: the finished one, of the whole block.
          stats: of all its features.
          carry: gradients of the features that entered, of those that were created, and of `stats`.
          inputs: number of the layer, its variables, what `forward` saved, and the gradient of its
            bottleneck's statistics.
        """
        grad_x, grad_new, grad_stats = carry
        k, first, second, saved, grad_bottleneck_stats = inputs
        saved = jax.tree.map(from_bits, saved)
        front_stats = jax.tree.map(lambda leaf: leaf[: self.width], stats)
        start = self.growth * (self.layers.start + k)  # among the features that were created
        grad = _read_columns(grad_new, start, self.growth)
        if stats is not None:
            # Later norms used these features' statistics too: back through mean and variance.
            new = _read_columns(buffer, self.in_channels + start, self.growth)
            _, mean_var_vjp = jax.vjp(self.mean_var, new)
            at = (self.in_channels + start,)
            cut = lambda leaf: jax.lax.dynamic_slice(leaf, at, (self.growth,))  # noqa: E731
            grad += mean_var_vjp(jax.tree.map(cut, grad_stats))[0]
        if self.spec.remat == "none":
            saved_vjp, new_vjp = saved
            bottleneck_vjp = lambda j: saved_vjp  # noqa: E731
        else:
            # The forward step is computed again, as far as it was not saved.
            bottleneck = saved
            if self.spec.remat == "block":
                bottleneck = self.bottleneck_by_chunks(buffer, front_stats, first)
            _, new_vjp = jax.vjp(self.new_features, bottleneck, second)

            def bottleneck_vjp(j):
                front = _read_chunk(buffer, j, self.width)
                return jax.vjp(self.bottleneck, front, front_stats, first)[1]

        grad_bottleneck, grad_second = new_vjp((grad, grad_bottleneck_stats))
        grad_x, grad_new, grad_front_stats, grad_first = _bottleneck_backward_by_chunks(
            bottleneck_vjp, grad_bottleneck, grad_x, grad_new, (front_stats, first)
        )
        # Statistics are shared by all later norms, so their gradients add up like features' do.
        add = lambda leaf, part: leaf.at[: self.width].add(part)  # noqa: E731
        grad_stats = jax.tree.map(add, grad_stats, grad_front_stats)
        return (grad_x, grad_new, grad_stats), (grad_first, grad_second)

    def bottleneck(
        self, rows: Float[Array, "R C"], stats: MeanVar | None, params: BnConvParams
    ) -> Float[Array, "R B"]:
        """Computes norm, ReLU and 1×1 convolution."""
        train, _ = self.spec.use_batch_stats[self.layers.start]
        return conv1x1(self._norm_relu(rows, stats if train else None, params), params.kernel)

    def new_features(
        self, rows: Float[Array, "R B"], params: BnConvParams
    ) -> tuple[Float[Array, "R G"], MeanVar | None]:
        """Computes norm, ReLU and 3×3 convolution, and the statistics that the norm used."""
        _, train = self.spec.use_batch_stats[self.layers.start]
        stats = self.mean_var(rows) if train else None
        y = self._norm_relu(rows, stats, params).reshape(*self.spatial_shape, -1)
        new = conv3x3(y, params.kernel.astype(y.dtype))
        return new.reshape(-1, new.shape[-1]), stats

    def _norm_relu(
        self, rows: Float[Array, "R C"], stats: MeanVar | None, params: BnConvParams
    ) -> Float[Array, "R C"]:
        stats = params.running_stats if stats is None else stats
        wide = rows.astype(jnp.promote_types(rows.dtype, jnp.float32))
        y = normalize(wide, params.scale, params.bias, stats, self.spec.epsilon)
        return jax.nn.relu(y).astype(rows.dtype)  # rounded once, after the ReLU

    def mean_var(self, rows: Float[Array, "R C"]) -> MeanVar:
        """Computes the batch statistics of all rows."""
        return mean_var(rows.reshape(*self.spatial_shape, -1), self.weight)

    def bottleneck_by_chunks(
        self, buffer: Float[Array, "chunks r D"], stats: MeanVar | None, params: BnConvParams
    ) -> Float[Array, "R B"]:
        """Computes `bottleneck` of the front of the buffer, a chunk at a time."""
        chunks, rows, _ = buffer.shape

        def body(j, filled):
            part = self.bottleneck(_read_chunk(buffer, j, self.width), stats, params)
            return jax.lax.dynamic_update_slice(filled, as_bits(part)[None], (j, 0, 0))

        empty = jnp.zeros((chunks, rows, params.kernel.shape[-1]), buffer.dtype)
        return from_bits(_for_each_chunk(chunks, body, empty)).reshape(chunks * rows, -1)


def _bottleneck_backward_by_chunks(
    vjp_of_chunk: Callable[[Array | int], Callable[[Array], tuple[Array, ...]]],
    grad_bottleneck: Float[Array, "R B"],
    grad_x: Array,
    grad_new: Array,
    shared: tuple[MeanVar | None, BnConvParams],
) -> tuple[Array, Array, MeanVar | None, BnConvParams]:
    """Adds the gradient of what the bottleneck read, a chunk at a time.

    Args:
      vjp_of_chunk: the backward function of `bottleneck` for chunk `j`.
      grad_bottleneck: gradient of the whole bottleneck.
      grad_x: gradient of the features that entered the block, `[chunks, r, C]`, to add to.
      grad_new: gradient of the features that were created, likewise.
      shared: the other arguments of `bottleneck`; their gradients, sums over the chunks, are
        returned last.
    """
    chunks, rows, in_channels = grad_x.shape
    grad_bottleneck = as_bits(grad_bottleneck).reshape(chunks, rows, -1)

    def add(total: Array, j, part: Array) -> Array:
        old = _read_chunk(total, j, part.shape[-1])
        return jax.lax.dynamic_update_slice(total, as_bits(old + part)[None], (j, 0, 0))

    def body(j, carry):
        grad_x, grad_new, sums = carry
        grad = _read_chunk(grad_bottleneck, j, grad_bottleneck.shape[-1])
        grad_front, *grad_shared = vjp_of_chunk(j)(grad)
        grad_x = add(grad_x, j, grad_front[:, :in_channels])
        grad_new = add(grad_new, j, grad_front[:, in_channels:])
        return grad_x, grad_new, jax.tree.map(jnp.add, sums, tuple(grad_shared))

    # Gradients of what all chunks share start at zero and are carried through the loop.
    zeros = jax.tree.map(jnp.zeros_like, shared)
    grad_x, grad_new, grad_shared = _for_each_chunk(chunks, body, (grad_x, grad_new, zeros))
    return grad_x, grad_new, *grad_shared


def _for_each_chunk(chunks: int, body: Callable[[Array | int, PyTree], PyTree], carry: PyTree):
    return body(0, carry) if chunks == 1 else jax.lax.fori_loop(0, chunks, body, carry)


def _read_chunk(buffer: Array, j: Array | int, width: int) -> Float[Array, "r C"]:
    """The first `width` features of chunk `j`."""
    return from_bits(jax.lax.dynamic_slice(buffer, (j, 0, 0), (1, buffer.shape[1], width))[0])


def _read_columns(buffer: Array, start: Array, count: int) -> Float[Array, "R C"]:
    """`count` features from `start` on, of all chunks."""
    chunks, rows, _ = buffer.shape
    columns = jax.lax.dynamic_slice(buffer, (0, 0, start), (chunks, rows, count))
    return from_bits(columns).reshape(chunks * rows, count)


def stack_layers(layers: Sequence[LayerParams], scan: range) -> Stack:
    """Numbers a scan's layers from 0 and stacks their variables, widened to the widest."""
    width = layers[scan[-1]][0].kernel.shape[2]
    first = stack([_widen(layers[i][0], width) for i in scan])
    return jnp.arange(len(scan)), first, stack([layers[i][1] for i in scan])


def _widen(params: BnConvParams, width: int) -> BnConvParams:
    """Appends input channels of which the kernel takes nothing."""
    # Scale and bias 0, kernel 0: the features that are not created yet (zeros) contribute nothing.
    missing = width - params.kernel.shape[2]
    pad = lambda leaf: jnp.pad(leaf, (0, missing))  # noqa: E731
    kernel = jnp.pad(params.kernel, ((0, 0), (0, 0), (0, missing), (0, 0)))
    return BnConvParams(
        pad(params.scale), pad(params.bias), jax.tree.map(pad, params.running_stats), kernel
    )


def unstack_layers(stacked: LayerParams, widths: Sequence[int]) -> list[LayerParams]:
    """Undoes `stack_layers` for gradients: takes them apart and narrows the first halves."""
    layers = unstack(stacked, len(widths))
    narrowed = []
    for (first, _), c in zip(layers, widths, strict=True):
        running_stats = jax.tree.map(lambda leaf, c=c: leaf[:c], first.running_stats)
        narrowed.append(
            BnConvParams(first.scale[:c], first.bias[:c], running_stats, first.kernel[:, :, :c])
        )
    lists = jax.tree.map(lambda *leaves: contiguous(leaves), *narrowed)
    firsts = list_of_trees(lists, len(widths))
    return [(first, second) for first, (_, second) in zip(firsts, layers, strict=True)]
