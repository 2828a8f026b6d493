"""The network of a Keras file, run by Keras: what `verify` compares ours with."""

import contextlib
import io
import os
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from jaxtyping import Float

from densenet_flax.models.units import unit_names
from densenet_flax.weights.info import WeightsInfo

os.environ.setdefault("KERAS_BACKEND", "jax")  # installed in any case, unlike TensorFlow
import keras

# Keras layers whose outputs are those of our units, where the names differ.
_UNIT_LAYERS = {"stem": "pool1", "norm": "relu"}


class KerasReference:
    """The model in a file, or the network that `info` describes with the weights in the file.

    Raises:
      ImportError: Keras is not installed, has no such network, or its layers have other names.
    """

    def __init__(self, path: Path, info: WeightsInfo):
        self._info = info
        with contextlib.redirect_stdout(io.StringIO()):
            if _is_whole_model(path):
                self._model = keras.models.load_model(path, compile=False)
                self._backbone = _find_backbone(self._model)
                if self._backbone is None:
                    raise ImportError("the model has no layer of the name conv1_conv")
                return
            self._backbone = _network(info)
            self._model = _extend(self._backbone, info)
            try:
                self._model.load_weights(path)
            except ValueError:  # saved with the network as a layer of the model
                self._model = keras.Sequential([self._backbone, *_head(info)])
                self._model.load_weights(path)

    @property
    def input_size(self) -> tuple[int, ...]:
        """(height, width) of images if the model fixes them, else ()."""
        return tuple(size for size in self._backbone.input_shape[1:3] if size)

    def run(self, images: Float[np.ndarray, "N H W 3"]) -> dict[str, Float[np.ndarray, "N ..."]]:
        """Outputs of every unit by our names, and with a head the probabilities or logits."""
        info = self._info
        units = {_layer_name(unit): unit for unit in unit_names(info.blocks)}
        if not info.final_relu:  # the unit 'norm' then ends before the ReLU
            units["bn"] = units.pop("relu")
        layers = [layer for layer in self._backbone.layers if layer.name in units]
        inner = keras.Model(self._backbone.input, [layer.output for layer in layers])
        # `predict` compiles; a plain call runs hundreds of layers one by one.
        values = inner.predict(images, verbose=0)
        names = [units[layer.name] for layer in layers]
        outputs = {name: np.asarray(value) for name, value in zip(names, values, strict=True)}
        if info.num_classes:
            top = self._model.predict(images, verbose=0)
            # A last layer without activation gives logits.
            is_logits = info.activation == "softmax" and not np.allclose(top.sum(-1), 1)
            outputs["head" if is_logits else "probabilities"] = top
        return outputs


def _is_whole_model(path: Path) -> bool:
    if path.suffix == ".keras":
        return True
    with h5py.File(path, "r") as file:
        return "model_config" in file.attrs


def _find_backbone(model: Any) -> Any:
    """The model, itself or inside this one, whose layers are the network's."""
    if any(layer.name in ("conv1_conv", "conv1/conv") for layer in model.layers):
        return model
    for layer in model.layers:
        if hasattr(layer, "layers") and (backbone := _find_backbone(layer)) is not None:
            return backbone
    return None


def _network(info: WeightsInfo) -> Any:
    build = getattr(keras.applications, info.network.replace("densenet", "DenseNet"), None)
    if build is None:
        raise ImportError(f"keras.applications has no {info.network}")
    return build(include_top=False, weights=None, input_shape=(None, None, 3))


def _extend(backbone: Any, info: WeightsInfo) -> Any:
    """The backbone extended layer by layer by a head."""
    x = backbone.output
    for layer in _head(info):
        x = layer(x)
    return keras.Model(backbone.input, x)


def _head(info: WeightsInfo) -> list[Any]:
    if not info.num_classes:
        return []
    sizes = [*[(size, "relu") for size in info.hidden], (info.num_classes, info.activation)]
    dense = [keras.layers.Dense(size, activation=activation) for size, activation in sizes]
    return [keras.layers.GlobalAveragePooling2D(), *dense]


def _layer_name(unit: str) -> str:
    """Name of the Keras layer whose output is a unit's."""
    if unit.startswith("pool"):
        return f"{unit}_pool"
    return _UNIT_LAYERS.get(unit, f"{unit}_concat")
