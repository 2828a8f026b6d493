"""Fine-tune DenseNet201 on histopathology with JAX and Flax."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from densenet_flax.common.errors import InputError
    from densenet_flax.inference.classifier import load_classifier
    from densenet_flax.models.densenet import (
        DenseNet,
        DenseNet121,
        DenseNet161,
        DenseNet169,
        DenseNet201,
    )
    from densenet_flax.models.frontier import trainable_mask
    from densenet_flax.models.preprocessing import preprocess_input
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
    "InputError": "common.errors",
    "load_classifier": "inference.classifier",
    "load_weights": "weights",
    "trainable_mask": "models.frontier",
    "preprocess_input": "models.preprocessing",
}


def __getattr__(name: str) -> Any:
    """Imports a name when it is first used: JAX takes seconds, and not every program needs it."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(
        importlib.import_module(f"{__name__}.{_HOME.get(name, 'models.densenet')}"), name
    )


def __dir__() -> list[str]:
    return sorted(__all__)
