"""Which variable each array of a Keras file is.

Legacy HDF5 addresses variables by layer name (`conv1/conv` in 2018, `conv1_conv` today), with or
without `:0` at the end, flat or nested in the group of a base model. The `.weights.h5` form, which
is also inside `.keras`, addresses them by class and order (`conv2d_17/vars/0`): the layer follows
from the position, as when Keras itself loads them.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import h5py
import ml_dtypes
import numpy as np
from jaxtyping import Float

from densenet_flax.common.errors import InputError
from densenet_flax.models.frontier import keras_layers
from densenet_flax.weights.keras_graph import Call
from densenet_flax.weights.layout import KERAS_VARIABLES, VariablePath, name_head_layers
from densenet_flax.weights.weights_file import StoredTensor, zero_biases

_LAYER = re.compile(
    r"(conv1)_(conv|bn)|(conv[2-9]_block[1-9]\d{0,2})_(0_bn|1_conv|1_bn|2_conv)|"
    r"(pool[2-8])_(conv|bn)|(bn)"
)
_ORDERED = re.compile(
    r"(?:(?P<container>.*)/)?(?P<layer_class>conv2d|batch_normalization|dense)"
    r"(?:_(?P<layer>\d+))?/vars/(?P<variable>\d+)"
)


def tensors_by_name(
    arrays: Mapping[str, h5py.Dataset], weights: h5py.Group, dense: Sequence[Call] = ()
) -> list[StoredTensor]:
    """The tensors of a legacy file, whose attributes of `weights` list the layers in order.

    `dense` are the head's layers in the order in which they are applied, if known.
    """
    # `:0` ends the names of TensorFlow's variables.
    owners = {name: name.removesuffix(":0").rpartition("/")[::2] for name in arrays}
    kernels = [name for name, (_, variable) in owners.items() if variable == "kernel"]
    matrices = dict.fromkeys(owners[n][0] for n in kernels if owners[n][0] and arrays[n].ndim == 2)
    order = _layer_order(weights)
    # In the file of a whole model, `weights` is a group of it.
    in_order = sorted(
        matrices, key=lambda n: order.get(n.removeprefix("model_weights/"), len(order))
    )
    if dense:
        by_name = {name.rpartition("/")[2]: name for name in in_order}
        # Of several layers of one name nothing tells which is which.
        is_clear = len(by_name) == len(in_order)
        in_order = [by_name[c.name] for c in dense if c.name in by_name] if is_clear else []
    head = dict(zip(in_order, name_head_layers(len(in_order)), strict=True))
    variables = {k: v for variables in KERAS_VARIABLES.values() for k, v in variables.items()}
    tensors = []
    for name, (layer, variable) in owners.items():
        backbone = backbone_path(layer)
        layer_path = backbone or (("head", head[layer]) if layer in head else None)
        collection, ours = variables.get(variable, ("", ""))
        path = (collection, *layer_path, ours) if layer_path and collection else None
        tensors.append(_tensor(name, arrays[name], path, in_head=not backbone))
    return tensors + zero_biases(tensors)


def tensors_by_order(
    path: Path,
    arrays: Mapping[str, h5py.Dataset],
    dense: Sequence[Call] = (),
) -> list[StoredTensor]:
    """The tensors of a `.weights.h5` file, by class and order of their layers.

    Args:
      path: the file.
      arrays: all that it holds.
      dense: the head's layers in the order in which they are applied, if known.
    """
    groups = _group_by_order(arrays)
    # A base model nested in another has a container of its own; it has the most convolutions.
    containers = [container for container, layer_class in groups if layer_class == "conv2d"]
    base = max(containers, key=lambda container: len(groups[container, "conv2d"]), default="")
    conv_layers = groups.get((base, "conv2d"), {})
    keras = keras_layers(_infer_blocks(path, arrays, conv_layers))
    convs = [layer.path for layer in keras if layer.path and not layer.is_norm]
    norms = [layer.path for layer in keras if layer.is_norm]
    norm_layers = groups.get((base, "batch_normalization"), {})
    backbone = _match_order(conv_layers, convs, "conv2d")
    backbone |= _match_order(norm_layers, norms, "batch_normalization")
    layers = _dense_layers(groups, dense)
    paths = [("head", name) for name in name_head_layers(len(layers))]
    head = _match_order(layers, paths, "dense")
    tensors = [
        _tensor(name, array, (backbone | head).get(name), in_head=name not in backbone)
        for name, array in arrays.items()
    ]
    return tensors + zero_biases(tensors)


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


def _dense_layers(groups: Mapping[tuple[str, str], _Layers], dense: Sequence[Call]) -> _Layers:
    """The Dense layers of the head, numbered in the order in which they are applied."""
    heads = {container: layers for (container, kind), layers in groups.items() if kind == "dense"}
    if not dense:
        # Of several heads, none is ours. A layer that was deleted leaves a gap in the numbers.
        layers = next(iter(heads.values())) if len(heads) == 1 else {}
        return dict(enumerate(names for _, names in sorted(layers.items())))
    by_path = {}
    for container, layers in heads.items():
        models = [f"{part}/" for part in container.split("/") if part not in ("", "layers")]
        for number, names in layers.items():
            by_path["".join(models) + (f"dense_{number}" if number else "dense")] = names
    return {i: by_path[call.path] for i, call in enumerate(dense) if call.path in by_path}


def _match_order(
    layers: _Layers, paths: Sequence[VariablePath], layer_class: str
) -> dict[str, VariablePath]:
    """The variable that each array is, by name; `paths` are our layers in the same order."""
    ours = list(KERAS_VARIABLES[layer_class].values())
    return {
        name: (ours[number][0], *paths[index], ours[number][1])
        for index, names in layers.items()
        for number, name in names.items()
        if index < len(paths) and number < len(ours)
    }


def backbone_path(layer: str) -> VariablePath | None:
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


def _infer_blocks(
    path: Path, arrays: Mapping[str, h5py.Dataset], layers: _Layers
) -> tuple[int, ...]:
    """The blocks of a DenseNet, inferred from the kernel sizes of its convolutions.

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
    # As text, a dense block is (13)+ and a transition the 1 between two of them.
    text = "".join(map(str, sizes))
    if not re.fullmatch("7(13)+(1(13)+)*", text):
        fault = f"{len(sizes)} convolutions that are not those of a DenseNet"
        raise InputError(f"{path}: {fault}; give DenseNet121, 169 or 201")
    return tuple(len(block) // 2 for block in re.findall("(?:13)+", text))


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
