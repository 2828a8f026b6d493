"""What the configuration inside a whole Keras model says that its arrays do not."""

import json
import re
from collections.abc import Iterator
from pathlib import Path as FilePath
from typing import Any

from densenet_flax.common.errors import InputError

# Layers that leave inference as our model computes it, given that every shape agrees.
_NEUTRAL = re.compile(
    "InputLayer|ZeroPadding2D|Conv2D|BatchNormalization|Activation|ReLU|MaxPooling2D|"
    "AveragePooling2D|Concatenate|GlobalAveragePooling2D|Flatten|Dropout|SpatialDropout2D|"
    "GaussianNoise|Dense|Softmax|Functional|Model|Sequential|"
    "Random(Brightness|ColorJitter|Contrast|Flip|Hue|Rotation|Saturation|Shear|Translation|Zoom)"
)
_CONTAINERS = ("Functional", "Model", "Sequential")


def meaning(path: FilePath, config: str | None) -> tuple[dict[str, Any], list[str]]:
    """Attributes of `WeightsInfo` that a configuration states, and why.

    Raises:
      InputError: the model computes something that ours does not.
    """
    convention = "Keras's preprocess_input ('torch'), by convention: the file does not say"
    if config is None:
        return {}, [convention]
    layers = list(_layers(json.loads(config)))
    result: dict[str, Any] = {}
    reasons = []
    for kind, layer in layers:
        name = layer.get("name", kind)
        if kind == "Rescaling":
            if abs(float(layer.get("scale", 0)) * 255 - 1) > 1e-6 or layer.get("offset"):
                raise InputError(
                    f"{path}: layer {name!r} rescales pixels otherwise than by 1/255; remove it "
                    "and save the model again"
                )
            result["preprocessing"] = "scale"
            reasons.append(f"layer {name!r} divides pixels by 255")
        elif not _NEUTRAL.fullmatch(kind):
            raise InputError(
                f"{path}: layer {name!r} is a {kind}, which this package's networks do not have; "
                "save the weights of the DenseNet alone"
            )
    epsilons = {layer["epsilon"] for kind, layer in layers if kind == "BatchNormalization"}
    if len(epsilons) > 1:
        raise InputError(f"{path}: BatchNorms of different epsilon {sorted(epsilons)}")
    if epsilons:
        result["epsilon"] = float(epsilons.pop())
        reasons.append(f"epsilon {result['epsilon']:g} from the model's configuration")
    kinds = [kind for kind, _ in layers if kind not in _CONTAINERS]
    if "BatchNormalization" in kinds:
        last = len(kinds) - 1 - kinds[::-1].index("BatchNormalization")
        result["final_relu"] = kinds[last + 1 : last + 2] in (["Activation"], ["ReLU"])
    dense = [layer for kind, layer in layers if kind == "Dense"]
    for layer in dense[:-1]:
        if layer.get("activation") != "relu":
            raise InputError(
                f"{path}: hidden layer {layer.get('name')!r} has the activation "
                f"{layer.get('activation')!r}; this package's heads have 'relu'"
            )
    if dense:
        activation = dense[-1].get("activation")
        if activation not in ("softmax", "sigmoid", "linear"):
            raise InputError(
                f"{path}: layer {dense[-1].get('name')!r} has the activation {activation!r}; "
                "expected softmax, sigmoid or linear"
            )
        result["activation"] = "sigmoid" if activation == "sigmoid" else "softmax"
    if "preprocessing" not in result:
        reasons.append(convention)
    return result, reasons


def _layers(node: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Class and configuration of each layer, in order, containers before what they contain."""
    config = node.get("config", {})
    if isinstance(config, list):  # Keras before 2.2 wrote Sequential models so
        config = {"layers": config}
    yield node.get("class_name", "?"), config
    for layer in config.get("layers", []):
        yield from _layers(layer)
