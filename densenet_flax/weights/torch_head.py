"""The classification head in a state dict, which names its layers and does not say what is between.

What shapes and numbers tell is used, what contradicts our head is a fault, and what must be assumed
is said.
"""

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence

from densenet_flax.weights.layout import Shape
from densenet_flax.weights.weights_file import Head

# Of more layers not every order is tried.
_MAX_LAYERS = 8
# CheXNet's DenseNet121 and its many copies: https://github.com/arnoweng/CheXNet
_CHEXNET = re.compile(r"(.*\.)?densenet121\.classifier\.0")
_CHEXNET_OUTPUTS = 14
# Layers of metric learning, which compare directions: ArcFace, CosFace, … and those in a loss.
_NORMALIZED = re.compile(r"arc_?(face|margin)|cos_?face|cosine|criterion|loss", re.IGNORECASE)


def read_head(shapes: Mapping[str, Shape], features: int, *, is_ordered: bool) -> Head[str]:
    """Reads the head from the tensors that are not of the backbone.

    Args:
      shapes: of the tensors, by name.
      features: how many pooled features enter the head; 0 if unknown.
      is_ordered: whether the file keeps the order in which the model declares its layers.
    """
    layers = [
        n.removesuffix(".weight")
        for n, s in shapes.items()
        if n.endswith(".weight") and len(s) == 2
    ]
    if not layers or not features:
        return Head(sorted(layers, key=_natural_order))
    is_numbered = len({re.sub(r"\d+", "#", layer) for layer in layers}) == 1
    if is_numbered:
        layers.sort(key=_natural_order)
    orders = list(itertools.islice(_fitting_orders(layers, shapes, features), 2))
    described = ", ".join(f"{n} {'×'.join(map(str, shapes[f'{n}.weight']))}" for n in layers)
    if not orders:
        fault = (
            f"its Linear layers ({described}) do not follow one another from the {features} "
            "pooled features, as after another pooling or in several heads; this package's head "
            "is global average pooling, then Dense layers"
        )
        return Head(layers, fault)
    if len(orders) > 1 and not (is_numbered or is_ordered):
        fault = (
            f"the order of its Linear layers ({described}) does not follow from their shapes, and "
            "this format does not keep the order of names; give the .pth file"
        )
        return Head(layers, fault)
    layers = orders[0]
    widths = [shapes[f"{layer}.weight"][0] for layer in layers]
    if fault := _chain_fault(layers, widths, features):
        return Head(layers, fault)
    return _assume(layers, widths[-1])


def _chain_fault(layers: Sequence[str], widths: Sequence[int], features: int) -> str:
    """Why layers that fit one another are not our head all the same; '' if they may be.

    Args:
      layers: in the order in which they are applied.
      widths: how many outputs each has.
      features: how many pooled features enter the first.
    """
    merge = "merge them into one Linear layer (W2 W1, W2 b1 + b2)"
    if pair := _adjacent(layers):
        return (
            f"{pair[0]} and {pair[1]} follow one another without a module between them, and this "
            f"package's head has a ReLU there; {merge}"
        )
    if normalized := [layer for layer in layers if _NORMALIZED.search(layer)]:
        return (
            f"{normalized[0]} is named like a layer that normalizes its weights and inputs, as "
            "ArcFace; this package's heads are plain Linear layers; rename it if it is one"
        )
    parents = [layer.rpartition(".")[0] for layer in layers]
    if len(set(parents)) == 1:
        return ""
    if layers[0].rpartition(".")[2] == "classifier" and parents[1] != parents[0]:
        return (
            f"{layers[0]} is the classifier of the DenseNet itself and {layers[1]} follows it; "
            f"nothing tells whether a ReLU is between them; if there is none, {merge}; if there is "
            "one, save both in one nn.Sequential with it"
        )
    if features in widths[:-1]:
        return (
            f"{layers[widths.index(features)]} returns as many outputs as the {features} pooled "
            "features, as a gate of channels or attention does; this package's heads have none; "
            "if these are layers one after the other, save them in one nn.Sequential"
        )
    return ""


def _assume(layers: Sequence[str], outputs: int) -> Head[str]:
    """Adds what a state dict does not say."""
    if outputs == _CHEXNET_OUTPUTS and len(layers) == 1 and _CHEXNET.fullmatch(layers[0]):
        note = f"a sigmoid of {outputs} outputs, by the names of CheXNet"
        return Head(layers, activation="sigmoid", notes=(note,))
    between = ", ReLU between the layers" if len(layers) > 1 else ""
    if re.search(r"(^|\.)0$", layers[0]) and len(layers) == 1 and outputs > 1:
        # Nobody puts a single layer into an `nn.Sequential` that nothing follows.
        return Head(layers, activation=None, notes=("mean pooling assumed",))
    activation = "softmax" if outputs > 1 else "sigmoid"
    note = f"a state dict does not say what is not a layer: mean pooling{between} and {activation}"
    return Head(layers, activation=activation, notes=(f"{note} assumed",))


def _fitting_orders(
    layers: Sequence[str], shapes: Mapping[str, Shape], inputs: int
) -> Iterator[list[str]]:
    """Orders of the layers in which each takes what the one before gives, the given one first."""
    if not layers:
        yield []
    for layer in layers if len(layers) <= _MAX_LAYERS else layers[:1]:
        out_features, in_features = shapes[f"{layer}.weight"]
        if in_features == inputs:
            rest = [other for other in layers if other != layer]
            yield from ([layer, *order] for order in _fitting_orders(rest, shapes, out_features))


def _adjacent(layers: Sequence[str]) -> tuple[str, str] | None:
    """The first two layers that are neighbors in an `nn.Sequential`."""
    for first, second in itertools.pairwise(layers):
        (parent, _, i), (other, _, j) = first.rpartition("."), second.rpartition(".")
        if parent == other and i.isdecimal() and j.isdecimal() and int(j) - int(i) == 1:
            return first, second
    return None


def _natural_order(name: str) -> list[tuple[int, str]]:
    """Sorts `classifier.10` after `classifier.2`."""
    parts = re.split(r"(\d+)", name)
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]
