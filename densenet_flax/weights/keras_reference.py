"""The network of a Keras file, run by Keras: what `verify` compares ours with."""

import contextlib
import functools
import io
import os
from typing import Any

import h5py
import numpy as np
from jaxtyping import Float

from densenet_flax.models.units import unit_names
from densenet_flax.weights.info import WeightsInfo
from densenet_flax.weights.layout import Layout
from densenet_flax.weights.weights_file import WeightsFile

os.environ.setdefault("KERAS_BACKEND", "jax")  # installed in any case, unlike TensorFlow
import keras


class KerasReference:
    """The model in a file, or the network that `info` describes with the weights in the file.

    Attributes:
      pixels_mode: preprocessing that the model contains; '' for none.

    Raises:
      ImportError: Keras is not installed, has no such network, or its layers have other names.
    """

    def __init__(self, file: WeightsFile, info: WeightsInfo):
        path, self._info, self._file = file.path, info, file
        self.pixels_mode = ""
        is_whole_model = path.suffix == ".keras"
        if not is_whole_model:
            with h5py.File(path, "r") as hdf5:
                is_whole_model = "model_config" in hdf5.attrs
        with contextlib.redirect_stdout(io.StringIO()):  # Keras prints while it loads
            if is_whole_model:
                self.pixels_mode = file.metadata.get("preprocessing", "")
                self._model = keras.models.load_model(path, compile=False)
                _compute_in_float32(self._model)
                self._backbone = _find_backbone(self._model)
                if self._backbone is None:
                    raise ImportError("the model has no layer of the name conv1_conv")
                return
            self._backbone = _network(info)
            # That of the file, also where the backbone alone is compared.
            layout, activation = file.layout(), info.activation
            # The head's layers follow the backbone's in one model, or …
            layers = _head(layout, activation)
            top = functools.reduce(lambda x, layer: layer(x), layers, self._backbone.output)
            self._model = keras.Model(self._backbone.input, top)
            try:
                self._model.load_weights(path)
            except ValueError:  # … the backbone was saved as one layer of the model
                self._model = keras.Sequential([self._backbone, *_head(layout, activation)])
                self._model.load_weights(path)

    @property
    def input_size(self) -> tuple[int, ...]:
        """(height, width) of images if the model fixes them, else ()."""
        return tuple(size for size in self._backbone.input_shape[1:3] if size)

    def run(
        self, pixels: Float[np.ndarray, "N H W 3"], images: Float[np.ndarray, "N H W 3"]
    ) -> dict[str, Float[np.ndarray, "N ..."]]:
        """Outputs of every unit by our names, and with a head the probabilities or logits.

        Args:
          pixels: what the model takes.
          images: what it makes of them before the first convolution.
        """
        info = self._info
        # By Keras layer. The unit 'norm' ends with the ReLU only where there is one.
        units = {"pool1": "stem", "relu" if info.final_relu else "bn": "norm"}
        for unit in unit_names(info.blocks):
            units[f"{unit}_pool" if unit.startswith("pool") else f"{unit}_concat"] = unit
        layers = [layer for layer in self._backbone.layers if layer.name in units]
        names = [layer.name for layer in self._backbone.layers]
        padding = self._backbone.layers[_stem_index(names) - 1]
        inner = keras.Model(padding.input, [layer.output for layer in layers])
        # `predict` compiles; a plain call runs hundreds of layers one by one.
        values = zip(layers, inner.predict(images, verbose=0), strict=True)
        outputs = {units[layer.name]: np.asarray(value) for layer, value in values}
        if info.num_classes and not self._file.pixels_fault:  # else it makes other images of them
            top = self._model.predict(pixels, verbose=0)
            outputs["head" if _gives_logits(self._model) else "probabilities"] = top
        return outputs


def _find_backbone(model: Any) -> Any:
    """The model, itself or inside this one, whose layers are the network's."""
    if _stem_index([layer.name for layer in model.layers]):
        return model
    # A fine-tuned model may have the backbone as one of its layers, or deeper.
    for layer in model.layers:
        if hasattr(layer, "layers") and (backbone := _find_backbone(layer)) is not None:
            return backbone
    return None


def _compute_in_float32(model: Any) -> None:
    """Sets the precision of all layers: half of it would hide every mistake."""
    model.dtype_policy = "float32"
    for layer in getattr(model, "layers", ()):
        _compute_in_float32(layer)


def _stem_index(names: list[str]) -> int:
    """Position of the first convolution among the layers of these names; 0 if there is none."""
    return next((i for i, name in enumerate(names) if name in ("conv1_conv", "conv1/conv")), 0)


def _gives_logits(model: Any) -> bool:
    """Whether the last layer of a model has no activation."""
    while hasattr(model, "layers"):
        # Functions of `keras.ops` are operations and no layers.
        model = (getattr(model, "operations", None) or model.layers)[-1]
    return getattr(model, "activation", None) is keras.activations.linear


def _network(info: WeightsInfo) -> Any:
    build = getattr(keras.applications, info.network.replace("densenet", "DenseNet"), None)
    if build is None:
        raise ImportError(f"keras.applications has no {info.network}")
    return build(include_top=False, weights=None, input_shape=(None, None, 3))


def _head(layout: Layout, activation: str) -> list[Any]:
    if not layout.num_classes:
        return []
    last = None if activation == "none" else activation
    sizes = [*[(size, "relu") for size in layout.hidden], (layout.num_classes, last)]
    dense = [keras.layers.Dense(size, activation=activation) for size, activation in sizes]
    return [keras.layers.GlobalAveragePooling2D(), *dense]
