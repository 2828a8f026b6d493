"""The recipe in Keras, on TensorFlow or JAX, as its users write it: two calls of `fit`."""

import os
import time
from pathlib import Path
from typing import Any

from benchmarks.common import peer_options

options = peer_options()
os.environ["KERAS_BACKEND"] = options["backend"]  # before Keras is imported
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras  # noqa: E402
import numpy as np  # noqa: E402

from benchmarks.peers import keras_common  # noqa: E402

UNFREEZE_FROM = 300


class Clock(keras.callbacks.Callback):
    """Records the end of each epoch, including validation, and the end of the first step."""

    def __init__(self) -> None:
        """Starts with no records."""
        super().__init__()
        self.stage = ""
        self.first_step: float | None = None
        self.epochs: list[dict[str, Any]] = []

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Records the time of the first call."""
        self.first_step = self.first_step or time.time()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Records an epoch; Keras calls this after validation."""
        self.epochs.append(
            {
                "stage": self.stage,
                "end": time.time(),
                "loss": float(logs["loss"]),
                "validation_loss": float(logs["val_loss"]),
                "validation_accuracy": float(logs["val_accuracy"]),
            }
        )


def load(folder: Path, subset: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns preprocessed images and one-hot labels, made once, before the first epoch."""
    images = np.load(folder / f"{subset}_images.npy").astype(np.float32)
    labels = np.load(folder / f"{subset}_labels.npy")
    images = keras.applications.densenet.preprocess_input(images)
    return images, keras.utils.to_categorical(labels, 2)


def main() -> None:
    """Trains the head, compiles again, and trains from layer 300."""
    keras.utils.set_random_seed(0)
    keras_common.set_precision(options["precision"])
    folder = Path(options["folder"])
    train = load(folder, "train")
    validation = load(folder, "validation")
    pixels = train[0].shape[1]
    base, model = keras_common.recipe_network(pixels)
    model.load_weights(folder / "keras.weights.h5")
    clock = Clock()
    trained: dict[str, int] = {}
    for stage, epochs in zip(("head", "finetune"), options["epochs"], strict=True):
        frozen = base.layers if stage == "head" else base.layers[:UNFREEZE_FROM]
        for layer in base.layers:
            layer.trainable = True
        for layer in frozen:
            layer.trainable = False
        model.compile(
            keras.optimizers.Adam(1e-3),
            "categorical_crossentropy",
            metrics=["accuracy"],
            jit_compile=keras_common.JIT[options["jit"]],
        )
        trained[stage] = int(sum(np.prod(w.shape) for w in model.trainable_weights))
        clock.stage = stage
        model.fit(
            *train,
            batch_size=options["batch"],
            epochs=epochs,
            validation_data=validation,
            callbacks=[clock],
            verbose=0,
        )
    keras_common.answer_with_versions(
        {
            "started": options["spawned"],
            "first_step": clock.first_step,
            "epochs": clock.epochs,
            "ended": time.time(),
            "trained_parameters": trained,
            **keras_common.device_memory(options["backend"]),
        }
    )


if __name__ == "__main__":
    main()
