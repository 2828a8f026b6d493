"""Layers of a Keras model that scale pixels, as one of our modes of preprocessing."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from densenet_flax.common.errors import InputError
from densenet_flax.models.preprocessing import MEAN_STD
from densenet_flax.weights.keras_graph import Call
from densenet_flax.weights.keras_layers import operation

_MODES = {
    mode: (1 / (255 * np.array(std)), -np.array(mean) / np.array(std))
    for mode, (mean, std) in MEAN_STD.items()
}
# Of numbers that were rounded to float32 on the way.
_TOLERANCE = 1e-5

_DIVIDE = ("TrueDivide", "Divide", "math.truediv", "math.divide", "__operators__.truediv")
_SUBTRACT = ("Subtract", "math.subtract", "__operators__.subtract")
_ADD = ("Add", "math.add", "__operators__.add", "nn.bias_add")
_MULTIPLY = ("Multiply", "math.multiply", "__operators__.mul")
# Lambda layers are code, but for the name of this function.
_PREPROCESS_INPUT = "preprocess_input"


@dataclasses.dataclass(frozen=True)
class Pixels:
    """A value that is `scale` · pixels + `offset`, by channel.

    Attributes:
      scale: factor of each channel.
      offset: what is added.
      layers: names of the layers that did it.
      image_size: (height, width) if the model takes or makes images of one size alone.
      fault: what was done to them that this package cannot do; '' for nothing.
    """

    scale: Float[np.ndarray, "3"]
    offset: Float[np.ndarray, "3"]
    layers: tuple[str, ...] = ()
    image_size: tuple[int, int] | None = None
    fault: str = ""

    def mode(self) -> str:
        """The preprocessing that it is; '' if it is none that this package knows."""
        modes = (mode for mode, (scale, offset) in _MODES.items() if self._is(scale, offset))
        return next(modes, "")

    def explain_fault(self) -> str:
        """Why they cannot be preprocessed as the model does; '' if they can."""
        is_unchanged = self._is(np.ones(3), np.zeros(3))
        if not self.fault and (is_unchanged or self.mode()):
            return ""
        scaled = f"makes pixels x to x · {_text(self.scale)} + {_text(self.offset)}"
        return explain_fault(self.fault or f"{self.describe()} {scaled}")

    def describe(self) -> str:
        """Names of the layers, for messages."""
        layers = [repr(name) for name in self.layers]
        return f"layer {layers[0]}" if len(layers) == 1 else f"layers {', '.join(layers)}"

    def _is(self, scale: Float[np.ndarray, "3"], offset: Float[np.ndarray, "3"]) -> bool:
        return np.allclose(self.scale, scale, rtol=_TOLERANCE, atol=0) and np.allclose(
            self.offset, offset, rtol=_TOLERANCE, atol=_TOLERANCE
        )


def explain_fault(fault: str) -> str:
    """What a model does to pixels that this package cannot do, with advice."""
    return (
        f"{fault}; this package knows the preprocessing {', '.join(_MODES)}; if images that were "
        "prepared like that will do, state one with convert … --preprocessing"
    )


def pixels_after(call: Call, before: Pixels | None) -> Pixels | None:
    """What a layer makes of scaled pixels; None if it does something else.

    Args:
      call: the layer.
      before: what it takes; None if that is something else, or if the layer takes nothing.
    """
    if call.layer_class == "InputLayer":
        shape = call.config.get("batch_shape") or call.config.get("batch_input_shape") or ()
        return Pixels(np.ones(3), np.zeros(3), image_size=_image_size(shape[1:3]))
    if before is None:
        return None
    if operation(call) == "Resizing":
        return _resize(before, call)
    if operation(call) == "Normalization" and call.config.get("mean") is None:
        fault = f"layer {call.name!r} is a Normalization that keeps what it learned as weights"
        return dataclasses.replace(before, fault=before.fault or fault)
    with np.errstate(all="ignore"):
        factor = _factor(call)
        if factor is None:
            return None
        scale, offset = factor
        return dataclasses.replace(
            before,
            scale=before.scale * scale,
            offset=before.offset * scale + offset,
            layers=(*before.layers, call.name),
        )


def _resize(before: Pixels, call: Call) -> Pixels:
    size = _image_size((call.config.get("height"), call.config.get("width")))
    if size and size == before.image_size:
        return before
    fault = f"layer {call.name!r} resizes images with another filter than this package's, Pillow's"
    return dataclasses.replace(before, image_size=size, fault=before.fault or fault)


def _image_size(values: Sequence[Any]) -> tuple[int, int] | None:
    """(height, width); None if they are not given, or are not those of images."""
    if len(values) != 2 or not all(isinstance(n, int) and 32 <= n <= 4096 for n in values):
        return None
    return int(values[0]), int(values[1])


def _factor(call: Call) -> tuple[Any, Any] | None:
    """What the layer multiplies by, and what it adds then."""
    config, name = call.config, operation(call)
    if name == "Rescaling":
        return _channels(config.get("scale")), _channels(config.get("offset", 0.0))
    if name == "Normalization" and not config.get("invert"):
        std = np.maximum(np.sqrt(_channels(config["variance"])), 1e-7)  # Keras's epsilon
        return 1 / std, -_channels(config["mean"]) / std
    if name == "Lambda":
        return _MODES["torch"] if _is_preprocess_input(config.get("function"), config) else None
    if name not in (*_DIVIDE, *_SUBTRACT, *_ADD, *_MULTIPLY):
        return None
    constants = {k: v for k, v in call.constants.items() if k not in ("name", "data_format", "0")}
    values = [v for v in constants.values() if v is not None]
    is_second = "0" not in call.constants and len(values) == 1
    if "0" in call.constants and not values:
        values = [call.constants["0"]]
    if len(values) != 1 or not (is_second or name in _ADD or name in _MULTIPLY):
        return None
    value = _channels(values[0])
    if name in _DIVIDE:
        return 1 / value, np.zeros(3)
    if name in _MULTIPLY:
        return value, np.zeros(3)
    return np.ones(3), value if name in _ADD else -value


def _channels(value: Any) -> Float[np.ndarray, "3"]:
    """A constant as one number for each channel."""
    if isinstance(value, dict):
        value = value.get("config", {}).get("value")
    array = np.asarray(value, np.float64)
    if array.size not in (1, 3) or array.size != array.shape[-1:].count(3) * 2 + 1:
        raise InputError(f"a constant of shape {array.shape}; expected one number for each channel")
    return np.broadcast_to(array.reshape(-1), 3).astype(np.float64)


def _is_preprocess_input(function: Any, config: dict[str, Any]) -> bool:
    """Whether a Lambda layer names `keras.applications.densenet.preprocess_input`."""
    if isinstance(function, dict):
        config, function = function, function.get("config")
    module = str(config.get("module"))
    return function == _PREPROCESS_INPUT and module.endswith("applications.densenet")


def _text(values: Float[np.ndarray, "3"]) -> str:
    unique = sorted(set(np.round(values, 6)))
    return f"{unique[0]:g}" if len(unique) == 1 else f"({', '.join(f'{v:g}' for v in values)})"
