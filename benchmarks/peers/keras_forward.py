"""Keras's forward pass on TensorFlow or JAX: uint8 images to pooled features."""

import os

from benchmarks.common import peer_options

options = peer_options()
os.environ["KERAS_BACKEND"] = options["backend"]  # before Keras is imported
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras  # noqa: E402
import numpy as np  # noqa: E402

from benchmarks.peers import keras_common  # noqa: E402
from benchmarks.peers.timing import images, time_calls  # noqa: E402

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def main() -> None:
    """Times each batch size."""
    keras_common.set_precision(options["precision"])
    base, recipe = keras_common.recipe_network(options["pixels"])
    recipe.load_weights(options["weights"]["keras"])
    image = keras.Input((options["pixels"], options["pixels"], 3), dtype="uint8")
    x = keras.layers.Rescaling(1 / 255, dtype="float32")(image)
    x = keras.layers.Normalization(mean=MEAN, variance=np.square(STD).tolist(), dtype="float32")(x)
    pooled = keras.layers.GlobalAveragePooling2D(dtype="float32")(base(x))
    model = keras.Model(image, pooled)
    model.compile(jit_compile=keras_common.JIT[options["jit"]])
    times = {}
    for batch in options["batches"]:
        x = images(batch, options["pixels"])
        times[batch] = time_calls(
            lambda x=x: np.asarray(model.predict_on_batch(x)), options["seconds"]
        )
    keras_common.answer_with_versions(
        {
            "device": options["backend"],
            "batches": times,
            **keras_common.device_memory(options["backend"]),
        }
    )


if __name__ == "__main__":
    main()
