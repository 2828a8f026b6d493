"""Which tensors a DenseNet has, with names and shapes, computed without running anything."""

import dataclasses
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np

from densenet_flax.models.densenet import NETWORKS, DenseNet
from densenet_flax.models.frontier import keras_layers

Path = tuple[str, ...]  # ('params', 'conv4_block23', '2_conv', 'kernel')
Shape = tuple[int, ...]

_BLOCK = re.compile(r"conv([2-9])_block([1-9]\d{0,2})")


@dataclasses.dataclass(frozen=True)
class Layout:
    """The numbers that fix every shape of a DenseNet."""

    blocks: tuple[int, ...]
    growth_rate: int = 32
    stem_features: int = 64
    num_classes: int = 0
    hidden: tuple[int, ...] = ()

    @classmethod
    def of(cls, model: DenseNet) -> "Layout":
        """The layout of a model's variables."""
        return cls(
            tuple(model.blocks),
            model.growth_rate,
            model.stem_features,
            model.num_classes,
            tuple(model.hidden) if model.num_classes else (),
        )

    @property
    def network(self) -> str:
        """'densenet201' and the like; 'densenet' if it is none of the four published ones."""
        for name, make in NETWORKS.items():
            model = make()
            if (tuple(model.blocks), model.growth_rate, model.stem_features) == (
                self.blocks,
                self.growth_rate,
                self.stem_features,
            ):
                return name
        return "densenet"

    @property
    def features(self) -> int:
        """Channels of the last feature maps."""
        return self._channels()["bn"]

    @property
    def backbone(self) -> "Layout":
        """The same without the head."""
        return dataclasses.replace(self, num_classes=0, hidden=())

    def describe(self) -> str:
        """For messages: 'densenet201 with 2 classes and hidden layers 256'."""
        name = self.network
        if name == "densenet":
            name = f"a DenseNet of blocks {'-'.join(map(str, self.blocks))}"
        if not self.num_classes:
            return f"{name} without a head"
        hidden = f" and hidden layers {', '.join(map(str, self.hidden))}" if self.hidden else ""
        return f"{name} with {self.num_classes} classes{hidden}"

    def tensors(self) -> dict[Path, Shape]:
        """Path and shape of every variable, in the order of the layers."""
        channels = self._channels()
        result: dict[Path, Shape] = {}
        for layer in keras_layers(self.blocks):
            if not layer.path:
                continue
            if layer.is_norm:
                for collection, name in NORM_VARIABLES:
                    result[(collection, *layer.path, name)] = (channels[layer.name],)
            else:
                result[("params", *layer.path, "kernel")] = self._kernel(layer.name, channels)
        width = channels["bn"]
        for name, features in zip(self.head_layers(), self._head_sizes(), strict=True):
            result[("params", "head", name, "kernel")] = (width, features)
            result[("params", "head", name, "bias")] = (features,)
            width = features
        return result

    def shapes(self) -> dict[str, Any]:
        """The tree of variables, as the model's `init` makes it, of float32 shapes."""
        dtype = np.dtype(np.float32)
        tensors = self.tensors().items()
        return nest({path: jax.ShapeDtypeStruct(shape, dtype) for path, shape in tensors})

    def head_layers(self) -> list[str]:
        """Names of the head's Dense layers."""
        hidden = [f"dense_{i}" for i in range(1, len(self.hidden) + 1)]
        return [*hidden, "predictions"] if self.num_classes else []

    def _head_sizes(self) -> list[int]:
        return [*self.hidden, self.num_classes] if self.num_classes else []

    def _kernel(self, layer: str, channels: Mapping[str, int]) -> Shape:
        if layer == "conv1_conv":
            return (7, 7, 3, self.stem_features)
        if layer.endswith("_2_conv"):
            return (3, 3, 4 * self.growth_rate, self.growth_rate)
        if layer.endswith("_1_conv"):
            return (1, 1, channels[layer.replace("_1_conv", "_0_bn")], 4 * self.growth_rate)
        width = channels[layer.replace("_conv", "_bn")]
        return (1, 1, width, width // 2)

    def _channels(self) -> dict[str, int]:
        """Channels that each BatchNorm sees, by Keras name."""
        width = self.stem_features
        result = {"conv1_bn": width}
        for stage, count in enumerate(self.blocks, start=2):
            for block in range(1, count + 1):
                result[f"conv{stage}_block{block}_0_bn"] = width
                result[f"conv{stage}_block{block}_1_bn"] = 4 * self.growth_rate
                width += self.growth_rate
            if stage <= len(self.blocks):
                result[f"pool{stage}_bn"] = width
                width //= 2
        result["bn"] = width
        return result


NORM_VARIABLES = (
    ("params", "scale"),
    ("params", "bias"),
    ("batch_stats", "mean"),
    ("batch_stats", "var"),
)


def recognise(shapes: Mapping[Path, Shape]) -> Layout | None:
    """The layout that a set of tensors seems to be meant as, or None if it is no DenseNet.

    One missing or misshapen tensor does not mislead it: what is wrong is for `differences` to say.
    """
    blocks: Counter[int] = Counter()
    for path in shapes:
        match = _BLOCK.fullmatch(path[1])
        if match:
            stage, block = int(match[1]), int(match[2])
            blocks[stage] = max(blocks[stage], block)
    if not blocks or sorted(blocks) != list(range(2, 2 + len(blocks))):
        return None
    growth = _most_common(
        shape[-1]
        for path, shape in shapes.items()
        if path[2:] == ("2_conv", "kernel") and len(shape) == 4
    )
    stem = _most_common(
        shape[-1] for path, shape in shapes.items() if path[1:3] == ("conv1", "bn") and shape
    )
    if not growth or not stem:
        return None
    hidden: list[int] = []
    while (kernel := shapes.get(("params", "head", f"dense_{len(hidden) + 1}", "kernel"))) and (
        len(kernel) == 2
    ):
        hidden.append(kernel[-1])
    top = shapes.get(("params", "head", "predictions", "kernel"), ())
    classes = top[-1] if len(top) == 2 else 0
    counts = tuple(blocks[stage] for stage in sorted(blocks))
    return Layout(counts, growth, stem, classes, tuple(hidden) if classes else ())


def flatten(tree: Mapping[str, Any], prefix: Path = ()) -> dict[Path, Any]:
    """A nested tree as one dict from path to leaf."""
    flat: dict[Path, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, (*prefix, name))
        else:
            flat[(*prefix, name)] = value
    return flat


def nest(flat: Mapping[Path, Any]) -> dict[str, Any]:
    """The inverse of `flatten`."""
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        node = tree
        for name in path[:-1]:
            node = node.setdefault(name, {})
        node[path[-1]] = value
    return tree


def _most_common(values: Iterable[int]) -> int:
    counts = Counter(values)
    return counts.most_common(1)[0][0] if counts else 0
