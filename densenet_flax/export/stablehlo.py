"""StableHLO by `jax.export`: one file for CPU, GPU and TPU and for every batch size."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from densenet_flax.export.predict_fn import PredictFn, predict_fn
from densenet_flax.inference.classifier import Classifier

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


def serialize(classifier: Classifier) -> bytes:
    """Traces the classifier with its weights into the format of `jax.export.deserialize`."""
    variables = jax.tree.map(np.asarray, classifier.variables)  # become constants of the program
    height, width = classifier.image_size
    # A symbolic batch size: the file takes any number of images.
    shape = export.symbolic_shape(f"batch, {height}, {width}, 3")
    function = jax.jit(functools.partial(predict_fn, classifier, variables))
    exported = export.export(function, platforms=PLATFORMS)
    return bytes(exported(jax.ShapeDtypeStruct(shape, jnp.uint8)).serialize())


def load(data: bytes) -> PredictFn:
    """Loads a serialized classifier as a function of images."""
    exported = export.deserialize(bytearray(data))
    return lambda images: jax.tree.map(np.asarray, exported.call(images))
