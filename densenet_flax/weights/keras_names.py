"""Which variable each array of a Keras file is.

Legacy HDF5 addresses variables by layer name (`conv1/conv` in 2018, `conv1_conv` today), with or
without `:0` at the end, flat or nested in the group of a base model. The `.weights.h5` form, which
is also inside `.keras`, addresses them by class and order (`conv2d_17/vars/0`): the layer follows
from the position, as when Keras itself loads them.
"""

import re
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import h5py
import ml_dtypes
import numpy as np
from jaxtyping import Float

from densenet_flax.common.errors import InputError
from densenet_flax.models.frontier import keras_layers
from densenet_flax.weights.layout import VariablePath
from densenet_flax.weights.weights_file import StoredTensor

# Collection and name in our variables of Keras's variables, in the order in which layers have them.
CONV_VARIABLES = {"kernel": ("params", "kernel")}
NORM_VARIABLES = {
    "gamma": ("params", "scale"),
    "beta": ("params", "bias"),
    "moving_mean": ("batch_stats", "mean"),
    "moving_variance": ("batch_stats", "var"),
}
DENSE_VARIABLES = ("kernel", "bias")
_BACKBONE_VARIABLES = {**CONV_VARIABLES, **NORM_VARIABLES}

_LAYER = re.compile(
    r"(conv1)_(conv|bn)|(conv[2-9]_block[1-9]\d{0,2})_(0_bn|1_conv|1_bn|2_conv)|"
    r"(pool[2-8])_(conv|bn)|(bn)"
)
_ORDERED = re.compile(
    r"(?:(?P<container>.*)/)?(?P<layer_class>conv2d|batch_normalization|dense)"
    r"(?:_(?P<layer>\d+))?/vars/(?P<variable>\d+)"
)


def tensors_by_name(arrays: Mapping[str, h5py.Dataset], weights: h5py.Group) -> list[StoredTensor]:
    """The tensors of a legacy file, by the names of their layers.

    Args:
      arrays: all arrays of the file by name.
      weights: the group whose attributes list the layers in order.
    """
    tensors = []
    outside: dict[str, list[tuple[str, str]]] = {}  # layer -> arrays of no layer of the backbone
    for name, array in arrays.items():
        layer, _, variable = name.removesuffix(":0").rpartition("/")
        path = _layer_path(layer)
        if path is None:
            outside.setdefault(layer, []).append((name, variable))
        else:
            collection, ours = _BACKBONE_VARIABLES.get(variable, ("", ""))
            known_path = (collection, *path, ours) if collection else None
            tensors.append(_tensor(name, array, known_path))
    order = _layer_order(weights)
    dense = [
        layer
        for layer, variables in outside.items()
        if layer and any(v == "kernel" and arrays[name].ndim == 2 for name, v in variables)
    ]
    dense.sort(key=lambda layer: order.get(layer.removeprefix("model_weights/"), len(order)))
    for layer, variables in outside.items():
        head_layer = _head_layer(dense, layer)
        for name, variable in variables:
            is_known = head_layer and variable in DENSE_VARIABLES
            path = ("params", "head", head_layer, variable) if is_known else None
            tensors.append(_tensor(name, arrays[name], path, in_head=True))
    return tensors


def tensors_by_order(path: Path, arrays: Mapping[str, h5py.Dataset]) -> list[StoredTensor]:
    """The tensors of a `.weights.h5` file, by class and order of their layers.

    Raises:
      InputError: the convolutions are not those of a DenseNet.
    """
    # The random state of dropout is no weight.
    arrays = {n: array for n, array in arrays.items() if "seed_generator" not in n.split("/")}
    groups = _group_by_order(arrays)
    # A base model nested in another has a container of its own; it has the most convolutions.
    containers = [container for container, layer_class in groups if layer_class == "conv2d"]
    base = max(containers, key=lambda container: len(groups[container, "conv2d"]), default="")
    conv_layers = groups.get((base, "conv2d"), {})
    convolutions = _convolutions(path, arrays, conv_layers)
    backbone = _match_order(conv_layers, convolutions, CONV_VARIABLES)
    norm_layers = groups.get((base, "batch_normalization"), {})
    backbone |= _match_order(norm_layers, _norms(convolutions), NORM_VARIABLES)

    heads = [layers for (_, layer_class), layers in groups.items() if layer_class == "dense"]
    head: dict[str, VariablePath] = {}
    if len(heads) == 1:  # of several heads, none is ours
        numbers = sorted(heads[0])
        paths = {number: ("head", _head_layer(numbers, number)) for number in numbers}
        names = {name: ("params", name) for name in DENSE_VARIABLES}
        head = _match_order(heads[0], paths, names)
    known = backbone | head
    return [
        _tensor(name, array, known.get(name), in_head=name not in backbone)
        for name, array in arrays.items()
    ]


# Number of a layer among those of its class -> number of the variable -> name of the array.
_Layers: TypeAlias = dict[int, dict[int, str]]


def _group_by_order(arrays: Iterable[str]) -> dict[tuple[str, str], _Layers]:
    """The arrays of numbered layers, by container and class of the layer."""
    groups: dict[tuple[str, str], _Layers] = {}
    for name in arrays:
        if match := _ORDERED.fullmatch(name):
            layers = groups.setdefault((match["container"] or "", match["layer_class"]), {})
            layers.setdefault(int(match["layer"] or 0), {})[int(match["variable"])] = name
    return groups


def _match_order(
    layers: _Layers,
    paths: Mapping[int, VariablePath],
    variables: Mapping[str, tuple[str, str]],
) -> dict[str, VariablePath]:
    """The variable that each array is, by name; without those that no layer has.

    Args:
      layers: the arrays.
      paths: which layer of ours each layer is, by its number.
      variables: what a layer of this class has, in order: collection and name in our variables.
    """
    ours = list(variables.values())
    return {
        name: (ours[number][0], *paths[index], ours[number][1])
        for index, arrays in layers.items()
        for number, name in arrays.items()
        if index in paths and number < len(ours)
    }


def _layer_path(layer: str) -> VariablePath | None:
    """`densenet201/conv1/bn` to ('conv1', 'bn'); None for what is no layer of the backbone."""
    parts = layer.split("/")
    for count in (2, 1):
        if match := _LAYER.fullmatch("_".join(parts[-count:])):
            return tuple(part for part in match.groups() if part)
    return None


def _layer_order(weights: h5py.Group) -> dict[str, int]:
    """Position of each layer, in the order that the file lists layers and their weights."""
    order: dict[str, int] = {}
    for layer in _attribute(weights, "layer_names"):
        if layer in weights:
            for name in _attribute(weights[layer], "weight_names"):
                owner = f"{layer}/{name}".removesuffix(":0").rpartition("/")[0]
                order.setdefault(owner, len(order))
    return order


def _attribute(group: h5py.Group, name: str) -> list[str]:
    """An attribute that Keras splits into `name0`, `name1` … where it is too long for HDF5."""
    names = [name] if name in group.attrs else []
    while f"{name}{len(names)}" in group.attrs and name not in group.attrs:
        names.append(f"{name}{len(names)}")
    values = [value for part in names for value in np.atleast_1d(group.attrs[part])]
    return [value.decode() if isinstance(value, bytes) else str(value) for value in values]


def _head_layer(dense: Sequence[Hashable], layer: Hashable) -> str:
    """`dense_1`, … for all Dense layers of a head but the last, which is `predictions`."""
    if layer not in dense:
        return ""
    number = dense.index(layer) + 1
    return "predictions" if number == len(dense) else f"dense_{number}"


def _convolutions(
    path: Path, arrays: Mapping[str, h5py.Dataset], layers: _Layers
) -> dict[int, VariablePath]:
    """Which convolution of a DenseNet each numbered one is, inferred from their kernel sizes.

    The sizes are 7, then 1 and 3 for each dense layer and a single 1 for each transition, so that
    two 1s in a row end a dense block.
    """
    sizes: list[int] = []
    for index in range(len(layers)):
        if 0 not in layers.get(index, {}):
            name = f"layers/conv2d_{index}" if index else "layers/conv2d"
            raise InputError(f"{path}: {name}/vars/0 is missing; get a complete file")
        name = layers[index][0]
        shape = tuple(arrays[name].shape)
        allowed = (7,) if index == 0 else (1, 3) if sizes[-1] == 1 else (1,)
        if len(shape) != 4 or shape[0] != shape[1] or shape[0] not in allowed:
            raise InputError(
                f"{path}: {name} {shape} is no kernel of a DenseNet (expected "
                f"{' or '.join(f'{n}×{n}' for n in allowed)} there); give DenseNet121, 169 or 201"
            )
        sizes.append(shape[0])
    blocks = [0]
    for size, following in zip(sizes[1:], [*sizes[2:], 1], strict=True):
        if size == 1 and following == 3:
            blocks[-1] += 1
        elif size == 1:
            blocks.append(0)
    if 0 in blocks:
        raise InputError(
            f"{path}: {len(sizes)} convolutions that are not those of a DenseNet; "
            "give DenseNet121, 169 or 201"
        )
    keras = keras_layers(tuple(blocks))
    return dict(enumerate(layer.path for layer in keras if layer.path and not layer.is_norm))


def _norms(convolutions: Mapping[int, VariablePath]) -> dict[int, VariablePath]:
    """The norms of the network that has these convolutions, in Keras's order."""
    units = [unit for unit, name in convolutions.values() if name == "2_conv"]
    blocks = Counter(unit.partition("_")[0] for unit in units)
    keras = keras_layers(tuple(blocks.values()))
    return dict(enumerate(layer.path for layer in keras if layer.is_norm))


def _tensor(
    name: str, array: h5py.Dataset, path: VariablePath | None, in_head: bool = False
) -> StoredTensor:
    def read() -> Float[np.ndarray, "..."]:
        # HDF5 has no bfloat16: Keras writes its two bytes and says so in an attribute.
        is_bfloat16 = array.attrs.get("dtype") == "bfloat16"
        # Checked before reading: a few bytes of a dtype of variable length can unpack to gigabytes.
        if array.dtype.kind != "f" and not (is_bfloat16 and array.dtype.itemsize == 2):
            raise InputError(f"{array.file.filename}: {name} is {array.dtype}; expected floats")
        values = array[()]
        return values.view(ml_dtypes.bfloat16) if is_bfloat16 else values

    return StoredTensor(name, tuple(array.shape), path, read, in_head)
