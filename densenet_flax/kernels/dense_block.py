"""A run of blocks of one dense stage, and its backward pass, in one buffer.

Each block of a dense stage reads all channels born before it. Written with concatenations, as the
paper draws it, every block copies them, and a backward pass keeps a copy for each. Here all
channels lie in one buffer of the run's final width: a block reads the front of it and writes
behind that. The front never changes, so the finished buffer is all that the backward pass needs
to compute each norm and ReLU again, which are cheap. (Pleiss et al., "Memory-Efficient
Implementation of DenseNets", arXiv:1707.06990, 2017, share storage for the same reason.)

Blocks that differ in nothing but their width are computed by one loop, a few at a time: the
narrower ones are widened by rows of zeros in their 1×1 kernel, over channels that are not born yet.
A network is two hundred layers, and what the compiler does not see it need not compile.

On a CPU the widest part of a block, norm, ReLU and 1×1 over all channels, goes through the batch
in pieces that stay in the cache, forwards and backwards.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from densenet_flax.kernels.matmul import bits, values
from densenet_flax.models.layers import MeanVar, conv3x3, mean_var, normalize, pointwise

REMAT = ("none", "bottleneck", "block")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class HalfBlock:
    """The variables of half a block: norm, ReLU, convolution.

    Attributes:
      scale: of the norm, `[C]`.
      bias: of the norm, `[C]`.
      running: its running statistics.
      kernel: of the convolution: `[1, 1, C, bottleneck]` or `[3, 3, bottleneck, growth]`.
    """

    scale: jax.Array
    bias: jax.Array
    running: MeanVar
    kernel: jax.Array


Blocks = Sequence[tuple[HalfBlock, HalfBlock]]
_Stack = tuple[jax.Array, HalfBlock, HalfBlock]  # a group's blocks: numbers from 0, and halves


@dataclasses.dataclass(frozen=True)
class Manner:
    """How a run of blocks is computed.

    Attributes:
      live: for each block, whether its first and its second norm use the batch's moments.
      epsilon: of the norms.
      remat: what the backward pass computes again; see `DenseNet.remat`.
      pieces: into how many pieces of whole images the batch is divided for the widest part of a
        block; a divisor of the batch's size, and 1 if `remat` is 'none'.
      together: how many blocks share a loop, at most.
    """

    live: tuple[tuple[bool, bool], ...]
    epsilon: float
    remat: str = "bottleneck"
    pieces: int = 1
    together: int = 4

    def groups(self) -> list[range]:
        """The blocks that share a loop: neighbours whose norms are alive alike."""
        groups: list[range] = []
        for i, live in enumerate(self.live):
            last = groups[-1] if groups else range(0)
            if last and len(last) < self.together and self.live[last[0]] == live:
                groups[-1] = range(last.start, i + 1)
            else:
                groups.append(range(i, i + 1))
        return groups


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def dense_stage(
    manner: Manner,
    x: jax.Array,
    moments: MeanVar | None,
    weight: jax.Array | None,
    blocks: Blocks,
) -> tuple[jax.Array, MeanVar | None, list[MeanVar | None]]:
    """Runs blocks one after the other.

    The batch moments of a channel are the same for every later norm of the stage, so they are
    computed once, when the channel is born, and handed along.

    Args:
      manner: how.
      x: `[N, H, W, C]`, the channels that enter.
      moments: of `x`, if any norm from here to the end of the stage is live.
      weight: `[N]`, how much each example counts in the moments; None: all alike.
      blocks: the two halves of each.

    Returns:
      `[N, H, W, C + growth · blocks]`; the moments of all these channels, if those of `x` were
      given; and for each block those of what its second norm saw, if that is live.
    """
    stacks = [_stacked(blocks, group) for group in manner.groups()]
    manner = dataclasses.replace(manner, remat="block")  # no backward pass follows: keep nothing
    if manner.pieces == 1 or any(any(live) for live in manner.live):
        return _run(manner, x, moments, weight, stacks)[0]
    # Without live norms no example needs another: a piece goes through all blocks at once.
    alone = dataclasses.replace(manner, pieces=1)
    in_pieces = x.reshape(manner.pieces, -1, *x.shape[1:])
    run = lambda piece: bits(_run(alone, piece, None, None, stacks)[0][0])  # noqa: E731
    whole = values(jax.lax.map(run, in_pieces))
    return whole.reshape(*x.shape[:-1], -1), moments, [None] * len(blocks)


def _forward(manner: Manner, x: jax.Array, moments, weight, blocks: Blocks):
    return _run(manner, x, moments, weight, [_stacked(blocks, g) for g in manner.groups()])


def _run(manner: Manner, x: jax.Array, moments, weight, stacks: Sequence[_Stack]):
    """What `dense_stage` gives, and what its backward pass needs."""
    entering, growth, places = x.shape[-1], stacks[0][2].kernel.shape[-1], x.shape[:-1]
    born_here = (0, growth * len(manner.live))
    # As rows of channels: over four axes XLA's CPU compiler makes slow loops of a slice.
    features = jnp.pad(bits(x).reshape(manner.pieces, -1, entering), ((0, 0), (0, 0), born_here))
    moments = jax.tree.map(lambda leaf: jnp.pad(leaf, born_here), moments)
    seen, kept = [], []
    for group, stack in zip(manner.groups(), stacks, strict=True):
        start = entering + growth * group.start
        width = entering + growth * group[-1]
        narrow, grow = _halves(manner, group, places)

        def block(carry, given, start=start, width=width, narrow=narrow, grow=grow):
            features, moments = carry
            k, first, second = given
            before = jax.tree.map(lambda leaf: leaf[:width], moments)
            if manner.remat == "none":
                bottleneck, back_narrow = jax.vjp(narrow, _piece(features, 0, width), before, first)
                (born, of_bottleneck), back_grow = jax.vjp(grow, bottleneck, weight, second)
                keep: Any = (back_narrow, back_grow)
            else:
                bottleneck = _narrow_pieces(narrow, features, width, before, first)
                born, of_bottleneck = grow(bottleneck, weight, second)
                keep = bottleneck if manner.remat == "bottleneck" else None
            at = start + growth * k
            if moments is not None:
                of_born = _moments(born, weight, places)
                put = lambda leaf, new: jax.lax.dynamic_update_slice(leaf, new, (at,))  # noqa: E731
                moments = jax.tree.map(put, moments, of_born)
            born = bits(born).reshape(manner.pieces, -1, growth)
            features = jax.lax.dynamic_update_slice(features, born, (0, 0, at))
            return (features, moments), (of_bottleneck, jax.tree.map(bits, keep))

        (features, moments), (of_bottlenecks, keep) = jax.lax.scan(
            block, (features, moments), stack
        )
        kept.append((stack, keep))
        seen += _unstacked(of_bottlenecks, len(group))
    whole = values(features).reshape(*places, -1)
    return (whole, moments, seen), (features, moments, weight, kept)


def _run_backward(manner: Manner, residuals, gradients):
    """The blocks in reverse.

    What entered and what was born are kept apart: where nothing before the run trains, no one
    computes the gradient of the former.
    """
    features, moments, weight, kept = residuals
    of_whole, of_moments, of_seen = gradients
    places, growth = of_whole.shape[:-1], kept[0][0][2].kernel.shape[-1]
    entering = of_whole.shape[-1] - growth * len(manner.live)
    of_features = bits(of_whole).reshape(features.shape)
    of_x, of_born_all = of_features[..., :entering], of_features[..., entering:]
    if manner.remat != "none":
        # A compiler that merged this with the forward pass would keep what is to be dropped.
        of_born_all, features = jax.lax.optimization_barrier((of_born_all, features))
    of_blocks: list[tuple[HalfBlock, HalfBlock]] = []
    for group, ((_, firsts, seconds), keep) in reversed(
        list(zip(manner.groups(), kept, strict=True))
    ):
        begin, width = growth * group.start, entering + growth * group[-1]
        narrow, grow = _halves(manner, group, places)
        before = jax.tree.map(lambda leaf, width=width: leaf[:width], moments)

        def block(carry, given, begin=begin, width=width, narrow=narrow, grow=grow, before=before):
            of_x, of_born_all, of_moments = carry
            k, first, second, keep, of_bottleneck_moments = given
            keep = jax.tree.map(values, keep)
            at = begin + growth * k
            of_born = _channels(of_born_all, at, growth)
            if moments is not None:
                born = _channels(features, entering + at, growth)
                _, back = jax.vjp(lambda rows: _moments(rows, weight, places), born)
                cut = lambda leaf: jax.lax.dynamic_slice(leaf, (entering + at,), (growth,))  # noqa: E731
                of_born += back(jax.tree.map(cut, of_moments))[0]
            if manner.remat == "none":
                back_narrow, back_grow = keep
            else:
                bottleneck = keep
                if manner.remat == "block":
                    bottleneck = _narrow_pieces(narrow, features, width, before, first)
                _, back_grow = jax.vjp(grow, bottleneck, weight, second)

            def back_of_piece(j):
                if manner.remat == "none":
                    return back_narrow
                return jax.vjp(narrow, _piece(features, j, width), before, first)[1]

            of_bottleneck, _, of_second = back_grow((of_born, of_bottleneck_moments))
            of_x, of_born_all, of_before, of_first = _narrow_pieces_backward(
                back_of_piece, of_bottleneck, of_x, of_born_all, (before, first)
            )
            add = lambda leaf, part: leaf.at[:width].add(part)  # noqa: E731
            of_moments = jax.tree.map(add, of_moments, of_before)
            return (of_x, of_born_all, of_moments), (of_first, of_second)

        of_group_seen = jax.tree.map(
            lambda *leaves: jnp.stack(leaves), *of_seen[group.start : group.stop]
        )
        carry, of_group = jax.lax.scan(
            block,
            (of_x, of_born_all, of_moments),
            (jnp.arange(len(group)), firsts, seconds, keep, of_group_seen),
            reverse=True,
        )
        of_x, of_born_all, of_moments = carry
        widths = [entering + growth * i for i in group]
        of_blocks = _narrowed(_unstacked(of_group, len(group)), widths) + of_blocks
    of_weight = jax.tree.map(jnp.zeros_like, weight)
    of_moments = jax.tree.map(lambda leaf: leaf[:entering], of_moments)
    return values(of_x).reshape(*places, -1), of_moments, of_weight, of_blocks


dense_stage.defvjp(_forward, _run_backward)


def _stacked(blocks: Blocks, group: range) -> _Stack:
    """The numbers of a group's blocks from 0, and their halves, widened to the widest."""
    width = blocks[group[-1]][0].kernel.shape[2]
    firsts = [_widened(blocks[i][0], width) for i in group]
    seconds = [blocks[i][1] for i in group]
    stack = lambda *leaves: jnp.stack(leaves)  # noqa: E731
    return jnp.arange(len(group)), jax.tree.map(stack, *firsts), jax.tree.map(stack, *seconds)


def _unstacked(tree, count: int) -> list:
    """A tree for each index of the first axis; of each kind of leaf, they are side by side."""

    def cut(leaf: jax.Array) -> list[jax.Array]:
        flat = jax.lax.optimization_barrier(leaf.reshape(-1))
        return [part.reshape(leaf.shape[1:]) for part in jnp.split(flat, count)]

    return _of_each(jax.tree.map(cut, tree), count)


def _of_each(lists, count: int) -> list:
    """A tree of lists as a list of trees; unlike `jax.tree.transpose`, also where it is empty."""
    is_list = lambda node: isinstance(node, list)  # noqa: E731
    return [jax.tree.map(lambda of, k=k: of[k], lists, is_leaf=is_list) for k in range(count)]


def _widened(half: HalfBlock, width: int) -> HalfBlock:
    """The same for more channels in front of its kernel, of which it takes nothing."""
    missing = width - half.kernel.shape[2]
    vector = lambda leaf: jnp.pad(leaf, (0, missing))  # noqa: E731
    kernel = jnp.pad(half.kernel, ((0, 0), (0, 0), (0, missing), (0, 0)))
    running = jax.tree.map(vector, half.running)
    return HalfBlock(vector(half.scale), vector(half.bias), running, kernel)


def _narrowed(blocks: Blocks, widths: Sequence[int]) -> list[tuple[HalfBlock, HalfBlock]]:
    """The inverse of `_widened`, for the gradients of a group's blocks."""
    narrow = []
    for (half, _), c in zip(blocks, widths, strict=True):
        running = jax.tree.map(lambda leaf, c=c: leaf[:c], half.running)
        narrow.append(HalfBlock(half.scale[:c], half.bias[:c], running, half.kernel[:, :, :c]))
    together = jax.tree.map(lambda *leaves: side_by_side(leaves), *narrow)
    firsts = _of_each(together, len(narrow))
    return [(first, second) for first, (_, second) in zip(firsts, blocks, strict=True)]


def _halves(manner: Manner, group: range, places: tuple[int, ...]):
    """A block as two functions of rows: to the bottleneck's channels, and to the new ones."""
    live_0, live_1 = manner.live[group.start]

    def norm_relu(rows: jax.Array, half: HalfBlock, moments: MeanVar | None) -> jax.Array:
        used = half.running if moments is None else moments
        wide = rows.astype(jnp.promote_types(rows.dtype, jnp.float32))
        y = normalize(wide, half.scale, half.bias, used, manner.epsilon)
        return jax.nn.relu(y).astype(rows.dtype)  # rounded once, after the ReLU

    def narrow(rows: jax.Array, moments: MeanVar | None, half: HalfBlock) -> jax.Array:
        return pointwise(norm_relu(rows, half, moments if live_0 else None), half.kernel)

    def grow(rows: jax.Array, weight: jax.Array | None, half: HalfBlock):
        moments = _moments(rows, weight, places) if live_1 else None
        y = norm_relu(rows, half, moments).reshape(*places, -1)
        born = conv3x3(y, half.kernel.astype(y.dtype))
        return born.reshape(-1, born.shape[-1]), moments

    return narrow, grow


def _moments(rows: jax.Array, weight: jax.Array | None, places: tuple[int, ...]) -> MeanVar:
    return mean_var(rows.reshape(*places, -1), weight)


def _narrow_pieces(narrow, features: jax.Array, c: int, moments, half: HalfBlock) -> jax.Array:
    """The first half of a block over all pieces: `[rows, bottleneck]`."""
    pieces, rows, _ = features.shape

    def body(j, filled):
        part = narrow(_piece(features, j, c), moments, half)
        return jax.lax.dynamic_update_slice(filled, bits(part)[None], (j, 0, 0))

    bottleneck = jnp.zeros((pieces, rows, half.kernel.shape[-1]), features.dtype)
    bottleneck = _each(pieces, body, bottleneck)
    return values(bottleneck).reshape(pieces * rows, -1)


def _narrow_pieces_backward(back_of_piece, of_bottleneck, of_x, of_born_all, shared):
    """Adds to the gradients of what entered and was born; and those of what all pieces share."""
    pieces, rows, entering = of_x.shape
    of_bottleneck = bits(of_bottleneck).reshape(pieces, rows, -1)

    def added(total, j, part):
        old = _piece(total, j, part.shape[-1])
        return jax.lax.dynamic_update_slice(total, bits(old + part)[None], (j, 0, 0))

    def body(j, carry):
        of_x, of_born_all, sums = carry
        of_front, *of_shared = back_of_piece(j)(_piece(of_bottleneck, j, of_bottleneck.shape[-1]))
        of_x = added(of_x, j, of_front[:, :entering])
        of_born_all = added(of_born_all, j, of_front[:, entering:])
        return of_x, of_born_all, jax.tree.map(jnp.add, sums, tuple(of_shared))

    zeros = jax.tree.map(jnp.zeros_like, shared)
    carry = _each(pieces, body, (of_x, of_born_all, zeros))
    of_x, of_born_all, (of_moments, of_half) = carry
    return of_x, of_born_all, of_moments, of_half


def _piece(features: jax.Array, j, c: int) -> jax.Array:
    """The first `c` channels of piece `j`: `[rows, c]`."""
    return values(jax.lax.dynamic_slice(features, (j, 0, 0), (1, features.shape[1], c))[0])


def _channels(features: jax.Array, at, count: int) -> jax.Array:
    """Channels `at` and after, of all pieces: `[rows, count]`."""
    pieces, rows, _ = features.shape
    cut = jax.lax.dynamic_slice(features, (0, 0, at), (pieces, rows, count))
    return values(cut).reshape(pieces * rows, count)


def _each(pieces: int, body, carry):
    return body(0, carry) if pieces == 1 else jax.lax.fori_loop(0, pieces, body, carry)


_JOINED = 8  # arrays that XLA joins in one small program


def side_by_side(arrays: Sequence[jax.Array]) -> list[jax.Array]:
    """The same arrays as parts of a few buffers, in which they follow each other.

    Where arrays are slices of something, packing them costs a program for each. Of those that have
    come through here it takes whole buffers.
    """
    found = []
    for start in range(0, len(arrays), _JOINED):
        some = arrays[start : start + _JOINED]
        joined = jnp.concatenate([array.reshape(-1) for array in some])
        joined = jax.lax.optimization_barrier(joined)  # or XLA would see through it
        ends = np.cumsum([array.size for array in some])[:-1].tolist()
        parts = jnp.split(joined, ends)
        found += [part.reshape(a.shape) for part, a in zip(parts, some, strict=True)]
    return found
