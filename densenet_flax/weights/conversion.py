"""What the command line does: convert, export, inspect."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias, Unpack

import numpy as np
from flax.traverse_util import flatten_dict

from densenet_flax.common.errors import InputError
from densenet_flax.common.trees import Variables
from densenet_flax.weights.info import InfoFields, WeightsInfo
from densenet_flax.weights.layout import Shape
from densenet_flax.weights.load import open_weights, read_weights
from densenet_flax.weights.official import official_name
from densenet_flax.weights.safe_reading import StrPath
from densenet_flax.weights.save import check_target, export_weights, save_weights

_Write: TypeAlias = Callable[[StrPath, Variables, WeightsInfo], None]


@dataclasses.dataclass(frozen=True)
class Conversion:
    """A conversion that was made.

    Attributes:
      info: of the written weights.
      tensors: how many were converted.
      parameters: how many numbers the network trains.
      evidence: where the info comes from, in words.
      verification: lines that say how it was verified; empty if it was not.
    """

    info: WeightsInfo
    tensors: int
    parameters: int
    evidence: tuple[str, ...]
    verification: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Inspection:
    """What a file is.

    Attributes:
      path: the file.
      format: in words.
      official: name for `download` if it is an official file of Keras; else ''.
      size: bytes.
      info: of the weights.
      evidence: where the info comes from, in words.
      parameters: how many numbers the network trains.
      tensors: shape by name, as the file spells them, in our layout.
    """

    path: str
    format: str
    official: str
    size: int
    info: WeightsInfo
    evidence: tuple[str, ...]
    parameters: int
    tensors: dict[str, Shape]


def convert(
    src: StrPath, dst: StrPath, *, verify: bool = False, **overrides: Unpack[InfoFields]
) -> Conversion:
    """Converts any supported file to our `.safetensors`.

    Args:
      src: a file as for `read_weights`.
      dst: where to write; must end in `.safetensors`.
      verify: compare the source's framework with ours first, then read the written file back.
      **overrides: attributes of `WeightsInfo` that the file cannot state or states wrongly.

    Raises:
      InputError: `src` cannot be read, `dst` cannot be written, or the two networks disagree;
        `dst` is then what it was before.
    """
    return _convert(src, check_target(dst, ".safetensors"), save_weights, verify, overrides)


def export(
    src: StrPath, dst: StrPath, *, verify: bool = False, **overrides: Unpack[InfoFields]
) -> Conversion:
    """Converts any supported file to one that Keras loads; arguments as for `convert`.

    `dst` ends in `.weights.h5`, or is any other `.h5` for Keras's legacy format.

    Raises:
      InputError: as for `convert`; or Keras's DenseNet cannot compute what these weights need.
    """
    return _convert(src, check_target(dst, ".h5"), export_weights, verify, overrides)


def inspect(path: StrPath) -> Inspection:
    """Reads all tensors of a file and describes it."""
    with open_weights(path) as file:
        layout = file.layout()
        variables = file.read(layout)
        is_file = file.path.is_file()
        return Inspection(
            path=str(file.path),
            format=file.format,
            official=official_name(file.path) if is_file else "",
            size=file.path.stat().st_size if is_file else 0,
            info=file.info(layout),
            evidence=tuple(file.evidence),
            parameters=_count_parameters(variables),
            tensors={tensor.name: tensor.shape for tensor in file.tensors},
        )


def check_written(path: Path, variables: Variables) -> None:
    """Raises InputError unless a written file holds these variables, bit by bit."""
    written = flatten_dict(read_weights(path)[0])
    for name, values in flatten_dict(variables).items():
        if not np.array_equal(written[name], values):
            raise InputError(f"{path}: {'/'.join(name)} changed on the disk; check the disk")


def _convert(
    src: StrPath, dst: Path, write: _Write, verify: bool, overrides: InfoFields
) -> Conversion:
    # All is read before anything is written: both names may be of the same file.
    with open_weights(src) as file:
        layout = file.layout()
        variables, info = file.read(layout), file.info(layout)
        path, framework, evidence = file.path, file.framework, tuple(file.evidence)
    if overrides:
        info = dataclasses.replace(info, **overrides)
        evidence = (*evidence, f"{', '.join(overrides)} as given by the user")
    verification = _verify(path, framework, variables, info) if verify else ()
    write(dst, variables, info)
    if verify:
        check_written(dst, variables)
        verification += (f"read back from {dst.name}: every number is bitwise the same",)
    count = len(flatten_dict(variables))
    return Conversion(info, count, _count_parameters(variables), evidence, verification)


def _verify(path: Path, framework: str, variables: Variables, info: WeightsInfo) -> tuple[str, ...]:
    # Imported here: a conversion that is not verified needs no network.
    from densenet_flax.weights.verify import TOLERANCE, verify

    result = verify(path, framework, variables, info)
    if not result.framework:
        return (
            f"not compared with the source's framework: {result.reason}",
            "checked: every tensor of the file is used once, all are finite, variances are not "
            "negative, and our network gives finite values on random images",
        )
    if unit := result.failed_unit:
        raise InputError(
            f"{path}: {result.framework} and this package differ by "
            f"{result.differences[unit]:.1e} of the largest value from unit {unit} on; the "
            "metadata are not those of the file: state --epsilon or --final-relu"
        )
    return (
        f"largest difference from {result.framework} over largest value, on random images:",
        *(f"{unit:>16}  {value:.1e}" for unit, value in result.differences.items()),
        f"{'worst':>16}  {max(result.differences.values()):.1e} (at most {TOLERANCE:.0e})",
    )


def _count_parameters(variables: Variables) -> int:
    return sum(value.size for value in flatten_dict(variables["params"]).values())
