"""Proof that a conversion lost nothing: both networks on the same images, unit by unit."""

import contextlib
import dataclasses
import io
import os
from collections.abc import Mapping
from pathlib import Path as FilePath
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from densenet_flax.common.errors import InputError
from densenet_flax.models.densenet import DenseNet
from densenet_flax.models.units import unit_names
from densenet_flax.weights.info import WeightsInfo

TOLERANCE = 1e-4  # largest difference over largest value


@dataclasses.dataclass(frozen=True)
class Proof:
    """The result of a comparison.

    Attributes:
      framework: what ours was compared with; '' if it is not installed or cannot run the file.
      differences: largest difference over largest value, by unit of the line.
      reason: where there is no framework, why.
    """

    framework: str
    differences: Mapping[str, float]
    reason: str = ""

    @property
    def passed(self) -> bool:
        """Whether every unit agrees within `TOLERANCE`."""
        return all(value <= TOLERANCE for value in self.differences.values())


def verify(source: FilePath, form: str, variables: Mapping[str, Any], info: WeightsInfo) -> Proof:
    """Runs the source's framework and ours on the same random images and compares every unit.

    Args:
      source: the file that was converted.
      form: what it is, `Source.form`.
      variables: what was read from it.
      info: what it means.

    Raises:
      InputError: our network gives numbers that are not finite.
    """
    framework, reason, theirs = "", "the file is this package's own", None
    images = random_images()
    try:
        if form.startswith("Keras"):
            framework = "Keras"
            images, theirs = _run_keras(source, info)
        elif "PyTorch" in form:
            framework = "PyTorch"
            images, theirs = _run_torch(source, info)
    except ImportError as error:
        reason = f"{framework}: {error}"
    ours = run_units(info.build_model(), variables, images, info.activation)
    for unit, values in ours.items():
        if not np.isfinite(values).all():
            raise InputError(
                f"{source}: unit {unit} gives numbers that are not finite on random images; "
                "the weights are damaged, take another file"
            )
    if theirs is None:
        return Proof("", {}, reason)
    return Proof(framework, {unit: difference(ours[unit], theirs[unit]) for unit in theirs})


def random_images(height: int = 123, width: int = 160) -> np.ndarray:
    """Two images; not square by default, lest something square hides a mistake."""
    return np.random.default_rng(0).standard_normal((2, height, width, 3), np.float32)


def difference(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Largest difference over largest value."""
    if ours.shape != theirs.shape:
        return float("inf")
    return float(np.abs(ours - theirs).max() / max(np.abs(theirs).max(), 1e-30))


def run_units(
    model: DenseNet, variables: Mapping[str, Any], images: np.ndarray, activation: str = ""
) -> dict[str, np.ndarray]:
    """What every unit of our network gives, by name; 'probabilities' last, with an `activation`."""
    units = model.units

    @jax.jit
    def run(variables: Mapping[str, Any], x: jax.Array) -> dict[str, jax.Array]:
        outputs = {}
        for unit, following in zip(units, [*units[1:], None], strict=True):
            outputs[unit] = x = jnp.asarray(model.apply(variables, x, start=unit, stop=following))
        if model.num_classes and activation:
            squash = jax.nn.softmax if activation == "softmax" else jax.nn.sigmoid
            outputs["probabilities"] = squash(x)
        return outputs

    return jax.tree.map(np.asarray, run(dict(variables), jnp.asarray(images)))


def _run_keras(source: FilePath, info: WeightsInfo) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    os.environ.setdefault("KERAS_BACKEND", "jax")
    import keras

    with contextlib.redirect_stdout(io.StringIO()):
        if _is_whole_model(source):
            model = keras.models.load_model(source, compile=False)
            base = _keras_base(model)
        else:
            base = _keras_network(keras, info)
            model = _keras_head(keras, base, info)
            try:
                model.load_weights(source)
            except ValueError:  # a file of the other form: the network as a layer of the model
                model = keras.Sequential([base, *_keras_layers(keras, info)])
                model.load_weights(source)
    sizes = [size for size in base.input_shape[1:3] if size]  # a whole model may fix them
    images = random_images(*sizes)
    layers = {_keras_output(unit): unit for unit in unit_names(info.blocks)}
    if not info.final_relu:
        layers["bn"] = layers.pop("relu")
    outputs = [layer.output for layer in base.layers if layer.name in layers]
    names = [layers[layer.name] for layer in base.layers if layer.name in layers]
    # `predict` compiles; a plain call runs hundreds of layers one by one.
    inside = keras.Model(base.input, outputs).predict(images, verbose=0)
    results = {name: np.asarray(value) for name, value in zip(names, inside, strict=True)}
    if info.num_classes:
        results["probabilities"] = model.predict(images, verbose=0)
        if info.activation == "softmax" and not np.allclose(results["probabilities"].sum(-1), 1):
            results["head"] = results.pop("probabilities")  # a last layer without activation
    return images, results


def _is_whole_model(source: FilePath) -> bool:
    if source.suffix == ".keras":
        return True
    import h5py

    with h5py.File(source, "r") as file:
        return "model_config" in file.attrs


def _keras_base(model: Any) -> Any:
    """The model, itself or inside this one, whose layers are the network's."""
    if any(layer.name in ("conv1_conv", "conv1/conv") for layer in model.layers):
        return model
    for layer in model.layers:
        if hasattr(layer, "layers") and (found := _keras_base(layer)) is not None:
            return found
    return None


def _keras_network(keras: Any, info: WeightsInfo) -> Any:
    make = getattr(keras.applications, info.network.replace("densenet", "DenseNet"), None)
    if make is None:
        raise ImportError(f"keras.applications has no {info.network}")
    return make(include_top=False, weights=None, input_shape=(None, None, 3))


def _keras_head(keras: Any, base: Any, info: WeightsInfo) -> Any:
    x = base.output
    for layer in _keras_layers(keras, info):
        x = layer(x)
    return keras.Model(base.input, x)


def _keras_layers(keras: Any, info: WeightsInfo) -> list[Any]:
    if not info.num_classes:
        return []
    sizes = [*[(size, "relu") for size in info.hidden], (info.num_classes, info.activation)]
    dense = [keras.layers.Dense(size, activation=activation) for size, activation in sizes]
    return [keras.layers.GlobalAveragePooling2D(), *dense]


def _keras_output(unit: str) -> str:
    """Name of the Keras layer that gives what a unit gives."""
    if unit.startswith("pool"):
        return f"{unit}_pool"
    return {"stem": "pool1", "norm": "relu"}.get(unit, f"{unit}_concat")


def _run_torch(source: FilePath, info: WeightsInfo) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    import torch

    from densenet_flax.weights.torch_reference import run

    images = random_images()
    return images, run(source, info, images, torch.float32)
