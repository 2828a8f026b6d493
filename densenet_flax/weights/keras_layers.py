"""Keras's layers by what they compute at inference, whatever they are called."""

import re
from typing import Any

from densenet_flax.weights.keras_graph import Call
from densenet_flax.weights.keras_names import backbone_path

_IDENTITY = re.compile(
    "Dropout|SpatialDropout2D|AlphaDropout|GaussianDropout|GaussianNoise|ActivityRegularization|"
    "Identity|"
    "Random(Brightness|ColorJitter|Contrast|Flip|Hue|Rotation|Saturation|Shear|Translation|Zoom)"
)
# Operations outside of layers, which models keep as well, and functions of TensorFlow.
_OPERATIONS = {
    "Relu": "relu",
    "Softmax": "softmax",
    "Sigmoid": "sigmoid",
    "nn.relu": "relu",
    "nn.softmax": "softmax",
    "math.sigmoid": "sigmoid",
    "nn.sigmoid": "sigmoid",
}


def operation(call: Call) -> str:
    """Class of the layer, or the function of TensorFlow that it stands for, as 'math.add'."""
    if call.layer_class in ("TFOpLambda", "SlicingOpLambda"):
        return str(call.config.get("function"))
    return call.layer_class


def is_identity(call: Call) -> bool:
    """Whether the layer returns what it takes when a model is used."""
    name = operation(call)
    if name in ("Cast", "cast"):  # to integers it cuts fractions off
        return "float" in str(call.constants.get("dtype", call.config.get("dtype", "float32")))
    return bool(_IDENTITY.fullmatch(name)) or activation(call) == "linear"


def activation(call: Call) -> str:
    """'relu', 'softmax', 'sigmoid' or 'linear' if the layer is that and nothing else, else ''."""
    config, name = call.config, operation(call)
    if name == "Activation":
        value = config.get("activation")
        return value if value in ("relu", "softmax", "sigmoid", "linear") else ""
    if name == "ReLU":
        numbers = [config.get(key) for key in ("max_value", "negative_slope", "threshold")]
        return "" if any(numbers) or config.get("max_value") == 0 else "relu"
    if name in ("Softmax", "nn.softmax"):
        axis = config.get("axis", call.constants.get("axis", -1))
        return "softmax" if axis in (-1, None) else ""
    return _OPERATIONS.get(name, "")


def canonical_key(call: Call) -> tuple[Any, ...]:
    """Equal for layers that compute the same of the same input.

    That of a layer of a DenseNet names its kind and its place; any other layer is like no other.
    """
    if activation(call) == "relu":
        return ("relu",)
    return _densenet_key(call) or (
        call.layer_class,
        call.name,
        id(call.config),
        str(call.constants),
    )


def _densenet_key(call: Call) -> tuple[Any, ...] | None:
    config, name = call.config, call.layer_class
    if config.get("data_format", "channels_last") not in ("channels_last", None):
        return None
    if name == "ZeroPadding2D":
        (top, bottom), (left, right) = config["padding"]
        return ("pad", top) if top == bottom == left == right else None
    if name == "Conv2D":
        return _convolution_key(call)
    if name == "BatchNormalization":
        path, axis = backbone_path(call.name), config.get("axis", -1)
        is_plain = config.get("center", True) and config.get("scale", True)
        return ("norm", *path) if path and is_plain and axis in (-1, 3, [-1], [3]) else None
    if name in ("MaxPooling2D", "AveragePooling2D"):
        size, strides = _square(config["pool_size"]), _square(config["strides"])
        kind = "max" if name == "MaxPooling2D" else "average"
        return (kind, size, strides) if config.get("padding", "valid") == "valid" else None
    if name == "Concatenate":
        return ("concatenate",) if config.get("axis", -1) in (-1, 3) else None
    return None


def _convolution_key(call: Call) -> tuple[Any, ...] | None:
    config, path = call.config, backbone_path(call.name)
    size, strides = _square(config["kernel_size"]), _square(config.get("strides", 1))
    is_plain = (
        path is not None
        and not config.get("use_bias", True)
        and config.get("activation") in ("linear", None)
        and _square(config.get("dilation_rate", 1)) == 1
        and config.get("groups", 1) == 1
    )
    # Padding makes no difference to a 1×1 convolution.
    padding = "" if size == 1 else config.get("padding", "valid")
    return ("conv", size, strides, padding, *path) if is_plain and path else None


def _square(value: Any) -> int:
    """The number if height and width have the same; 0 if not."""
    sizes = value if isinstance(value, list | tuple) else [value]
    return int(sizes[0]) if len(set(sizes)) == 1 else 0
