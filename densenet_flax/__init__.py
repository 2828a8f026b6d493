"""Fine-tune DenseNet201 on histopathology with JAX and Flax."""

import importlib
from typing import TYPE_CHECKING, Any

from densenet_flax.errors import InputError
from densenet_flax.frontier import trainable_mask
from densenet_flax.model import (
    DenseNet,
    DenseNet121,
    DenseNet161,
    DenseNet169,
    DenseNet201,
    preprocess_input,
)
from densenet_flax.weights import load_weights

if TYPE_CHECKING:
    from densenet_flax.classifier import load_classifier

__all__ = [
    "DenseNet",
    "DenseNet121",
    "DenseNet161",
    "DenseNet169",
    "DenseNet201",
    "InputError",
    "load_classifier",
    "load_weights",
    "preprocess_input",
    "trainable_mask",
]


def __getattr__(name: str) -> Any:
    """Imports what uses a trained network when it is asked for: training need not wait for it."""
    if name == "load_classifier":
        return importlib.import_module("densenet_flax.classifier").load_classifier
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
