"""The network of a Keras file, run by Keras: what `verify` compares ours with."""

import contextlib
import functools
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


class KerasReference:
    """The model in a file, or the network that `info` describes with the weights in the file.

    Raises:
      ImportError: Keras is not installed, has no such network, or its layers have other names.
    """

    def __init__(self, path: Path, info: WeightsInfo):
        self._info = info
        is_whole_model = path.suffix == ".keras"
        if not is_whole_model:
            with h5py.File(path, "r") as file:
                is_whole_model = "model_config" in file.attrs
        with contextlib.redirect_stdout(io.StringIO()):  # Keras prints while it loads
            if is_whole_model:
                self._model = keras.models.load_model(path, compile=False)
                self._backbone = _find_backbone(self._model)
                if self._backbone is None:
                    raise ImportError("the model has no layer of the name conv1_conv")
                return
            self._backbone = _network(info)
            # The head's layers follow the backbone's in one model, or …
            top = functools.reduce(lambda x, layer: layer(x), _head(info), self._backbone.output)
            self._model = keras.Model(self._backbone.input, top)
            try:
                self._model.load_weights(path)
            except ValueError:  # … the backbone was saved as one layer of the model
                self._model = keras.Sequential([self._backbone, *_head(info)])
                self._model.load_weights(path)

    @property
    def input_size(self) -> tuple[int, ...]:
        """(height, width) of images if the model fixes them, else ()."""
        return tuple(size for size in self._backbone.input_shape[1:3] if size)

    def run(self, images: Float[np.ndarray, "N H W 3"]) -> dict[str, Float[np.ndarray, "N ..."]]:
        """Outputs of every unit by our names, and with a head the probabilities or logits."""
        info = self._info
        # By Keras layer. The unit 'norm' ends with the ReLU only where there is one.
        units = {"pool1": "stem", "relu" if info.final_relu else "bn": "norm"}
        for unit in unit_names(info.blocks):
            units[f"{unit}_pool" if unit.startswith("pool") else f"{unit}_concat"] = unit
        layers = [layer for layer in self._backbone.layers if layer.name in units]
        inner = keras.Model(self._backbone.input, [layer.output for layer in layers])
        # `predict` compiles; a plain call runs hundreds of layers one by one.
        values = zip(layers, inner.predict(images, verbose=0), strict=True)
        outputs = {units[layer.name]: np.asarray(value) for layer, value in values}
        if info.num_classes:
            top = self._model.predict(images, verbose=0)
            # A last layer without activation gives logits.
            is_logits = info.activation == "softmax" and not np.allclose(top.sum(-1), 1)
            outputs["head" if is_logits else "probabilities"] = top
        return outputs


def _find_backbone(model: Any) -> Any:
    """The model, itself or inside this one, whose layers are the network's."""
    if any(layer.name in ("conv1_conv", "conv1/conv") for layer in model.layers):
        return model
    # A fine-tuned model may have the backbone as one of its layers, or deeper.
    for layer in model.layers:
        if hasattr(layer, "layers") and (backbone := _find_backbone(layer)) is not None:
            return backbone
    return None


def _network(info: WeightsInfo) -> Any:
    build = getattr(keras.applications, info.network.replace("densenet", "DenseNet"), None)
    if build is None:
        raise ImportError(f"keras.applications has no {info.network}")
    return build(include_top=False, weights=None, input_shape=(None, None, 3))


def _head(info: WeightsInfo) -> list[Any]:
    if not info.num_classes:
        return []
    sizes = [*[(size, "relu") for size in info.hidden], (info.num_classes, info.activation)]
    dense = [keras.layers.Dense(size, activation=activation) for size, activation in sizes]
    return [keras.layers.GlobalAveragePooling2D(), *dense]
