"""From variables to a weights file: ours, Keras's, or one for timm and torchvision."""

import os
from pathlib import Path

from flax.traverse_util import flatten_dict

from densenet_flax.common.errors import InputError
from densenet_flax.common.trees import Variables
from densenet_flax.weights.info import EPSILON_TOLERANCE, WeightsInfo
from densenet_flax.weights.safe_reading import StrPath

TORCH_SUFFIXES = (".safetensors", ".pth")
_ADVICE = "use these weights with this package, as .safetensors"


def save_weights(path: StrPath, variables: Variables, info: WeightsInfo) -> None:
    """Writes our `.safetensors`, whole or not at all, with `info` in its header.

    `variables` must have a head if `info` has classes, and none otherwise.

    Raises:
      InputError: the variables are not those of `info`, or the file cannot be written.
    """
    # Imported here: writing this form needs no h5py, and the other no safetensors.
    from densenet_flax.weights.safetensors_files import save_safetensors

    target = check_target(path, ".safetensors")
    _check_variables(target, variables, info)
    save_safetensors(target, variables, info)


def export_weights(path: StrPath, variables: Variables, info: WeightsInfo) -> None:
    """Writes a file that Keras loads: `.weights.h5`, or legacy `.h5`.

    Raises:
      InputError: as for `save_weights`; or Keras has no such network.
    """
    from densenet_flax.weights.keras_files import KERAS_EPSILON
    from densenet_flax.weights.keras_writer import save_keras

    target = check_target(path, ".h5")
    is_known = (info.growth_rate, info.stem_features) == (32, 64)
    if fault := _fault(info, "Keras", KERAS_EPSILON, is_known):
        raise InputError(f"{target}: {fault}; {_ADVICE}")
    _check_variables(target, variables, info)
    save_keras(target, variables, info)


def export_torch(path: StrPath, variables: Variables, info: WeightsInfo) -> None:
    """Writes a file that timm and torchvision load: `.safetensors` or `.pth`, and `config.json`.

    Raises:
      InputError: as for `save_weights`; or they have no such network.
    """
    from densenet_flax.weights.torch_writer import save_torch

    target = check_target(path, *TORCH_SUFFIXES)
    if fault := torch_fault(info):
        raise InputError(f"{target}: {fault}; {_ADVICE}")
    _check_variables(target, variables, info)
    save_torch(target, variables, info)


def torch_fault(info: WeightsInfo) -> str:
    """Why timm and torchvision cannot compute what these weights are for; '' if they can."""
    from densenet_flax.weights.torch_names import TORCH_EPSILON, TORCH_NETWORKS

    return _fault(info, "timm and torchvision", TORCH_EPSILON, info.network in TORCH_NETWORKS)


def check_target(path: StrPath, *suffixes: str) -> Path:
    """Rejects a destination of another suffix, before anything is read."""
    target = Path(os.path.expanduser(path))
    if target.suffix not in suffixes:
        raise InputError(
            f"{os.fspath(path)!r}: expected a name that ends in {' or '.join(suffixes)}"
        )
    if target.is_dir():
        raise InputError(f"{target}: a directory is in the way; choose another name")
    return target


def _fault(info: WeightsInfo, libraries: str, epsilon: float, is_known: bool) -> str:
    """What the DenseNets of other libraries cannot compute; '' if they can."""
    if not is_known:
        return f"{libraries} cannot build {info.layout.describe()}"
    if not info.final_relu:
        return (
            "these weights belong to a network without a ReLU after the last norm, where "
            f"{libraries} have one"
        )
    if abs(info.epsilon / epsilon - 1) > EPSILON_TOLERANCE:
        return (
            f"these weights were trained with a BatchNorm epsilon of {info.epsilon:g}, and the "
            f"networks of {libraries} have {epsilon:g}"
        )
    return ""


def _check_variables(path: Path, variables: Variables, info: WeightsInfo) -> None:
    expected = info.layout.tensors()
    shapes = {name: tuple(value.shape) for name, value in flatten_dict(variables).items()}
    for name in (*expected, *shapes):
        if shapes.get(name) != expected.get(name):
            raise InputError(
                f"{path}: {'/'.join(name)} has shape {shapes.get(name)}, and "
                f"{info.layout.describe()} has {expected.get(name)}; give variables and info of "
                "the same network"
            )
