"""Checks a conversion: the source's framework and ours on the same images, unit by unit."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from densenet_flax.common.errors import InputError
from densenet_flax.common.trees import Variables
from densenet_flax.models.densenet import DenseNet
from densenet_flax.weights.info import WeightsInfo

# Largest difference over largest value. Rounding in float32 makes about 1e-6 over 200 layers, a
# wrong epsilon or a swapped tensor far more than this.
TOLERANCE = 1e-4


@dataclasses.dataclass(frozen=True)
class Verification:
    """The result of a comparison.

    Attributes:
      framework: what ours was compared with; '' if it is not installed or cannot run the file.
      differences: largest difference over largest value, by unit in order.
      reason: why there was no comparison, if there was none.
    """

    framework: str
    differences: Mapping[str, float]
    reason: str = ""

    @property
    def failed_unit(self) -> str:
        """The first unit that differs by more than `TOLERANCE`; '' if there is none."""
        # Not `>`: a difference may be NaN.
        failed = (unit for unit, value in self.differences.items() if not value <= TOLERANCE)
        return next(failed, "")


def verify(path: Path, framework: str, variables: Variables, info: WeightsInfo) -> Verification:
    """Runs the source's framework and ours on the same random images and compares every unit.

    `path` is the file that `variables` were read from, `framework` its `WeightsFile.framework`.

    Raises:
      InputError: our network gives numbers that are not finite.
    """
    reason, reference = "the file is this package's own", None
    images = random_images()
    try:
        if framework == "Keras":
            from densenet_flax.weights.keras_reference import KerasReference

            model = KerasReference(path, info)
            # A saved model may accept images of one size alone.
            images = random_images(*model.input_size)
            reference = model.run(images)
        elif framework == "PyTorch":
            from densenet_flax.weights.torch_reference import run_torch

            reference = run_torch(path, info, images)
    except ImportError as error:
        reason = f"{framework}: {error}"
    ours = run_units(info.build_model(), variables, images, info.activation)
    for unit, values in ours.items():
        if not np.isfinite(values).all():
            raise InputError(
                f"{path}: unit {unit} gives numbers that are not finite on random images; "
                "the weights are damaged, take another file"
            )
    if reference is None:
        return Verification("", {}, reason)
    differences = {unit: relative_difference(ours[unit], reference[unit]) for unit in reference}
    return Verification(framework, differences)


def random_images(height: int = 123, width: int = 160) -> Float[np.ndarray, "2 H W 3"]:
    """Two images; not square by default, or a mistake in an axis might not show."""
    return np.random.default_rng(0).standard_normal((2, height, width, 3), np.float32)


def relative_difference(ours: np.ndarray, reference: np.ndarray) -> float:
    """Largest difference over largest value; infinite if the shapes differ."""
    if ours.shape != reference.shape:
        return float("inf")
    return float(np.abs(ours - reference).max() / max(np.abs(reference).max(), 1e-30))


def run_units(
    model: DenseNet,
    variables: Variables,
    images: Float[np.ndarray, "N H W 3"],
    activation: str = "",
) -> dict[str, Float[np.ndarray, "N ..."]]:
    """Outputs of every unit of our network by name; of an activation as 'probabilities', last."""
    units = model.units

    @jax.jit
    def run(variables: Variables, x: Float[Array, "N H W 3"]) -> dict[str, Float[Array, "N ..."]]:
        outputs = {}
        for unit, following in zip(units, [*units[1:], None], strict=True):
            outputs[unit] = x = jnp.asarray(model.apply(variables, x, start=unit, stop=following))
        if model.num_classes and activation:
            activate = jax.nn.softmax if activation == "softmax" else jax.nn.sigmoid
            outputs["probabilities"] = activate(x)
        return outputs

    return jax.tree.map(np.asarray, run(dict(variables), jnp.asarray(images)))
