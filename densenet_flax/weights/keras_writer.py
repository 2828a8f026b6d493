"""Keras's weight files, written with h5py alone.

A `.weights.h5` file addresses layers by class and order: at `layers/…` where the DenseNet is the
model itself or was extended layer by layer, at `layers/functional/layers/…` where it is a layer of
another model. Ours gives each array both names (HDF5 hard links, no copies), so that one file loads
into all of them. Legacy `.h5` files are loaded by position, and the position inside a nested model
depends on what was frozen when it was saved: ours are for the model extended layer by layer.
"""

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path as FilePath
from typing import Any

import h5py
import numpy as np

from densenet_flax.common.errors import InputError
from densenet_flax.models.frontier import keras_layers
from densenet_flax.storage.atomic import atomic_file
from densenet_flax.weights.info import WeightsInfo
from densenet_flax.weights.keras_files import ATTRIBUTE, KERAS_EPSILON

_NORM = (
    ("gamma", "params", "scale"),
    ("beta", "params", "bias"),
    ("moving_mean", "batch_stats", "mean"),
    ("moving_variance", "batch_stats", "var"),
)
Arrays = list[tuple[str, np.ndarray]]


def save_keras(path: FilePath, variables: Mapping[str, Any], info: WeightsInfo) -> None:
    """Writes `.weights.h5`, or legacy `.h5` for any other name.

    Raises:
      InputError: Keras has no such network, or the file cannot be written.
    """
    check_exportable(path, info)
    layers = _layers(variables, info)
    with atomic_file(path) as temporary:
        try:
            with h5py.File(temporary, "w") as file:
                file.attrs[ATTRIBUTE] = json.dumps(info.to_dict(), sort_keys=True)
                if path.name.endswith(".weights.h5"):
                    _write_ordered(file, layers)
                else:
                    _write_legacy(file, layers)
        except (OSError, RuntimeError) as error:  # HDF5 reports a full disk as either, in pages
            raise OSError(" ".join(str(error).split())[:200]) from error


def check_exportable(path: FilePath, info: WeightsInfo) -> None:
    """Refuses what no `keras.applications` DenseNet can compute."""
    if not info.final_relu:
        raise InputError(
            f"{path}: these weights belong to a network without a ReLU after the last norm, and "
            "Keras's DenseNet has one; use them with this package, as .safetensors"
        )
    if (info.growth_rate, info.stem_features) != (32, 64):
        raise InputError(
            f"{path}: Keras has no {info.layout.describe()}; export DenseNet121, 169 or 201"
        )
    if abs(info.epsilon / KERAS_EPSILON - 1) > 0.01:
        raise InputError(
            f"{path}: these weights were trained with a BatchNorm epsilon of {info.epsilon:g}, "
            f"and Keras's DenseNet has {KERAS_EPSILON:g}; use them as .safetensors"
        )


def _layers(variables: Mapping[str, Any], info: WeightsInfo) -> list[tuple[str, str, Arrays]]:
    """Class, name and arrays of each layer that has any, in Keras's order."""
    result: list[tuple[str, str, Arrays]] = []
    for layer in keras_layers(info.blocks):
        if not layer.path:
            continue
        if layer.is_norm:
            arrays = [
                (keras, _leaf(variables, collection, *layer.path, ours))
                for keras, collection, ours in _NORM
            ]
            result.append(("batch_normalization", layer.name, arrays))
        else:
            kernel = _leaf(variables, "params", *layer.path, "kernel")
            result.append(("conv2d", layer.name, [("kernel", kernel)]))
    names = info.layout.head_layers()
    for number, name in enumerate(names):
        arrays = [(v, _leaf(variables, "params", "head", name, v)) for v in ("kernel", "bias")]
        keras = "predictions" if len(names) == 1 else f"dense_{number}" if number else "dense"
        result.append(("dense", keras, arrays))
    return result


def _leaf(variables: Mapping[str, Any], *path: str) -> np.ndarray:
    node: Any = variables
    for name in path:
        node = node[name]
    return np.asarray(node, np.float32)


def _write_ordered(file: h5py.File, layers: list[tuple[str, str, Arrays]]) -> None:
    outer = file.create_group("layers")
    inner = outer.create_group("functional").create_group("layers")
    counts: Counter[str] = Counter()
    for kind, name, arrays in layers:
        number = counts[kind]
        counts[kind] += 1
        group = outer.create_group(f"{kind}_{number}" if number else kind)
        variables = group.create_group("vars")
        variables.attrs["name"] = name
        for index, (_, values) in enumerate(arrays):
            variables[str(index)] = values
        if kind != "dense":
            inner[group.name.rpartition("/")[2]] = group


def _write_legacy(file: h5py.File, layers: list[tuple[str, str, Arrays]]) -> None:
    names = np.array([name.encode() for _, name, _ in layers])
    # An attribute may not exceed 64 KiB; Keras reads `layer_names0`, `layer_names1` … then.
    chunks = np.array_split(names, 1 + names.nbytes // 60_000)
    for number, chunk in enumerate(chunks):
        file.attrs[f"layer_names{number}" if len(chunks) > 1 else "layer_names"] = chunk
    file.attrs["backend"] = b"jax"
    file.attrs["keras_version"] = b"3.0.0"
    for _, name, arrays in layers:
        group = file.create_group(name)
        group.attrs["weight_names"] = [f"{name}/{variable}".encode() for variable, _ in arrays]
        for variable, values in arrays:
            group.create_dataset(f"{name}/{variable}", data=values)
    file.create_group("top_level_model_weights").attrs["weight_names"] = np.array([], "S1")
