"""Names and shapes of a DenseNet's variables, computed without tracing the model.

Tracing a DenseNet201 takes seconds; converting and inspecting files should not wait for it.
"""

import dataclasses
import re
import statistics
from collections import Counter
from collections.abc import Mapping
from typing import TypeAlias

import jax
import numpy as np
from flax.traverse_util import unflatten_dict

from densenet_flax.common.trees import PyTree
from densenet_flax.models.densenet import NETWORKS, DenseNet
from densenet_flax.models.frontier import keras_layers

VariablePath: TypeAlias = tuple[str, ...]  # ('params', 'conv4_block23', '2_conv', 'kernel')
Shape: TypeAlias = tuple[int, ...]

# Collection and name in ours of Keras's variables, by class of the layer, in the order in which
# layers have them.
KERAS_VARIABLES = {
    "conv2d": {"kernel": ("params", "kernel")},
    "batch_normalization": {
        "gamma": ("params", "scale"),
        "beta": ("params", "bias"),
        "moving_mean": ("batch_stats", "mean"),
        "moving_variance": ("batch_stats", "var"),
    },
    "dense": {"kernel": ("params", "kernel"), "bias": ("params", "bias")},
}
_DENSE_LAYER = re.compile(r"conv([2-9])_block([1-9]\d{0,2})")


@dataclasses.dataclass(frozen=True)
class Layout:
    """The numbers that fix every shape of a DenseNet; named as the fields of `DenseNet`."""

    blocks: tuple[int, ...]
    growth_rate: int = 32
    stem_features: int = 64
    num_classes: int = 0
    hidden: tuple[int, ...] = ()

    @classmethod
    def of(cls, model: DenseNet) -> "Layout":
        """The layout of a model's variables."""
        blocks, hidden = tuple(model.blocks), tuple(model.hidden) if model.num_classes else ()
        return cls(blocks, model.growth_rate, model.stem_features, model.num_classes, hidden)

    @property
    def network(self) -> str:
        """'densenet201' and the like; 'densenet' if it is none of the four published ones."""
        # Building a Flax module only stores its fields; nothing is traced.
        backbones = {name: Layout.of(build()).backbone for name, build in NETWORKS.items()}
        return next((n for n, layout in backbones.items() if layout == self.backbone), "densenet")

    @property
    def features(self) -> int:
        """Channels of the last feature maps."""
        return self.tensors()["params", "bn", "scale"][0]

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

    def tensors(self) -> dict[VariablePath, Shape]:
        """Path and shape of every variable, in the order of the layers."""
        shapes: dict[VariablePath, Shape] = {}
        growth, bottleneck = self.growth_rate, 4 * self.growth_rate
        width = self.stem_features  # channels that the layer at hand receives
        for layer in keras_layers(self.blocks):
            if not layer.path:
                continue
            kind = layer.path[-1]
            if layer.is_norm:
                channels = bottleneck if kind == "1_bn" else width
                for collection, name in KERAS_VARIABLES["batch_normalization"].values():
                    shapes[(collection, *layer.path, name)] = (channels,)
                continue
            if layer.unit == "stem":
                kernel = (7, 7, 3, width)
            elif kind == "1_conv":
                kernel = (1, 1, width, bottleneck)
            elif kind == "2_conv":
                kernel = (3, 3, bottleneck, growth)
                width += growth
            else:  # a transition halves the channels
                kernel = (1, 1, width, width // 2)
                width //= 2
            shapes[("params", *layer.path, "kernel")] = kernel
        sizes = [*self.hidden, self.num_classes]
        # Without a head there are no layers to go with the sizes.
        for name, features in zip(self.head_layers(), sizes, strict=False):
            shapes[("params", "head", name, "kernel")] = (width, features)
            shapes[("params", "head", name, "bias")] = (features,)
            width = features
        return shapes

    def shapes(self) -> PyTree:
        """The tree of variables, as the model's `init` makes it, of float32 shapes."""
        tensors = self.tensors().items()
        return unflatten_dict({p: jax.ShapeDtypeStruct(s, np.float32) for p, s in tensors})

    def head_layers(self) -> list[str]:
        """Names of the head's Dense layers."""
        return name_head_layers(len(self.hidden) + 1) if self.num_classes else []


def name_head_layers(count: int) -> list[str]:
    """Our names of a head's Dense layers: 'dense_1', 'dense_2', …, and 'predictions' at last."""
    return [*(f"dense_{i}" for i in range(1, count)), "predictions"][:count]


def infer_layout(shapes: Mapping[VariablePath, Shape]) -> Layout | None:
    """The layout that a set of tensors seems to be meant as, or None if it is no DenseNet.

    One missing or misshaped tensor does not mislead it; `WeightsFile.read` reports what is wrong.
    """
    layers: Counter[int] = Counter()  # dense block -> highest number of a dense layer
    for path in shapes:
        if match := _DENSE_LAYER.fullmatch(path[1]):
            block, layer = int(match[1]), int(match[2])
            layers[block] = max(layers[block], layer)
    if not layers or sorted(layers) != list(range(2, 2 + len(layers))):
        return None
    # By majority: a single tensor may have a wrong shape.
    kernels = [s for p, s in shapes.items() if p[2:] == ("2_conv", "kernel") and len(s) == 4]
    stem_norms = [s for p, s in shapes.items() if p[1:3] == ("conv1", "bn") and s]
    if not kernels or not stem_norms:
        return None
    growth, stem = (statistics.mode(s[-1] for s in group) for group in (kernels, stem_norms))
    if not growth or not stem:
        return None
    head = {
        path[2]: shape[-1]
        for path, shape in shapes.items()
        if path[:2] == ("params", "head") and path[3:] == ("kernel",) and len(shape) == 2
    }
    # The first gap in dense_1, dense_2, … ends the hidden layers; what follows is left over.
    hidden: list[int] = []
    while size := head.get(f"dense_{len(hidden) + 1}"):
        hidden.append(size)
    classes = head.get("predictions", 0)
    blocks = tuple(layers[block] for block in sorted(layers))
    return Layout(blocks, growth, stem, classes, tuple(hidden) if classes else ())
