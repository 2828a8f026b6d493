"""What the command line does: convert, export, inspect."""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path as FilePath
from typing import Any

import numpy as np

from densenet_flax.common.errors import InputError
from densenet_flax.weights.info import WeightsInfo
from densenet_flax.weights.layout import flatten
from densenet_flax.weights.load import Variables, open_source, read_source, read_weights
from densenet_flax.weights.official import known_file
from densenet_flax.weights.save import check_target, export_weights, save_weights

StrPath = str | os.PathLike[str]


@dataclasses.dataclass(frozen=True)
class Conversion:
    """A conversion that was made.

    Attributes:
      info: what the weights mean.
      tensors: how many were carried over.
      parameters: how many numbers the network trains.
      reasons: why they are taken to mean that.
      proof: lines of the verification; empty if none was asked for.
    """

    info: WeightsInfo
    tensors: int
    parameters: int
    reasons: tuple[str, ...]
    proof: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Inspection:
    """What a file is.

    Attributes:
      path: the file.
      form: its format, in words.
      official: name for `download` if it is an official file of Keras; else ''.
      size: bytes.
      info: what it holds and means.
      reasons: why it is taken to mean that.
      parameters: how many numbers the network trains.
      tensors: shape by name, as the file spells them, in our layout.
    """

    path: str
    form: str
    official: str
    size: int
    info: WeightsInfo
    reasons: tuple[str, ...]
    parameters: int
    tensors: dict[str, tuple[int, ...]]


def convert(src: StrPath, dst: StrPath, *, verify: bool = False, **meaning: Any) -> Conversion:
    """Converts any supported file to our `.safetensors`.

    Args:
      src: a file as for `read_weights`.
      dst: where to write; must end in `.safetensors`.
      verify: run the source's framework and ours on the same images first, and compare; then read
        the written file back.
      **meaning: attributes of `WeightsInfo` that the file cannot state or states wrongly, such as
        `preprocessing` or `class_names`.

    Raises:
      InputError: `src` cannot be read, `dst` cannot be written, or the two networks disagree;
        `dst` is then what it was before.
    """
    return _convert(src, check_target(dst, ".safetensors"), save_weights, verify, meaning)


def export(src: StrPath, dst: StrPath, *, verify: bool = False, **meaning: Any) -> Conversion:
    """Converts any supported file to one that Keras loads.

    Args:
      src: a file as for `read_weights`.
      dst: where to write: `.weights.h5`, or any other `.h5` for Keras's legacy format.
      verify: as for `convert`.
      **meaning: as for `convert`.

    Raises:
      InputError: as for `convert`; or Keras's DenseNet cannot compute what these weights need.
    """
    return _convert(src, check_target(dst, ".h5"), export_weights, verify, meaning)


def inspect(path: StrPath) -> Inspection:
    """Reads a file as a whole and says what it is.

    Raises:
      InputError: it cannot be read or is no DenseNet.
    """
    with open_source(path) as source:
        variables, info = read_source(source)
        is_file = source.path.is_file()
        return Inspection(
            path=str(source.path),
            form=source.form,
            official=known_file(source.path) if is_file else "",
            size=source.path.stat().st_size if is_file else 0,
            info=info,
            reasons=tuple(source.reasons),
            parameters=_parameters(variables),
            tensors={tensor.name: tensor.shape for tensor in source.tensors},
        )


def _convert(
    src: StrPath, dst: FilePath, write: Any, verify: bool, meaning: Mapping[str, Any]
) -> Conversion:
    with open_source(src) as source:
        variables, info = read_source(source)
        form, path, reasons = source.form, source.path, tuple(source.reasons)
    if meaning:
        info = dataclasses.replace(info, **meaning)
        reasons = (*reasons, f"{', '.join(meaning)} as given by the user")
    proof: tuple[str, ...] = ()
    if verify:
        proof = _prove(path, form, variables, info)
    write(dst, variables, info)
    if verify:
        read_back(dst, variables)
        proof = (*proof, f"read back from {dst.name}: every number is bitwise the same")
    count = len(flatten(variables))
    return Conversion(info, count, _parameters(variables), reasons, proof)


def _prove(path: FilePath, form: str, variables: Variables, info: WeightsInfo) -> tuple[str, ...]:
    # Imported here: a conversion without proof needs no network.
    from densenet_flax.weights.verify import TOLERANCE, verify

    proof = verify(path, form, variables, info)
    if not proof.framework:
        return (
            f"not compared with the source's framework: {proof.reason}",
            "checked: every tensor of the file is used once, all are finite, variances are not "
            "negative, and our network gives finite values on random images",
        )
    if not proof.passed:
        unit = next(u for u, value in proof.differences.items() if not value <= TOLERANCE)
        raise InputError(
            f"{path}: {proof.framework} and this package differ by {proof.differences[unit]:.1e} "
            f"of the largest value from unit {unit} on; the file means something else than "
            "recognised: state --preprocessing, --epsilon or --final-relu"
        )
    lines = [f"{unit:>16}  {value:.1e}" for unit, value in proof.differences.items()]
    worst = max(proof.differences.values())
    return (
        f"largest difference from {proof.framework} over largest value, on random images:",
        *lines,
        f"{'worst':>16}  {worst:.1e} (at most {TOLERANCE:.0e})",
    )


def read_back(dst: FilePath, variables: Variables) -> None:
    """Compares a written file with what was to be written, bit by bit.

    Raises:
      InputError: a number is another.
    """
    again = flatten(read_weights(dst)[0])
    for name, values in flatten(variables).items():
        if not np.array_equal(again[name], values):
            raise InputError(f"{dst}: {'/'.join(name)} changed on the disk; check the disk")


def _parameters(variables: Variables) -> int:
    return sum(value.size for value in flatten(variables["params"]).values())
