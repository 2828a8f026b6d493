"""The calls of layers that the configuration of a Keras model describes.

Nested models are followed into, so that what comes out is one graph of plain layers, whether the
model is `Sequential`, functional, or one inside the other, and whether Keras 2 or 3 wrote it.
"""

import dataclasses
import graphlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from densenet_flax.common.errors import InputError
from densenet_flax.common.trees import JsonDict

CONTAINERS = ("Functional", "Model", "Sequential")
# Far more than any real model: a few models that call each other twice would never end.
_MAX_CALLS = 20_000

_Tensor: TypeAlias = tuple[str, int, int]  # layer, number of the call, number of the output


@dataclasses.dataclass(frozen=True)
class Call:
    """A layer that is called once.

    Attributes:
      layer_class: of the layer, such as 'Conv2D'.
      name: of the layer.
      config: of the layer.
      inputs: numbers of the calls that it takes the outputs of.
      constants: other arguments of the call, by name, or number as text.
      path: of the layer in `.weights.h5` files, such as 'sequential/dense_1'.
    """

    layer_class: str
    name: str
    config: JsonDict
    inputs: tuple[int, ...]
    constants: JsonDict
    path: str


@dataclasses.dataclass(frozen=True)
class KerasGraph:
    """A model as calls of layers.

    Attributes:
      calls: each after those that it takes as inputs.
      outputs: numbers of the calls that are the outputs of the model.
    """

    calls: Sequence[Call]
    outputs: Sequence[int]


def read_graph(model: JsonDict) -> KerasGraph:
    """Reads the graph of a model from its configuration, as parsed from JSON.

    Raises:
      InputError: the model is of a class whose configuration does not describe layers.
    """
    builder = _Builder(dict(_layer_paths(model)))
    outputs = builder.call_model(model, None)
    return KerasGraph(builder.calls, outputs)


class _Builder:
    """Collects the calls."""

    def __init__(self, paths: Mapping[int, str]):
        self.calls: list[Call] = []
        self._paths = paths  # of layers, by `id` of their configuration

    def call_model(self, model: JsonDict, inputs: Sequence[int] | None) -> list[int]:
        """Calls a model; None for the inputs of the outermost one."""
        if _class_name(model) == "Sequential":
            return self._call_sequential(model, inputs)
        config = model["config"]
        if _class_name(model) not in CONTAINERS or "input_layers" not in config:
            raise InputError(
                f"{_name(model)!r} is a {_class_name(model)}, a model class of its own, which "
                "does not state what it computes; save the weights of the DenseNet alone"
            )
        return self._call_functional(config, inputs)

    def _call_sequential(self, model: JsonDict, inputs: Sequence[int] | None) -> list[int]:
        layers = _layers(model)
        if inputs is None:
            shape = _input_shape(layers[0]) if layers else None
            shape = shape or (model.get("build_config") or {}).get("input_shape")
            inputs = [self._add({"class_name": "InputLayer", "config": {"batch_shape": shape}})]
        values = list(inputs)
        for layer in layers:
            if _class_name(layer) != "InputLayer":
                values = self._call_layer(layer, values, {})
        return values

    def _call_functional(self, config: JsonDict, inputs: Sequence[int] | None) -> list[int]:
        layers = {_name(layer): layer for layer in config["layers"]}
        values: dict[_Tensor, int] = {}
        for number, (name, _, _) in enumerate(_tensor_list(config["input_layers"])):
            if inputs is not None:
                values[name, 0, 0] = inputs[number]
            else:
                values[name, 0, 0] = self._add(layers[name])
        # Graph search by hand: hundreds of layers, one behind the other, are too deep to recurse.
        nodes = {}
        for name, layer in layers.items():
            for number, node in enumerate(layer.get("inbound_nodes") or ()):
                tensors, constants = _arguments(node)
                is_keras3 = isinstance(node, dict)
                if is_keras3:  # where a model is used, that of the whole model counts
                    constants.pop("training", None)
                tensors = [_renumber(tensor, layers, from_one=not is_keras3) for tensor in tensors]
                nodes[name, number] = tensors, constants
        outputs_of_model = [
            _renumber(tensor, layers, from_one=True)
            for tensor in _tensor_list(config["output_layers"])
        ]
        sorter = graphlib.TopologicalSorter(
            {key: [tensor[:2] for tensor in tensors] for key, (tensors, _) in nodes.items()}
        )
        for name, number in sorter.static_order():
            if (name, number, 0) in values or (name, number) not in nodes:
                continue
            tensors, constants = nodes[name, number]
            if not all(tensor in values for tensor in tensors):
                continue  # a call outside of this model
            outputs = self._call_layer(layers[name], [values[t] for t in tensors], constants)
            values |= {(name, number, index): value for index, value in enumerate(outputs)}
        return [values[tensor] for tensor in outputs_of_model]

    def _call_layer(self, layer: JsonDict, inputs: Sequence[int], constants: JsonDict) -> list[int]:
        if constants.get("training") is True:
            raise InputError(
                f"layer {_name(layer)!r} is called with training=True, so that it computes "
                "something else for every batch; save the model with training=False there"
            )
        if _class_name(layer) in CONTAINERS:
            return self.call_model(layer, inputs)
        return [self._add(layer, inputs, constants)]

    def _add(
        self, layer: JsonDict, inputs: Sequence[int] = (), constants: JsonDict | None = None
    ) -> int:
        if len(self.calls) >= _MAX_CALLS:
            raise InputError(f"a model of more than {_MAX_CALLS:,} layers; expected a DenseNet")
        layer_class, name, config = _class_name(layer), _name(layer), layer.get("config", {})
        path = self._paths.get(id(layer), "")
        self.calls.append(Call(layer_class, name, config, tuple(inputs), constants or {}, path))
        return len(self.calls) - 1


def _layers(model: JsonDict) -> list[JsonDict]:
    config = model.get("config", {})
    # Keras before 2.2 wrote Sequential models as a list.
    return config if isinstance(config, list) else config.get("layers", [])


def _layer_paths(model: JsonDict, prefix: str = "") -> Iterator[tuple[int, str]]:
    """`id` of each layer in a model, and its path in `.weights.h5` files without 'layers'.

    There Keras calls a layer by its class, and numbers those of a model from the second on.
    """
    counts: Counter[str] = Counter()
    for layer in _layers(model):
        name = _class_name(layer).lower()
        path = f"{prefix}{name}_{counts[name]}" if counts[name] else f"{prefix}{name}"
        counts[name] += 1
        yield id(layer), path
        if _class_name(layer) in CONTAINERS:
            yield from _layer_paths(layer, f"{path}/")


def _class_name(layer: JsonDict) -> str:
    """Class of a layer; 'custom …' if it is not Keras's own, which may have the same name."""
    name, registered = str(layer.get("class_name", "?")), layer.get("registered_name")
    module = str(layer.get("module"))
    is_own = not registered or module.startswith(("keras.", "tf_keras.", "tensorflow."))
    return name if is_own else f"custom {registered}"


def _name(layer: JsonDict) -> str:
    config = layer.get("config")
    name = config.get("name") if isinstance(config, dict) else None
    return str(layer.get("name") or name or _class_name(layer))


def _input_shape(layer: JsonDict) -> Any:
    config = layer.get("config", {})
    if isinstance(config, list) or _class_name(layer) in CONTAINERS:
        inner = _layers(layer)
        return _input_shape(inner[0]) if inner else None
    return config.get("batch_shape") or config.get("batch_input_shape")


def _renumber(tensor: _Tensor, layers: Mapping[str, JsonDict], *, from_one: bool) -> _Tensor:
    """A tensor with the calls of its layer counted from 0.

    Calls of a model that is a layer of another are counted from 1 wherever Keras 2 names them, and
    by Keras 3 as outputs alone: the first is the one by which the inner model was made.
    """
    name, number, index = tensor
    layer = layers.get(name, {})
    if len(layer.get("inbound_nodes") or ()) <= 1:
        return name, 0, index
    return name, number - (from_one and _class_name(layer) in CONTAINERS), index


def _tensor_list(value: Any) -> list[_Tensor]:
    """`input_layers` or `output_layers`: one tensor, or a list or dictionary of them."""
    if isinstance(value, dict):
        value = list(value.values())
    items = [value] if value and isinstance(value[0], str) else value
    return [(str(name), int(node), int(index)) for name, node, index in items]


def _arguments(node: Any) -> tuple[list[_Tensor], JsonDict]:
    """The tensors that a call takes, and its other arguments."""
    tensors: list[_Tensor] = []
    constants: JsonDict = {}
    if isinstance(node, dict):  # Keras 3
        named = [(str(i), value) for i, value in enumerate(node.get("args", ()))]
        for name, value in [*named, *node.get("kwargs", {}).items()]:
            inner = list(_keras_tensors(value))
            tensors += inner
            if not inner:
                constants[name] = value
        return tensors, constants
    for item in [node] if node and isinstance(node[0], str) else node:
        name, number, index, *rest = item
        if name == "_CONSTANT_VALUE":
            constants["0"] = index
        else:
            tensors.append((str(name), int(number), int(index)))
        for arguments in rest:
            constants |= arguments
    return tensors, constants


def _keras_tensors(value: Any) -> Iterator[_Tensor]:
    if isinstance(value, dict):
        if value.get("class_name") == "__keras_tensor__":
            name, number, index = value["config"]["keras_history"]
            yield str(name), int(number), int(index)
            return
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from _keras_tensors(item)
