"""Fine-tune DenseNet201 on histopathology with JAX and Flax."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from densenet_flax.classifier import load_classifier
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

_HOME = {
    "InputError": "errors",
    "load_classifier": "classifier",
    "load_weights": "weights",
    "trainable_mask": "frontier",
}


def __getattr__(name: str) -> Any:
    """Imports a name when it is first used: JAX takes seconds, and not every program needs it."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME.get(name, 'model')}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
