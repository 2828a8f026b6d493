"""Checks a conversion: the source's framework and ours on the same images, unit by unit.

A network has to be compiled for it, without optimization, which takes some seconds of a large one.
Files of this package, and Keras's official ones by their md5, need no comparison.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from densenet_flax.common.errors import InputError
from densenet_flax.common.trees import Variables
from densenet_flax.models.densenet import DenseNet
from densenet_flax.models.preprocessing import preprocess_input
from densenet_flax.weights.info import WeightsInfo
from densenet_flax.weights.official import official_name
from densenet_flax.weights.weights_file import WeightsFile

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


def verify_file(file: WeightsFile, variables: Variables, info: WeightsInfo) -> tuple[str, ...]:
    """Compares what was read from a file with what its framework computes.

    Returns:
      Lines that say how they agree, or why they were not compared.

    Raises:
      InputError: they do not agree.
    """
    try:
        result = verify(file, variables, info)
    except InputError:
        raise
    # Frameworks fail in many ways at files that we can read, such as of another version.
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:160]
        result = Verification("", {}, f"{file.framework} cannot load it ({reason})")
    if not result.framework:
        return (
            f"not compared with the source's framework: {result.reason}",
            "checked: every tensor of the file is used once, all are finite and variances are not "
            "negative",
        )
    if unit := result.failed_unit:
        raise InputError(
            f"{file.path}: {result.framework} and this package differ by "
            f"{result.differences[unit]:.1e} of the largest value from unit {unit} on; the "
            "metadata are not those of the file: state --epsilon, --final-relu or --activation"
        )
    return (
        f"largest difference from {result.framework} over largest value, on random images:",
        *(f"{unit:>16}  {value:.1e}" for unit, value in result.differences.items()),
        f"{'worst':>16}  {max(result.differences.values()):.1e} (at most {TOLERANCE:.0e})",
    )


def summarize(lines: Sequence[str]) -> str:
    """The result of `verify_file` in one line."""
    is_compared = lines[0].startswith("largest")
    return " ".join((f"{lines[0]} {lines[-1]}" if is_compared else lines[0]).split())


def verify(file: WeightsFile, variables: Variables, info: WeightsInfo) -> Verification:
    """Runs the source's framework and ours on the same random images and compares every unit.

    Args:
      file: what `variables` were read from.
      variables: of our network.
      info: of the file.

    Raises:
      InputError: our network gives numbers that are not finite.
    """
    path, framework = file.path, file.framework
    if not framework:
        return Verification("", {}, "the file is this package's own")
    if framework == "Keras" and (name := official_name(path)):
        return Verification("", {}, f"Keras's official {name}, by its md5")
    if framework == "Keras Hub":
        return Verification("", {}, "its stem is another than this package's")
    try:
        if framework == "Keras":
            from densenet_flax.weights.keras_reference import KerasReference

            model = KerasReference(file, info)
            # A saved model may accept images of one size alone.
            pixels = images = random_images(*model.input_size)
            if model.pixels_mode:
                pixels = 128 + 50 * pixels
                images = np.asarray(preprocess_input(pixels, model.pixels_mode))
            reference = model.run(pixels, images)
        else:
            from densenet_flax.weights.torch_reference import run_torch

            images = random_images()
            reference = run_torch(path, info, images, file.which)
    except ImportError as error:
        return Verification("", {}, f"{framework}: {error}")
    ours = run_units(info.build_model(), variables, images, info.activation)
    for unit, values in ours.items():
        if not np.isfinite(values).all():
            raise InputError(
                f"{path}: unit {unit} gives numbers that are not finite on random images; "
                "the weights are damaged, take another file"
            )
    differences = {unit: relative_difference(ours[unit], reference[unit]) for unit in reference}
    return Verification(framework, differences)


def random_images(height: int = 75, width: int = 96) -> Float[np.ndarray, "2 H W 3"]:
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

    # Compiling takes far longer than running two images: half the time without optimization.
    @functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
    def run(variables: Variables, x: Float[Array, "N H W 3"]) -> dict[str, Float[Array, "N ..."]]:
        outputs = {}
        for unit, following in zip(units, [*units[1:], None], strict=True):
            outputs[unit] = x = jnp.asarray(model.apply(variables, x, start=unit, stop=following))
        if model.num_classes and activation:
            activate = {"softmax": jax.nn.softmax, "sigmoid": jax.nn.sigmoid}
            outputs["probabilities"] = activate.get(activation, lambda x: x)(x)
        return outputs

    return jax.tree.map(np.asarray, run(dict(variables), jnp.asarray(images)))
