"""The frontier: one point in the sequence of units, from which all freezing is derived.

"Unfreeze from here" says which parameters train, which BatchNorms use batch statistics, where the
gradient stops and what can be computed once. All four follow from a `Frontier`; nothing else in
the package decides any of them. A user writes a frontier as

- a unit, `'conv5_block1'` or `'pool4'`, or a dense block, `'conv5'`;
- a Keras layer, `'conv4_block23_2_conv'`, or its index in `model.layers` of
  `keras.applications.DenseNet201(include_top=False)`, `300` (negative ones count from the end);
- `'head'`, nothing of the backbone trains; or `'all'`, everything does.

`unfreeze_from=300` means exactly Keras's `for layer in base.layers[300:]: layer.trainable = True`.
Keras can cut inside a dense layer, so masks are per Keras layer, while the frozen prefix, which can
be cached, ends at the start of the unit that holds the first trainable layer.
"""

import dataclasses
import difflib
import functools
from collections.abc import Mapping, Sequence

import jax
from flax.traverse_util import path_aware_map

from densenet_flax.common.trees import PyTree
from densenet_flax.models.units import unit_names

BN_MODES = ("keras", "frozen", "live")


@dataclasses.dataclass(frozen=True)
class KerasLayer:
    """A layer of the Keras backbone, at its index in `model.layers`.

    Attributes:
      name: Keras's name, as in `keras.applications` of Keras 3.
      unit: the unit it belongs to; '' for the input layer.
      path: of its variables in `params` and `batch_stats`; () for layers without variables.
    """

    name: str
    unit: str
    path: tuple[str, ...] = ()

    @property
    def is_norm(self) -> bool:
        """Whether the layer is a BatchNorm."""
        return bool(self.path) and self.path[-1].endswith("bn")


@functools.cache
def keras_layers(blocks: tuple[int, ...]) -> tuple[KerasLayer, ...]:
    """Lists the layers of `keras.applications.DenseNetX(include_top=False)`, in Keras's order."""
    layers = [KerasLayer("input_layer", "")]
    paths: dict[str, tuple[str, ...]]
    for unit in unit_names(blocks):
        if unit == "stem":
            names = ["zero_padding2d", "conv1_conv", "conv1_bn", "conv1_relu"]
            names += ["zero_padding2d_1", "pool1"]
            paths = {"conv1_conv": ("conv1", "conv"), "conv1_bn": ("conv1", "bn")}
        elif unit == "norm":
            names, paths = ["bn", "relu"], {"bn": ("bn",)}
        else:
            inner = ["bn", "relu", "conv", "pool"]
            if not unit.startswith("pool"):
                inner = ["0_bn", "0_relu", "1_conv", "1_bn", "1_relu", "2_conv", "concat"]
            names = [f"{unit}_{name}" for name in inner]
            paths = {f"{unit}_{n}": (unit, n) for n in inner if n.endswith(("bn", "conv"))}
        layers += [KerasLayer(name, unit, paths.get(name, ())) for name in names]
    return tuple(layers)


@dataclasses.dataclass(frozen=True)
class Frontier:
    """A resolved frontier. Make one with `resolve`.

    Attributes:
      blocks: layers in each dense block: which DenseNet this is.
      index: Keras layers with this index or a higher one train; `len(layers)` for 'head'.
      bn_mode: 'keras', BatchNorms after the frontier use batch statistics; 'frozen', none does;
        'live', all do, the frozen ones too.
    """

    blocks: tuple[int, ...]
    index: int
    bn_mode: str = "keras"

    @property
    def layers(self) -> tuple[KerasLayer, ...]:
        """All Keras layers of the backbone."""
        return keras_layers(self.blocks)

    @property
    def first_trainable(self) -> KerasLayer | None:
        """The first trainable layer that has variables; None if only the head trains."""
        return next((layer for layer in self.layers[self.index :] if layer.path), None)

    @property
    def cut(self) -> str:
        """The unit that the prefix stops before: everything before it is a fixed function."""
        if self.bn_mode == "live":
            return "stem"
        return self.first_trainable.unit if self.first_trainable else "head"

    @property
    def train_norms(self) -> frozenset[str]:
        """Keras names of the BatchNorms that use batch statistics and update the running ones."""
        if self.bn_mode == "frozen":
            return frozenset()
        start = 0 if self.bn_mode == "live" else self.index
        return frozenset(layer.name for layer in self.layers[start:] if layer.is_norm)

    def mask(self, params: Mapping[str, PyTree]) -> dict[str, PyTree]:
        """Marks what trains: a tree like `params`, or like a part of them, of booleans."""
        frozen = {layer.path for layer in self.layers[: self.index] if layer.path}
        return dict(path_aware_map(lambda path, _: path[:-1] not in frozen, params))

    def batch_stats_mask(self, batch_stats: Mapping[str, PyTree]) -> dict[str, PyTree]:
        """Marks the running statistics that training updates: a tree like `batch_stats`."""
        updated = {layer.path for layer in self.layers if layer.name in self.train_norms}
        return dict(path_aware_map(lambda path, _: path[:-1] in updated, batch_stats))

    def describe(self, params: Mapping[str, PyTree]) -> str:
        """One line: how many parameters are frozen, how many train, and from where."""
        mask = jax.tree.leaves(self.mask(params))
        sizes = [leaf.size for leaf in jax.tree.leaves(dict(params))]
        trainable = sum(size for size, trains in zip(sizes, mask, strict=True) if trains)
        frozen = sum(sizes) - trainable
        first = self.first_trainable
        where = f"{first.name} (Keras layer {self.layers.index(first)})" if first else "the head"
        norms = sum(layer.is_norm for layer in self.layers)
        train = len(self.train_norms)
        return (
            f"frozen {frozen / 1e6:.1f} M · trainable {trainable / 1e6:.1f} M · from {where} · "
            f"BatchNorm: {train} on batch statistics, {norms - train} in inference mode"
        )


def resolve(unfreeze_from: str | int, blocks: Sequence[int], *, bn_mode: str = "keras") -> Frontier:
    """Resolves what a user writes to a `Frontier`.

    Args:
      unfreeze_from: a unit, dense block, Keras layer, Keras layer index, 'head' or 'all'.
      blocks: layers in each dense block of the network (`model.blocks`).
      bn_mode: 'keras', 'frozen' or 'live'; see `Frontier`.

    Raises:
      ValueError: the name matches nothing (near matches are listed), the index is out of range, or
        the mode is unknown.
    """
    if bn_mode not in BN_MODES:
        raise ValueError(f"bn_mode {bn_mode!r}: expected one of {', '.join(BN_MODES)}")
    layers = keras_layers(tuple(blocks))
    return Frontier(tuple(blocks), _index(unfreeze_from, layers), bn_mode)


def _index(unfreeze_from: str | int, layers: Sequence[KerasLayer]) -> int:
    # Keras counts layers without variables too, so an index is looked up in the whole list.
    count = len(layers)
    if isinstance(unfreeze_from, str) and unfreeze_from.removeprefix("-").isdigit():
        unfreeze_from = int(unfreeze_from)  # from a command line
    if isinstance(unfreeze_from, int) and not isinstance(unfreeze_from, bool):
        if not -count <= unfreeze_from < count:
            raise ValueError(
                f"unfreeze_from={unfreeze_from}: this network has the Keras layers 0 to "
                f"{count - 1}; write 'head' to train the head alone"
            )
        return unfreeze_from % count
    if unfreeze_from == "head":
        return count
    if unfreeze_from == "all":
        return 0
    for index, layer in enumerate(layers):
        stage = layer.unit.partition("_block")[0]
        if unfreeze_from in (layer.name, layer.unit, stage) and layer.unit:
            return index
    names = dict.fromkeys(name for layer in layers for name in (layer.unit, layer.name) if name)
    near = difflib.get_close_matches(str(unfreeze_from), names, n=4, cutoff=0.6)
    hint = f"did you mean {', '.join(near)}?" if near else "try 'conv5_block1', 'head' or 'all'"
    raise ValueError(f"unfreeze_from={unfreeze_from!r} is no unit and no Keras layer; {hint}")


def blocks_from_params(params: Mapping[str, PyTree]) -> tuple[int, ...]:
    """Counts the layers in each dense block of a parameter tree.

    Raises:
      ValueError: it is not the tree of a whole DenseNet.
    """
    counts: dict[int, int] = {}
    for name in params:
        stage, separator, block = name.partition("_block")
        if separator and stage.startswith("conv"):
            number = int(stage.removeprefix("conv"))
            counts[number] = max(counts.get(number, 0), int(block))
    if not counts or "conv1" not in params:
        raise ValueError("params: expected the whole parameter tree of a DenseNet")
    return tuple(counts[number] for number in sorted(counts))


def trainable_mask(
    params: Mapping[str, PyTree], unfreeze_from: str | int, *, bn_mode: str = "keras"
) -> dict[str, PyTree]:
    """Makes the mask for optax: a tree like `params` with True at what trains.

    Args:
      params: the whole parameter tree of a DenseNet, with or without a head (which always trains).
      unfreeze_from: see `resolve`; `300` is Keras's `model.layers[300:]`.
      bn_mode: accepted for symmetry with a stage; it changes no parameter's mask.

    Raises:
      ValueError: as `resolve`, or `params` is not the tree of a whole DenseNet.
    """
    return resolve(unfreeze_from, blocks_from_params(params), bn_mode=bn_mode).mask(params)
