"""Keras's files, read with h5py alone.

Legacy HDF5 addresses variables by layer name (`conv1/conv` in 2018, `conv1_conv` today), with or
without `:0` at the end, flat or nested in the group of a base model. The `.weights.h5` form, which
is also inside `.keras`, addresses them by class and order (`conv2d_17/vars/0`), so there the layer
follows from the position, exactly as Keras itself loads them.
"""

import contextlib
import io
import re
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path as FilePath
from typing import Any

import h5py
import ml_dtypes
import numpy as np

from densenet_flax.common.errors import InputError
from densenet_flax.models.frontier import keras_layers
from densenet_flax.weights import keras_config
from densenet_flax.weights.hdf5_probe import probe
from densenet_flax.weights.layout import Layout, Path, Shape
from densenet_flax.weights.source import Source, Tensor, check_expansion, reading, stated

KERAS_EPSILON = 1.001e-5
ATTRIBUTE = "densenet_flax"  # where our own files keep their `WeightsInfo`, as JSON

_LAYER = re.compile(
    r"(conv1)_(conv|bn)|(conv[2-9]_block[1-9]\d{0,2})_(0_bn|1_conv|1_bn|2_conv)|"
    r"(pool[2-8])_(conv|bn)|(bn)"
)
_ORDERED = re.compile(r"(?:(.*)/)?(conv2d|batch_normalization|dense)(?:_(\d+))?/vars/(\d+)")
_STATE = ("optimizer", "optimizer_weights", "_optimizer")
_VARIABLES = {
    "kernel": ("params", "kernel"),
    "gamma": ("params", "scale"),
    "beta": ("params", "bias"),
    "moving_mean": ("batch_stats", "mean"),
    "moving_variance": ("batch_stats", "var"),
}
_ORDER = {
    "conv2d": ("kernel",),
    "batch_normalization": ("gamma", "beta", "moving_mean", "moving_variance"),
    "dense": ("kernel", "bias"),
}


@contextlib.contextmanager
def open_hdf5(path: FilePath) -> Iterator[Source]:
    """Opens a `.h5` or `.weights.h5` file of Keras."""
    with contextlib.ExitStack() as stack:
        with reading(path):
            probe(path)
            file = stack.enter_context(h5py.File(path, "r"))
        yield _source(path, file, path.stat().st_size)


@contextlib.contextmanager
def open_archive(path: FilePath) -> Iterator[Source]:
    """Opens a `.keras` file: a zip of `config.json` and `model.weights.h5`."""
    with reading(path), zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        check_expansion(path, path.stat().st_size, sum(member.file_size for member in members))
        names = {member.filename for member in members}
        for name in ("config.json", "model.weights.h5"):
            if name not in names:
                raise InputError(f"{path}: a zip without {name}, so no .keras file; get it again")
        config = archive.read("config.json").decode()
        weights = archive.read("model.weights.h5")
    with contextlib.ExitStack() as stack:
        with reading(path, "model.weights.h5"):
            probe(path, weights)
            file = stack.enter_context(h5py.File(io.BytesIO(weights), "r"))
        yield _source(path, file, len(weights), config)


def _source(path: FilePath, file: h5py.File, size: int, config: str | None = None) -> Source:
    with reading(path):
        arrays = _arrays(path, file)
        declared = sum(array.size * array.dtype.itemsize for array in arrays.values())
        check_expansion(path, size, declared)
        legacy = "layer_names" in file.attrs or "layer_names0" in file.attrs
        whole = "model_weights" in file
        if config is None and "model_config" in file.attrs:
            raw = file.attrs["model_config"]
            config = raw.decode() if isinstance(raw, bytes) else str(raw)
        meaning, reasons = keras_config.meaning(path, config)
        if ATTRIBUTE in file.attrs:
            meaning = {**meaning, **stated(path, str(file.attrs[ATTRIBUTE]))}
            reasons = ["this package wrote the file and stated what it means"]
        if legacy or whole:
            form = "Keras legacy HDF5, " + ("a whole model" if whole else "weights")
            tensors = _by_name(arrays, file["model_weights"] if whole else file)
        else:
            form = "Keras .keras" if path.suffix == ".keras" else "Keras .weights.h5"
            tensors = _by_order(path, arrays)
    return Source(path, form, tensors, {"epsilon": KERAS_EPSILON, **meaning}, reasons)


def _arrays(path: FilePath, file: h5py.File) -> dict[str, h5py.Dataset]:
    """All datasets but optimizer state, by name; one that has several names, once.

    Links to other files, and data kept in other files, are refused.
    """
    arrays: dict[str, h5py.Dataset] = {}
    seen = {file.id}

    def walk(group: h5py.Group, prefix: str) -> None:
        for name in group:
            full = f"{prefix}{name}"
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                raise InputError(
                    f"{path}: {full} is a link, which Keras never writes; do not trust the file"
                )
            item = group[name]
            if item.id in seen or (not prefix and name in _STATE):
                continue
            seen.add(item.id)
            if isinstance(item, h5py.Group):
                walk(item, f"{full}/")
            elif not isinstance(item, h5py.Dataset) or item.external or item.is_virtual:
                raise InputError(
                    f"{path}: {full} is no array, or keeps its data in another file; "
                    "do not trust the file"
                )
            else:
                arrays[full] = item

    walk(file, "")
    return arrays


def _by_name(arrays: dict[str, h5py.Dataset], weights: h5py.Group) -> list[Tensor]:
    order = _layer_order(weights)
    tensors = []
    dense: dict[str, list[tuple[str, h5py.Dataset]]] = {}
    for name, array in arrays.items():
        owner, _, variable = name.removesuffix(":0").rpartition("/")
        path = _layer_path(owner)
        if path is not None:
            kind = _VARIABLES.get(variable)
            ours = (kind[0], *path, kind[1]) if kind else None
            tensors.append(_tensor(name, array, ours))
        else:
            dense.setdefault(owner, []).append((name, array))
    kernels = [owner for owner, found in dense.items() if _is_dense(found)]
    kernels.sort(key=lambda owner: order.get(owner.removeprefix("model_weights/"), len(order)))
    for owner, found in dense.items():
        layer = _head_layer(kernels, owner)
        for name, array in found:
            variable = name.removesuffix(":0").rpartition("/")[2]
            known = layer and variable in ("kernel", "bias")
            ours = ("params", "head", layer, variable) if known else None
            tensors.append(_tensor(name, array, ours, in_head=True))
    return tensors


def _is_dense(found: list[tuple[str, h5py.Dataset]]) -> bool:
    return any(
        name.removesuffix(":0").endswith("/kernel") and len(array.shape) == 2
        for name, array in found
    )


def _layer_path(owner: str) -> Path | None:
    """`densenet201/conv1/bn` to ('conv1', 'bn'); None for what is no layer of the backbone."""
    parts = owner.split("/")
    for count in (2, 1):
        match = _LAYER.fullmatch("_".join(parts[-count:]))
        if match:
            return tuple(part for part in match.groups() if part)
    return None


def _layer_order(weights: h5py.Group) -> dict[str, int]:
    """Owners of variables in the order that the file lists its layers and their weights."""
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


def _by_order(path: FilePath, arrays: dict[str, h5py.Dataset]) -> list[Tensor]:
    # (container, class) -> number of the layer -> number of the variable -> name
    groups: dict[tuple[str, str], dict[int, dict[int, str]]] = {}
    rest = []
    for name in arrays:
        match = _ORDERED.fullmatch(name)
        if match:
            layers = groups.setdefault((match[1] or "", match[2]), {})
            layers.setdefault(int(match[3] or 0), {})[int(match[4])] = name
        elif "seed_generator" not in name.split("/"):  # the random state of dropout is no weight
            rest.append(name)
    containers = [container for container, kind in groups if kind == "conv2d"]
    base = max(containers, key=lambda container: len(groups[container, "conv2d"]), default="")
    convolutions = _convolutions(path, arrays, groups.get((base, "conv2d"), {}))
    ours: dict[str, Path] = {}
    for kind, paths in (
        ("conv2d", convolutions),
        ("batch_normalization", _norm_layers(convolutions)),
    ):
        for index, variables in groups.pop((base, kind), {}).items():
            for number, name in variables.items():
                rest.append(name)
                if index < len(paths) and number < len(_ORDER[kind]):
                    collection, variable = _VARIABLES[_ORDER[kind][number]]
                    ours[name] = (collection, *paths[index], variable)
    backbone = set(rest) & ours.keys()
    heads = [container for container, kind in groups if kind == "dense"]
    dense = sorted(groups[heads[0], "dense"]) if len(heads) == 1 else []
    for (_, kind), layers in groups.items():
        for index, variables in layers.items():
            layer = _head_layer(dense, index) if kind == "dense" else ""
            for number, name in variables.items():
                rest.append(name)
                if layer and number < len(_ORDER["dense"]):
                    ours[name] = ("params", "head", layer, _ORDER["dense"][number])
    return [_tensor(n, arrays[n], ours.get(n), in_head=n not in backbone) for n in rest]


def _head_layer(dense: list[Any], key: Any) -> str:
    """`dense_1`, … for all Dense layers of a head but the last, which is `predictions`."""
    if key not in dense:
        return ""
    number = dense.index(key) + 1
    return "predictions" if number == len(dense) else f"dense_{number}"


def _convolutions(
    path: FilePath, arrays: dict[str, h5py.Dataset], found: dict[int, dict[int, str]]
) -> list[Path]:
    """Which convolution of a DenseNet each numbered one is, told by their kernel sizes."""
    sizes: list[int] = []
    for index in range(len(found)):
        if 0 not in found.get(index, {}):
            raise InputError(
                f"{path}: {_numbered('conv2d', index)}/vars/0 is missing; get a complete file"
            )
        name = found[index][0]
        shape: Shape = tuple(arrays[name].shape)
        allowed = (7,) if index == 0 else (1, 3) if sizes[-1] == 1 else (1,)
        if len(shape) != 4 or shape[0] != shape[1] or shape[0] not in allowed:
            raise InputError(
                f"{path}: {name} {shape} is no kernel of a DenseNet (expected "
                f"{' or '.join(f'{n}×{n}' for n in allowed)} there); give DenseNet121, 169 or 201"
            )
        sizes.append(shape[0])
    blocks = [0]
    for this, following in zip(sizes[1:], [*sizes[2:], 1], strict=True):
        if this == 1 and following == 3:
            blocks[-1] += 1
        elif this == 1:
            blocks.append(0)
    if 0 in blocks:
        raise InputError(
            f"{path}: {len(sizes)} convolutions that are not those of a DenseNet; "
            "give DenseNet121, 169 or 201"
        )
    layers = keras_layers(Layout(tuple(blocks)).blocks)
    return [layer.path for layer in layers if layer.path and not layer.is_norm]


def _numbered(kind: str, index: int) -> str:
    return f"layers/{kind}_{index}" if index else f"layers/{kind}"


def _norm_layers(convolutions: list[Path]) -> list[Path]:
    """The norms of the network that has these convolutions, in Keras's order."""
    blocks = Counter(unit.partition("_")[0] for unit, name in convolutions if name == "2_conv")
    return [layer.path for layer in keras_layers(tuple(blocks.values())) if layer.is_norm]


def _tensor(name: str, array: h5py.Dataset, path: Path | None, in_head: bool = False) -> Tensor:
    def read() -> np.ndarray:
        values = array[()]
        if array.attrs.get("dtype") == "bfloat16":
            values = values.view(ml_dtypes.bfloat16)
        elif not np.issubdtype(values.dtype, np.floating):
            raise InputError(f"{array.file.filename}: {name} is {values.dtype}; expected floats")
        return values

    return Tensor(name, tuple(array.shape), path, read, in_head)
