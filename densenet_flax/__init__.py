"""Fine-tune DenseNet201 on histopathology with JAX and Flax."""

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
    "load_weights",
    "preprocess_input",
    "trainable_mask",
]
