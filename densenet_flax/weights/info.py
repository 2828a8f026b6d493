"""What a weights file says besides its numbers: which network it is and how to use it.

It is kept as one JSON object: in the header of our `.safetensors`, in an attribute of our `.h5`,
and in each checkpoint. Files come from anywhere, so every value is checked when it is read: a bad
one is one line that names it, and not a crash or a hang in the middle of a prediction.
"""

import dataclasses
import reprlib
from collections.abc import Mapping
from typing import Any, TypedDict, Unpack, cast

from densenet_flax.common.errors import InputError
from densenet_flax.common.trees import JsonDict
from densenet_flax.models.densenet import DenseNet
from densenet_flax.models.preprocessing import PREPROCESSING
from densenet_flax.weights.inference_settings import InferenceSettings
from densenet_flax.weights.layout import Layout

# Keras's epsilon of 1.001e-5 and PyTorch's of 1e-5 are taken for each other: the difference is
# below what float32 resolves unless a variance is itself about as small.
EPSILON_TOLERANCE = 0.01
# Of a text: more than the text of any license.
_MAX_TEXT = 100_000
ACTIVATIONS = ("softmax", "sigmoid", "none")


class InfoFields(TypedDict, total=False):
    """Attributes of `WeightsInfo` that do not follow from the shapes of the tensors."""

    preprocessing: str
    epsilon: float
    final_relu: bool
    activation: str
    class_names: tuple[str, ...]
    source: str
    sha256: str
    license: str
    inference: InferenceSettings
    extra: JsonDict


@dataclasses.dataclass(frozen=True)
class WeightsInfo:
    """What one must know to use a set of weights as it was trained. JSON-serializable.

    Attributes:
      network: 'densenet121', 'densenet161', 'densenet169', 'densenet201', or 'densenet' for one of
        another size.
      blocks: dense layers in each dense block.
      growth_rate: channels that a dense layer adds.
      stem_features: channels of the stem.
      num_classes: 0 if there is no head.
      hidden: sizes of the ReLU layers between pooling and the last Dense layer.
      preprocessing: `mode` of `densenet_flax.preprocess_input`.
      epsilon: of every BatchNorm.
      final_relu: whether a ReLU follows the last norm.
      activation: what turns the logits into probabilities: 'softmax', classes that exclude each
        other; 'sigmoid', a single probability or independent ones; 'none', they are none, such as
        those of a regression.
      class_names: in the order of the logits; empty if unknown.
      source: name of the file that the weights first came from.
      sha256: of that file.
      license: of the weights, as their source states it; empty if unknown.
      inference: how to use the network on new images.
      extra: any other JSON values to keep with the weights.
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
    license: str = ""
    inference: InferenceSettings = dataclasses.field(default_factory=InferenceSettings)
    extra: JsonDict = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        _check(self)

    @classmethod
    def of(cls, model: DenseNet, **fields: Unpack[InfoFields]) -> "WeightsInfo":
        """The info of weights for `model`; its epsilon and last ReLU unless `fields` has them."""
        info = cls.from_layout(Layout.of(model), epsilon=model.epsilon, final_relu=model.final_relu)
        return dataclasses.replace(info, **fields)

    @classmethod
    def from_layout(cls, layout: Layout, **fields: Unpack[InfoFields]) -> "WeightsInfo":
        """The info of weights of this layout."""
        return cls(network=layout.network, **dataclasses.asdict(layout), **fields)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "WeightsInfo":
        """The inverse of `to_dict`. Keys that this version does not know go to `extra`.

        Raises:
          InputError: a value is missing or cannot be used.
        """
        extra = values.get("extra") or {} if isinstance(values, Mapping) else None
        if not isinstance(extra, Mapping):
            raise InputError("extra: expected a JSON object; convert the file again")
        extra = dict(extra)
        # Files spell it 'licence', so that versions before this one find it.
        values = {"license" if name == "licence" else name: value for name, value in values.items()}
        names = {field.name for field in dataclasses.fields(cls)} - {"inference", "extra"}
        known: JsonDict = {
            name: tuple(value) if isinstance(value, list) else value  # JSON has no tuples
            for name, value in values.items()
            if name in names
        }
        extra |= {n: value for n, value in values.items() if n not in names and n != "extra"}
        inference = InferenceSettings.from_dict(extra)
        for name in InferenceSettings.keys() & extra.keys():
            del extra[name]
        try:
            return cls(**known, inference=inference, extra=extra)
        except TypeError as error:  # a required key is missing
            raise InputError(f"{error}; convert the file again") from error

    def to_dict(self) -> JsonDict:
        """As JSON values, in the form that files have had since the first version."""
        values = {n: list(v) if isinstance(v, tuple) else v for n, v in vars(self).items()}
        values["licence"] = values.pop("license")
        del values["inference"]
        return {**values, "extra": {**self.extra, **self.inference.to_dict()}}

    @property
    def fields(self) -> InfoFields:
        """The attributes that do not follow from the shapes of the tensors."""
        return cast(InfoFields, {name: getattr(self, name) for name in InfoFields.__annotations__})

    @property
    def layout(self) -> Layout:
        """The numbers that fix every shape."""
        return Layout(**{f.name: getattr(self, f.name) for f in dataclasses.fields(Layout)})

    def build_model(self, **overrides: Any) -> DenseNet:
        """The model that these weights belong to; `overrides` are arguments of `DenseNet`."""
        arguments = dataclasses.asdict(self.layout)
        arguments |= {"epsilon": self.epsilon, "final_relu": self.final_relu}
        return DenseNet(**(arguments | overrides))


def _check(info: WeightsInfo) -> None:
    def expect(name: str, is_valid: bool, expected: str) -> None:
        if not is_valid:
            # Not `repr`: it may be a page.
            raise InputError(f"{name}={reprlib.repr(getattr(info, name))}: expected {expected}")

    def is_whole(value: Any, smallest: int) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and value >= smallest

    def are_sizes(values: Any) -> bool:
        return isinstance(values, tuple) and all(is_whole(value, 1) for value in values)

    expect("blocks", are_sizes(info.blocks) and len(info.blocks) > 0, "positive integers")
    expect("growth_rate", is_whole(info.growth_rate, 1), "a positive integer")
    expect("stem_features", is_whole(info.stem_features, 1), "a positive integer")
    expect("num_classes", is_whole(info.num_classes, 0), "an integer from 0")
    expect("hidden", are_sizes(info.hidden), "positive integers")
    expect("hidden", not info.hidden or info.num_classes > 0, "none where there are no classes")
    expect("preprocessing", info.preprocessing in PREPROCESSING, f"one of {PREPROCESSING}")
    is_fraction = isinstance(info.epsilon, float) and 0 < info.epsilon < 1
    expect("epsilon", is_fraction, "a number between 0 and 1")
    expect("final_relu", isinstance(info.final_relu, bool), "true or false")
    expect("activation", info.activation in ACTIVATIONS, f"one of {ACTIVATIONS}")
    names = info.class_names
    are_names = isinstance(names, tuple) and all(isinstance(n, str) and n for n in names)
    expect("class_names", are_names and len({*names}) == len(names), "a list of different names")
    is_complete = not names or len(names) == info.num_classes
    expect("class_names", is_complete, f"{info.num_classes} names, one for each class")
    for name in ("network", "source", "sha256", "license"):
        value = getattr(info, name)
        is_text = isinstance(value, str) and len(value) <= _MAX_TEXT
        expect(name, is_text, f"a text of at most {_MAX_TEXT} characters")
    network = info.layout.network
    # A size without a name may get one later; files that were written before stay readable.
    is_named = info.network in (network, "densenet")
    expect("network", is_named, f"{network!r}, which blocks and growth rate make it")
    expect("inference", isinstance(info.inference, InferenceSettings), "InferenceSettings")
    misplaced = info.extra.keys() & InferenceSettings.keys()
    expect("extra", not misplaced, f"no {', '.join(misplaced)}, which `inference` holds")
