"""Shared by the two Keras peers; import it after KERAS_BACKEND is set."""

from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError
from typing import Any

import keras

from benchmarks.common import answer

JIT: dict[str, Any] = {"auto": "auto", "true": True, "false": False}


def set_precision(precision: str) -> None:
    """Sets float32, or Keras's mixed precision."""
    if precision != "float32":
        keras.mixed_precision.set_global_policy(f"mixed_{precision}")


def recipe_network(pixels: int) -> tuple[keras.Model, keras.Model]:
    """Returns the backbone, and the recipe's model with its head."""
    base = keras.applications.DenseNet201(
        include_top=False, weights=None, input_shape=(pixels, pixels, 3)
    )
    x = keras.layers.GlobalAveragePooling2D()(base.output)
    x = keras.layers.Dropout(0.5)(x)
    x = keras.layers.Dense(256, activation="relu")(x)
    x = keras.layers.Dropout(0.5)(x)
    output = keras.layers.Dense(2, activation="softmax", dtype="float32")(x)
    return base, keras.Model(base.input, output)


def device_memory(backend: str) -> dict[str, float]:
    """Returns the peak of the accelerator's memory; {} if there is none."""
    if backend == "jax":
        import jax

        stats = jax.local_devices()[0].memory_stats() or {}
        return {"device_peak_gb": stats["peak_bytes_in_use"] / 1e9} if stats else {}
    import tensorflow

    if not tensorflow.config.list_physical_devices("GPU"):
        return {}
    return {"device_peak_gb": tensorflow.config.experimental.get_memory_info("GPU:0")["peak"] / 1e9}


def answer_with_versions(result: Mapping[str, Any]) -> None:
    """Prints a peer's result with the versions of its libraries."""
    if keras.backend.backend() == "jax":
        return answer(result, ["keras", "jax"])
    try:
        return answer(result, ["keras", "tensorflow"])
    except PackageNotFoundError:  # the same library, installed under another name
        return answer(result, ["keras", "tensorflow-cpu"])
