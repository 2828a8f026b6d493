"""What the configuration inside a whole Keras model says that its arrays do not.

The model is followed from its input to its output. It must be layers that only scale pixels, then
exactly the network of `keras.applications`, then a head as ours; whatever else is named.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any, TypeAlias

from densenet_flax.common.errors import InputError
from densenet_flax.models.units import unit_names
from densenet_flax.weights.inference_settings import InferenceSettings
from densenet_flax.weights.info import InfoFields
from densenet_flax.weights.keras_graph import Call, KerasGraph, read_graph
from densenet_flax.weights.keras_head import read_head
from densenet_flax.weights.keras_layers import canonical_key, is_identity
from densenet_flax.weights.keras_pixels import Pixels, pixels_after
from densenet_flax.weights.safe_reading import reading
from densenet_flax.weights.weights_file import Head

_CONVENTION = "Keras's preprocess_input ('torch'), by convention: the file does not say"

# What a value is computed from: the kind of the layer and the values that it takes.
_Key: TypeAlias = tuple[Any, ...]


@dataclasses.dataclass(frozen=True)
class KerasConfig:
    """What the configuration of a model says.

    Attributes:
      fields: metadata.
      evidence: where they come from, in words.
      head: the head; None for bare weights.
      pixels_fault: why pixels cannot be preprocessed as the model does; '' if they can.
    """

    fields: InfoFields
    evidence: tuple[str, ...]
    head: Head[Call] | None = None
    pixels_fault: str = ""


def read_config(path: Path, config: bytes | str | None) -> KerasConfig:
    """Reads what a configuration (JSON; None for bare weights) says.

    Raises:
      InputError: the backbone computes something that ours does not.
    """
    if config is None:
        return KerasConfig({}, (_CONVENTION,))
    with reading(path):
        graph = read_graph(json.loads(config))
        reader = _Reader(graph)
        pixels, last, has_relu = reader.match_backbone()
        image_size, pixels_fault = pixels.image_size, pixels.explain_fault()
        fields: InfoFields = {"epsilon": reader.epsilon(), "final_relu": has_relu}
        evidence = [f"epsilon {fields['epsilon']:g} from the model's configuration"]
        if mode := pixels.mode():
            fields["preprocessing"] = mode
            evidence.append(f"{pixels.describe()} is preprocessing {mode!r}")
        elif not pixels_fault:
            evidence.append(_CONVENTION)
        if policies := {policy for call in graph.calls if (policy := _half_precision(call))}:
            policy = ", ".join(sorted(policies))
            evidence.append(f"the model computes in {policy}, this package in float32")
        calls = reader.chain(last)
        if isinstance(calls, str):  # why there is no head that can be read
            head = Head[Call](fault=calls)
        else:
            map_size = _map_size(image_size, reader.num_blocks)
            head = read_head(calls, is_positive=has_relu, map_size=map_size)
        if head.activation:
            fields["activation"] = head.activation
        evidence += head.notes
        if image_size:
            fields["inference"] = InferenceSettings(image_size=image_size)
            evidence.append(f"images of {image_size[0]}×{image_size[1]} pixels")
    return KerasConfig(fields, tuple(evidence), head, pixels_fault)


class _Reader:
    """The values that a graph computes: equal values have equal numbers."""

    def __init__(self, graph: KerasGraph):
        self.graph = graph
        self.values: list[int] = []  # by number of the call
        self.first: dict[int, Call] = {}  # the call that computed a value first
        self.inputs: dict[int, tuple[int, ...]] = {}
        self.pixels: dict[int, Pixels] = {}
        self._numbers: dict[_Key, int] = {}
        self.num_blocks = 0
        for call in graph.calls:
            self.values.append(self._value(call))

    def match_backbone(self) -> tuple[Pixels, int, bool]:
        """Finds the network of `keras.applications`.

        Returns:
          What its input is, the value that it ends with, and whether that went through a ReLU.

        Raises:
          InputError: something in it is different.
        """
        value = self._pixels_value()
        pixels = self.pixels[value]
        value = self._expect(value, ("pad", 3))
        value = self._expect(value, ("conv", 7, 2, "valid", "conv1", "conv"))
        value = self._relu(self._expect(value, ("norm", "conv1", "bn")))
        value = self._expect(self._expect(value, ("pad", 1)), ("max", 3, 2))
        blocks = self._blocks()
        self.num_blocks = len(blocks)
        for unit in unit_names(blocks)[1:-1]:
            if unit.startswith("pool"):
                value = self._relu(self._expect(value, ("norm", unit, "bn")))
                value = self._expect(value, ("conv", 1, 1, "", unit, "conv"))
                value = self._expect(value, ("average", 2, 2))
                continue
            y = self._relu(self._expect(value, ("norm", unit, "0_bn")))
            y = self._expect(y, ("conv", 1, 1, "", unit, "1_conv"))
            y = self._relu(self._expect(y, ("norm", unit, "1_bn")))
            y = self._expect(y, ("conv", 3, 1, "same", unit, "2_conv"))
            value = self._expect(value, ("concatenate",), y)
        value = self._expect(value, ("norm", "bn"))
        relu = self._numbers.get((("relu",), value))
        return pixels, value if relu is None else relu, relu is not None

    def epsilon(self) -> float:
        """Of the BatchNorms of the backbone; InputError if they differ."""
        norms = [call for key, call in self._keyed() if key[0] == "norm"]
        epsilons = {float(call.config.get("epsilon", 1e-3)) for call in norms}
        if len(epsilons) > 1:
            raise InputError(f"BatchNorms of different epsilon {sorted(epsilons)}")
        return epsilons.pop()

    def chain(self, value: int) -> list[Call] | str:
        """The calls from a value to the output, each of which takes the one before alone.

        Or what is in the way, in words.
        """
        outputs = {self.values[output] for output in self.graph.outputs}
        if len(outputs) != 1:
            return f"it has {len(outputs)} outputs, and this package's networks have one"
        current, calls = outputs.pop(), []
        while current != value:
            call, inputs = self.first[current], self.inputs[current]
            if len(inputs) != 1:
                what = "joins several values" if inputs else "does not come from the last norm"
                return f"layer {call.name!r} ({call.layer_class}) {what}"
            calls.append(call)
            current = inputs[0]
        return calls[::-1]

    def _value(self, call: Call) -> int:
        inputs = tuple(self.values[i] for i in call.inputs)
        if len(inputs) == 1 and is_identity(call):
            return inputs[0]
        key: _Key = (canonical_key(call), *inputs)
        number = self._numbers.setdefault(key, len(self._numbers))
        if number not in self.first:
            self.first[number], self.inputs[number] = call, inputs
            before = self.pixels.get(inputs[0]) if len(inputs) == 1 else None
            if pixels := pixels_after(call, before):
                self.pixels[number] = pixels
        return number

    def _keyed(self) -> list[tuple[_Key, Call]]:
        return [(key[0], self.first[number]) for key, number in self._numbers.items()]

    def _pixels_value(self) -> int:
        """The value that enters the stem."""
        stems = [
            number
            for key, number in self._numbers.items()
            if key[0][0] == "conv" and key[0][-2:] == ("conv1", "conv")
        ]
        if len(stems) != 1:
            raise InputError(
                f"{len(stems) or 'no'} layers of the name conv1_conv; expected one model of "
                "keras.applications with the names of its layers"
            )
        value = stems[0]
        for _ in range(2):
            if not (inputs := self.inputs[value]):
                break
            value = inputs[0]
            if value in self.pixels:
                return value
        call = self.first[value]
        raise InputError(
            f"layer {call.name!r} ({call.layer_class}) changes images before the DenseNet in a way "
            "that this package does not know; remove it and save the model again"
        )

    def _blocks(self) -> tuple[int, ...]:
        units = {str(key[-2]) for key, _ in self._keyed() if key[0] == "conv"}
        numbers = [u.removeprefix("conv").split("_block") for u in units if "_block" in u]
        sizes: dict[int, int] = {}
        for block, layer in numbers:
            sizes[int(block)] = max(sizes.get(int(block), 0), int(layer))
        return tuple(sizes[block] for block in sorted(sizes))

    def _relu(self, value: int) -> int:
        return self._expect(value, ("relu",))

    def _expect(self, value: int, key: _Key, *others: int) -> int:
        """The value that a layer of the network makes of others; InputError if there is none."""
        number = self._numbers.get((key, value, *others))
        if number is not None:
            return number
        following = [self.first[n] for n, inputs in self.inputs.items() if inputs[:1] == (value,)]
        layers = ", ".join(f"{call.name!r} ({describe(call)})" for call in following[:3])
        raise InputError(
            f"after layer {self.first[value].name!r} comes {layers or 'nothing'}, where the "
            f"DenseNet of keras.applications has {' '.join(str(part) for part in key if part)!r}"
        )


def describe(call: Call) -> str:
    """Class of a layer, and its activation if it is one."""
    activation = call.config.get("activation")
    is_named = isinstance(activation, str) and activation != "linear"
    return f"{call.layer_class} {activation}" if is_named else call.layer_class


def _half_precision(call: Call) -> str:
    """The dtype or policy of a layer that does not compute in float32; '' for others."""
    policy = call.config.get("dtype")
    if isinstance(policy, dict):
        policy = policy.get("config", {}).get("name")
    return policy if isinstance(policy, str) and "float16" in policy else ""


def _map_size(image_size: tuple[int, int] | None, num_blocks: int) -> tuple[int, int] | None:
    """(height, width) of the last feature maps: two halvings upward, then downward."""
    if image_size is None:
        return None
    height, width = (-(-n // 4) // 2 ** (num_blocks - 1) for n in image_size)
    return height, width
