"""What a weights file means, beyond its numbers: it travels with them."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from densenet_flax.common.errors import InputError
from densenet_flax.models.densenet import DenseNet
from densenet_flax.weights.layout import Layout

PREPROCESSING = ("torch", "scale")
ACTIVATIONS = ("softmax", "sigmoid")


@dataclasses.dataclass(frozen=True)
class WeightsInfo:
    """What one must know to use a set of weights as it was trained. JSON-serialisable.

    Attributes:
      network: 'densenet121', 'densenet161', 'densenet169', 'densenet201', or 'densenet' for one of
        another size.
      blocks: blocks in each dense stage.
      growth_rate: channels that a block adds.
      stem_features: channels of the stem.
      num_classes: 0 if there is no head.
      hidden: sizes of the ReLU layers between pooling and the last Dense layer.
      preprocessing: `mode` of `densenet_flax.preprocess_input`.
      epsilon: of every BatchNorm.
      final_relu: whether a ReLU follows the last norm.
      activation: what turns the logits into probabilities, 'softmax' or 'sigmoid'.
      class_names: in the order of the logits; empty if unknown.
      source: name of the file that the weights first came from.
      sha256: of that file.
      licence: of the weights, as their source states it; empty if unknown.
      extra: anything else that whoever made the file wants to keep with it.
    """

    network: str
    blocks: tuple[int, ...]
    growth_rate: int = 32
    stem_features: int = 64
    num_classes: int = 0
    hidden: tuple[int, ...] = ()
    preprocessing: str = "torch"
    epsilon: float = 1.001e-5
    final_relu: bool = True
    activation: str = "softmax"
    class_names: tuple[str, ...] = ()
    source: str = ""
    sha256: str = ""
    licence: str = ""
    extra: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        _check(self)

    @classmethod
    def of(cls, model: DenseNet, **kwargs: Any) -> "WeightsInfo":
        """The info of weights for `model`; `kwargs` are the attributes that a model cannot know."""
        layout = Layout.of(model)
        return cls.from_layout(
            layout, **{"epsilon": model.epsilon, "final_relu": model.final_relu, **kwargs}
        )

    @classmethod
    def from_layout(cls, layout: Layout, **kwargs: Any) -> "WeightsInfo":
        """The info of weights of this layout."""
        return cls(network=layout.network, **dataclasses.asdict(layout), **kwargs)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "WeightsInfo":
        """The inverse of `to_dict`. Keys that this version does not know go to `extra`.

        Raises:
          InputError: a value is missing or makes no sense.
        """
        names = {field.name for field in dataclasses.fields(cls)}
        known = {name: value for name, value in values.items() if name in names}
        for name in ("blocks", "hidden", "class_names"):
            if isinstance(known.get(name), list):
                known[name] = tuple(known[name])
        extra = known.get("extra") or {}
        if not isinstance(extra, Mapping):
            raise InputError(f"extra: expected a mapping, got {extra!r}; convert the file anew")
        known["extra"] = {**extra, **{k: v for k, v in values.items() if k not in names}}
        try:
            return cls(**known)
        except TypeError as error:
            raise InputError(f"weights info: {error}; convert the file anew") from error

    def to_dict(self) -> dict[str, Any]:
        """As plain lists, numbers and strings, for JSON."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in dataclasses.asdict(self).items()
        }

    @property
    def layout(self) -> Layout:
        """The numbers that fix every shape."""
        return Layout(
            self.blocks, self.growth_rate, self.stem_features, self.num_classes, self.hidden
        )

    def build_model(self, **overrides: Any) -> DenseNet:
        """The model that these weights belong to; `overrides` are arguments of `DenseNet`."""
        arguments = {
            "blocks": self.blocks,
            "growth_rate": self.growth_rate,
            "stem_features": self.stem_features,
            "num_classes": self.num_classes,
            "hidden": self.hidden,
            "epsilon": self.epsilon,
            "final_relu": self.final_relu,
        }
        return DenseNet(**{**arguments, **overrides})


def _check(info: WeightsInfo) -> None:
    def expect(name: str, good: bool, expected: str) -> None:
        if not good:
            value = getattr(info, name)
            raise InputError(f"weights info: {name} is {value!r}; expected {expected}")

    def sizes(values: Any) -> bool:
        return isinstance(values, tuple) and all(whole(value, 1) for value in values)

    def whole(value: Any, smallest: int) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and value >= smallest

    expect("blocks", sizes(info.blocks) and len(info.blocks) > 0, "positive integers")
    expect("growth_rate", whole(info.growth_rate, 1), "a positive integer")
    expect("stem_features", whole(info.stem_features, 1), "a positive integer")
    expect("num_classes", whole(info.num_classes, 0), "an integer from 0")
    expect("hidden", sizes(info.hidden), "positive integers")
    expect("hidden", not info.hidden or info.num_classes > 0, "none where there are no classes")
    expect("preprocessing", info.preprocessing in PREPROCESSING, f"one of {PREPROCESSING}")
    is_small = isinstance(info.epsilon, float) and 0 < info.epsilon < 1
    expect("epsilon", is_small, "a number between 0 and 1")
    expect("final_relu", isinstance(info.final_relu, bool), "true or false")
    expect("activation", info.activation in ACTIVATIONS, f"one of {ACTIVATIONS}")
    are_names = isinstance(info.class_names, tuple) and all(
        isinstance(name, str) for name in info.class_names
    )
    expect("class_names", are_names, "a list of strings")
    fits = not info.class_names or len(info.class_names) == info.num_classes
    expect("class_names", fits, f"{info.num_classes} names, one for each class")
    for name in ("network", "source", "sha256", "licence"):
        expect(name, isinstance(getattr(info, name), str), "a string")
    name = info.layout.network
    # A size without a name may get one later; files that were written before stay readable.
    named = info.network in (name, "densenet")
    expect("network", named, f"{name!r}, which blocks and growth rate make it")
