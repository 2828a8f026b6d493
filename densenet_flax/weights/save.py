"""From variables to a file: ours, or Keras's."""

import os
from collections.abc import Mapping
from pathlib import Path as FilePath
from typing import Any

from densenet_flax.common.errors import InputError
from densenet_flax.weights.info import WeightsInfo
from densenet_flax.weights.layout import flatten


def save_weights(
    path: str | os.PathLike[str], variables: Mapping[str, Any], info: WeightsInfo
) -> None:
    """Writes our `.safetensors`, whole or not at all.

    Args:
      path: must end in `.safetensors`.
      variables: `{'params': …, 'batch_stats': …}`, with the head if `info` has classes.
      info: what they mean; goes into the header.

    Raises:
      InputError: the variables are not those of `info`, or the file cannot be written.
    """
    from densenet_flax.weights.safetensors_files import save_safetensors

    target = check_target(path, ".safetensors")
    _check_variables(target, variables, info)
    save_safetensors(target, variables, info)


def export_weights(
    path: str | os.PathLike[str], variables: Mapping[str, Any], info: WeightsInfo
) -> None:
    """Writes a file that Keras loads: `.weights.h5`, or legacy `.h5`.

    Raises:
      InputError: Keras has no such network, the variables are not those of `info`, or the file
        cannot be written.
    """
    from densenet_flax.weights.keras_writer import save_keras

    target = check_target(path, ".h5")
    _check_variables(target, variables, info)
    save_keras(target, variables, info)


def check_target(path: str | os.PathLike[str], suffix: str) -> FilePath:
    """Refuses a destination of another name, before anything is read."""
    target = FilePath(path)
    if target.suffix != suffix:
        raise InputError(f"{target}: expected a name that ends in {suffix}")
    if target.is_dir():
        raise InputError(f"{target}: a directory is in the way; choose another name")
    return target


def _check_variables(path: FilePath, variables: Mapping[str, Any], info: WeightsInfo) -> None:
    expected = info.layout.tensors()
    found = {name: tuple(value.shape) for name, value in flatten(variables).items()}
    wrong = [name for name in (*expected, *found) if found.get(name) != expected.get(name)]
    if wrong:
        name = "/".join(wrong[0])
        raise InputError(
            f"{path}: {name} has shape {found.get(wrong[0])}, and {info.layout.describe()} has "
            f"{expected.get(wrong[0])}; give variables and info of the same network"
        )
