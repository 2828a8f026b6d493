"""StableHLO by `jax.export`: one file for CPU, GPU and TPU and for every batch size."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from densenet_flax.export.predict_fn import Outputs, predict_fn
from densenet_flax.inference.classifier import Classifier

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


def serialize(classifier: Classifier) -> bytes:
    """The classifier, weights and all, as `jax.export.deserialize` reads it."""
    variables = jax.tree.map(np.asarray, classifier.variables)
    height, width = classifier.image_size
    shape = export.symbolic_shape(f"batch, {height}, {width}, 3")
    function = jax.jit(functools.partial(predict_fn, classifier, variables))
    exported = export.export(function, platforms=PLATFORMS)
    return bytes(exported(jax.ShapeDtypeStruct(shape, jnp.uint8)).serialize())


def load(data: bytes) -> Callable[[np.ndarray], Outputs]:
    """The file's own function of images."""
    exported = export.deserialize(bytearray(data))
    return lambda images: jax.tree.map(np.asarray, exported.call(images))
