"""Writes Keras's weight files with h5py alone.

A `.weights.h5` file addresses layers by class and order: at `layers/…` where the DenseNet is the
model itself or was extended layer by layer, at `layers/functional/layers/…` where it is a layer of
another model. Ours gives each array both names (HDF5 hard links, no copies), so that one file loads
into all of them. Legacy `.h5` files are loaded by position, and the position inside a nested model
depends on what was frozen when it was saved: ours are for the model extended layer by layer.
"""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np
from flax.traverse_util import flatten_dict
from jaxtyping import Float

from densenet_flax.common.trees import Variables
from densenet_flax.models.frontier import keras_layers
from densenet_flax.storage.atomic import atomic_file
from densenet_flax.weights.info import WeightsInfo
from densenet_flax.weights.keras_files import INFO_ATTRIBUTE
from densenet_flax.weights.layout import KERAS_VARIABLES, VariablePath

_ATTRIBUTE_BYTES = 60_000  # HDF5 allows 64 KiB


class _Layer(NamedTuple):
    """A layer: its class in snake case, its name, and its arrays by variable, in order."""

    layer_class: str
    name: str
    arrays: dict[str, Float[np.ndarray, "..."]]


def save_keras(path: Path, variables: Variables, info: WeightsInfo) -> None:
    """Writes `.weights.h5`, or legacy `.h5` for any other name."""
    layers = _layers(variables, info)
    with atomic_file(path) as temporary:
        try:
            # The file is locked by this process already.
            with h5py.File(temporary, "w", locking=False) as file:
                file.attrs[INFO_ATTRIBUTE] = json.dumps(info.to_dict(), sort_keys=True)
                write = _write_ordered if path.name.endswith(".weights.h5") else _write_legacy
                write(file, layers)
        except (OSError, RuntimeError) as error:  # HDF5 reports a full disk as either, in pages
            raise OSError(" ".join(str(error).split())[:200]) from error


def _layers(variables: Variables, info: WeightsInfo) -> list[_Layer]:
    """Each layer that has variables, in Keras's order."""
    arrays = {path: np.asarray(x, np.float32) for path, x in flatten_dict(variables).items()}

    def make_layer(layer_class: str, name: str, path: VariablePath) -> _Layer:
        ours = KERAS_VARIABLES[layer_class].items()
        values = {keras: arrays[group, *path, variable] for keras, (group, variable) in ours}
        return _Layer(layer_class, name, values)

    layers = [
        make_layer("batch_normalization" if layer.is_norm else "conv2d", layer.name, layer.path)
        for layer in keras_layers(info.blocks)
        if layer.path
    ]
    head = info.layout.head_layers()
    for number, layer in enumerate(head):
        # A single layer is the top of `keras.applications`; several are a head of Keras's naming.
        name = "predictions" if len(head) == 1 else f"dense_{number}" if number else "dense"
        layers.append(make_layer("dense", name, ("head", layer)))
    return layers


def _write_ordered(file: h5py.File, layers: Sequence[_Layer]) -> None:
    outer = file.create_group("layers")
    inner = outer.create_group("functional").create_group("layers")
    counts: Counter[str] = Counter()
    for layer in layers:
        # Keras numbers the layers of a class from the second on: conv2d, conv2d_1, …
        number = counts[layer.layer_class]
        counts[layer.layer_class] += 1
        name = f"{layer.layer_class}_{number}" if number else layer.layer_class
        group = outer.create_group(name)
        variables = group.create_group("vars")
        variables.attrs["name"] = layer.name
        for index, values in enumerate(layer.arrays.values()):
            variables[str(index)] = values
        if layer.layer_class != "dense":  # the head lies outside of a nested network
            inner[name] = group  # a hard link


def _write_legacy(file: h5py.File, layers: Sequence[_Layer]) -> None:
    names = np.array([layer.name.encode() for layer in layers])
    # Keras reads `layer_names0`, `layer_names1` … where one attribute would be too long.
    chunks = np.array_split(names, 1 + names.nbytes // _ATTRIBUTE_BYTES)
    for number, chunk in enumerate(chunks):
        file.attrs[f"layer_names{number}" if len(chunks) > 1 else "layer_names"] = chunk
    file.attrs["backend"] = b"jax"
    file.attrs["keras_version"] = b"3.0.0"
    for layer in layers:
        group = file.create_group(layer.name)
        group.attrs["weight_names"] = [f"{layer.name}/{name}".encode() for name in layer.arrays]
        for name, values in layer.arrays.items():
            group.create_dataset(f"{layer.name}/{name}", data=values)
    file.create_group("top_level_model_weights").attrs["weight_names"] = np.array([], "S1")
