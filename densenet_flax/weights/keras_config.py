"""What the configuration inside a whole Keras model says that its arrays do not."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

from densenet_flax.common.errors import InputError
from densenet_flax.common.trees import JsonDict
from densenet_flax.weights.info import InfoFields

# Layers with which our model still computes the same at inference, if every shape agrees.
_HARMLESS = re.compile(
    "InputLayer|ZeroPadding2D|Conv2D|BatchNormalization|Activation|ReLU|MaxPooling2D|"
    "AveragePooling2D|Concatenate|GlobalAveragePooling2D|Flatten|Dropout|SpatialDropout2D|"
    "GaussianNoise|Dense|Softmax|Functional|Model|Sequential|"
    "Random(Brightness|ColorJitter|Contrast|Flip|Hue|Rotation|Saturation|Shear|Translation|Zoom)"
)
_CONTAINERS = ("Functional", "Model", "Sequential")
_CONVENTION = "Keras's preprocess_input ('torch'), by convention: the file does not say"


def read_config(path: Path, config: bytes | str | None) -> tuple[InfoFields, list[str]]:
    """Reads the metadata in a configuration (JSON; None for bare weights), and their evidence.

    Raises:
      InputError: the model computes something that ours does not.
    """
    if config is None:
        return {}, [_CONVENTION]
    layers = list(_layers(json.loads(config)))
    for layer_class, layer in layers:
        if layer_class != "Rescaling" and not _HARMLESS.fullmatch(layer_class):
            raise InputError(
                f"{path}: layer {layer.get('name', layer_class)!r} is a {layer_class}, which this "
                "package's networks do not have; save the weights of the DenseNet alone"
            )
    fields: InfoFields = {}
    evidence = []
    rescaling = [layer for layer_class, layer in layers if layer_class == "Rescaling"]
    for layer in rescaling:
        name = layer.get("name", "Rescaling")
        if abs(float(layer.get("scale", 0)) * 255 - 1) > 1e-6 or layer.get("offset"):
            raise InputError(
                f"{path}: layer {name!r} rescales pixels otherwise than by 1/255; remove it and "
                "save the model again"
            )
        fields["preprocessing"] = "scale"
        evidence.append(f"layer {name!r} divides pixels by 255")
    epsilons = {layer["epsilon"] for name, layer in layers if name == "BatchNormalization"}
    if len(epsilons) > 1:
        raise InputError(f"{path}: BatchNorms of different epsilon {sorted(epsilons)}")
    if epsilons:
        fields["epsilon"] = float(epsilons.pop())
        evidence.append(f"epsilon {fields['epsilon']:g} from the model's configuration")
    # The layer that follows the last norm decides about the ReLU.
    classes = [layer_class for layer_class, _ in layers if layer_class not in _CONTAINERS]
    if "BatchNormalization" in classes:
        last = len(classes) - 1 - classes[::-1].index("BatchNormalization")
        fields["final_relu"] = classes[last + 1 : last + 2] in (["Activation"], ["ReLU"])
    if dense := [layer for layer_class, layer in layers if layer_class == "Dense"]:
        fields["activation"] = _activation(path, dense)
    if not rescaling:
        evidence.append(_CONVENTION)
    return fields, evidence


def _activation(path: Path, dense: list[JsonDict]) -> str:
    """The activation of the probabilities, of a head of these layers."""
    *hidden, (top, activation) = [(layer.get("name"), layer.get("activation")) for layer in dense]
    for name, hidden_activation in hidden:
        if hidden_activation != "relu":
            raise InputError(
                f"{path}: hidden layer {name!r} has the activation {hidden_activation!r}; this "
                "package's heads have 'relu'"
            )
    if activation not in ("softmax", "sigmoid", "linear"):
        raise InputError(
            f"{path}: layer {top!r} has the activation {activation!r}; expected softmax, sigmoid "
            "or linear"
        )
    # A linear layer gives logits, for a loss with from_logits=True.
    return "sigmoid" if activation == "sigmoid" else "softmax"


def _layers(node: JsonDict) -> Iterator[tuple[str, JsonDict]]:
    """Class and configuration of each layer, in order, containers before what they contain."""
    config = node.get("config", {})
    if isinstance(config, list):  # Keras before 2.2 wrote Sequential models so
        config = {"layers": config}
    yield node.get("class_name", "?"), config
    for layer in config.get("layers", []):
        yield from _layers(layer)
