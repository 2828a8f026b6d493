"""Keras's forward pass on TensorFlow or JAX: uint8 images to pooled features."""

import os

from benchmarks.common import options_of_peer

given = options_of_peer()
os.environ["KERAS_BACKEND"] = given["backend"]  # before Keras is imported
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras  # noqa: E402
import numpy as np  # noqa: E402

from benchmarks.peers import keras_common  # noqa: E402
from benchmarks.peers.timing import images, time_calls  # noqa: E402

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def main() -> None:
    """Times each batch size."""
    keras_common.set_precision(given["precision"])
    base, recipe = keras_common.recipe_network(given["pixels"])
    recipe.load_weights(given["weights"]["keras"])
    image = keras.Input((given["pixels"], given["pixels"], 3), dtype="uint8")
    x = keras.layers.Rescaling(1 / 255, dtype="float32")(image)
    x = keras.layers.Normalization(mean=MEAN, variance=np.square(STD).tolist(), dtype="float32")(x)
    pooled = keras.layers.GlobalAveragePooling2D(dtype="float32")(base(x))
    model = keras.Model(image, pooled)
    model.compile(jit_compile=keras_common.JIT[given["jit"]])
    found = {}
    for batch in given["batches"]:
        x = images(batch, given["pixels"])
        found[batch] = time_calls(
            lambda x=x: np.asarray(model.predict_on_batch(x)), given["seconds"]
        )
    keras_common.answer_with_versions(
        {
            "device": given["backend"],
            "batches": found,
            **keras_common.device_memory(given["backend"]),
        }
    )


if __name__ == "__main__":
    main()
