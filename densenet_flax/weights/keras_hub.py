"""Keras Hub's DenseNet, whose files look like those of `keras.applications` and mean another stem.

https://github.com/keras-team/keras-hub: `DenseNetBackbone` pads with 'same': on a side of even
length its first convolution gets 2 zeros before the image and 3 after it, and its max pooling
nothing before and 1 after, where `keras.applications` and this package have 3 and 3, 1 and 1.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from densenet_flax.weights.keras_pixels import Pixels, explain_fault
from densenet_flax.weights.safe_reading import reading

STEM = (
    "Keras Hub's DenseNet, whose stem pads an image of even size by 2 and 3 pixels where this "
    "package's pads 3 and 3: it computes the same of an image that is shifted by three pixels, but "
    "for the border"
)
_LAYER = re.compile(r"stack\d+_block\d+_[12]_(conv|bn)")
_PREPROCESSOR = "preprocessor.json"
_MAX_DEPTH = 8  # of nested configurations


def is_keras_hub(path: Path, arrays: Mapping[str, h5py.Dataset]) -> bool:
    """Whether a file is of Keras Hub, by the names of its layers or the `config.json` beside it."""
    names = (array.parent.attrs.get("name") for array in arrays.values())
    if any(isinstance(name, str) and _LAYER.fullmatch(name) for name in names):
        return True
    config = _read_json(path.with_name("config.json"))
    return config.get("class_name") == "DenseNetBackbone" and "keras" in str(config.get("module"))


def read_preprocessing(path: Path) -> tuple[str, str, str]:
    """How Keras Hub prepares pixels, by the `preprocessor.json` beside a file.

    Returns:
      The mode of `preprocess_input`, how it is known, and why there is none.
    """
    with reading(path.with_name(_PREPROCESSOR)):
        converter = _find_converter(_read_json(path.with_name(_PREPROCESSOR)))
        if converter is None:
            return "torch", "preprocessing 'torch' assumed, as of Keras", ""
        scale, offset = converter.get("scale"), converter.get("offset")
        numbers = [1.0 if scale is None else scale, 0.0 if offset is None else offset]
        by_channel = [np.broadcast_to(np.asarray(n, np.float64), 3) for n in numbers]
        pixels = Pixels(by_channel[0], by_channel[1])
    mode, evidence = pixels.mode(), f"preprocessing by {_PREPROCESSOR}"
    if not mode:
        fault = f"{_PREPROCESSOR} makes pixels x to x · {scale} + {offset}"
        return "torch", evidence, explain_fault(fault)
    return mode, evidence, ""


def _find_converter(config: Any, depth: int = 0) -> Mapping[str, Any] | None:
    """The configuration that scales pixels, in those that contain it."""
    if not isinstance(config, Mapping) or depth > _MAX_DEPTH:
        return None
    if "scale" in config or "offset" in config:
        return config
    inner = (_find_converter(value, depth + 1) for value in config.values())
    return next((converter for converter in inner if converter is not None), None)


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    with reading(path):
        content = json.loads(path.read_text())
    return content if isinstance(content, dict) else {}
