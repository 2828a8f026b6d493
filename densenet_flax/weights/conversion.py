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
from densenet_flax.weights.save import (
    TORCH_SUFFIXES,
    check_target,
    export_torch,
    export_weights,
    save_weights,
)
from densenet_flax.weights.weights_file import WeightsFile

_Write: TypeAlias = Callable[[StrPath, Variables, WeightsInfo], None]


@dataclasses.dataclass(frozen=True)
class Conversion:
    """A conversion that was made.

    Attributes:
      info: of the written weights.
      parameters: how many numbers the network trains.
      evidence: where the info comes from, in words.
      verification: lines that say how it was verified; empty if it was not.
      notes: what one must do to use the file.
    """

    info: WeightsInfo
    parameters: int
    evidence: tuple[str, ...]
    verification: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


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
    src: StrPath,
    dst: StrPath,
    *,
    which: str = "",
    verify: bool = True,
    **overrides: Unpack[InfoFields],
) -> Conversion:
    """Converts any supported file to our `.safetensors`.

    Args:
      src: a file as for `read_weights`.
      dst: where to write; must end in `.safetensors`.
      which: of several networks in `src`, as for `read_weights`.
      verify: compare the source's framework with ours first, if it is installed, then read the
        written file back.
      **overrides: attributes of `WeightsInfo` that the file cannot state or states wrongly.

    Raises:
      InputError: `src` cannot be read, `dst` cannot be written, or the two networks disagree;
        `dst` is then what it was before.
    """
    target = check_target(dst, ".safetensors")
    return _convert(src, target, save_weights, which, verify, overrides)


def export(
    src: StrPath,
    dst: StrPath,
    *,
    library: str = "",
    which: str = "",
    verify: bool = True,
    **overrides: Unpack[InfoFields],
) -> Conversion:
    """Converts any supported file to one that Keras, timm or torchvision loads.

    Args:
      src: a file as for `read_weights`.
      dst: where to write: `.weights.h5`, or any other `.h5` for Keras's legacy format; for timm
        and torchvision `.safetensors` or `.pth`, beside which `config.json` is written.
      library: 'timm' or 'torchvision' for these; '' for Keras.
      which: as for `convert`.
      verify: as for `convert`.
      **overrides: as for `convert`.

    Raises:
      InputError: as for `convert`; or the library's DenseNet cannot compute what these weights
        need.
    """
    if not library:
        if Path(dst).suffix in TORCH_SUFFIXES:
            raise InputError(f"{dst}: say what shall load it: --for=timm or --for=torchvision")
        target = check_target(dst, ".h5")
        return _convert(src, target, export_weights, which, verify, overrides)
    target = check_target(dst, *TORCH_SUFFIXES)
    from densenet_flax.weights.torch_writer import head_code

    result = _convert(src, target, export_torch, which, verify, overrides)
    code = head_code(result.info)
    notes = (f"before load_state_dict: {code}",) if code else ()
    return dataclasses.replace(result, notes=notes)


def inspect(path: StrPath, *, which: str = "", **overrides: Unpack[InfoFields]) -> Inspection:
    """Reads all tensors of a file and describes it; arguments as for `convert`."""
    with open_weights(path, which) as file:
        layout = file.layout()
        variables = file.read(layout)
        is_file = file.path.is_file()
        return Inspection(
            path=str(file.path),
            format=file.format,
            official=official_name(file.path) if is_file else "",
            size=file.path.stat().st_size if is_file else 0,
            info=file.info(layout, **overrides),
            evidence=_explain(file, overrides),
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
    src: StrPath, dst: Path, write: _Write, which: str, verify: bool, overrides: InfoFields
) -> Conversion:
    # All is read before anything is written: both names may be of the same file.
    with open_weights(src, which) as file:
        layout = file.layout()
        variables, info = file.read(layout), file.info(layout, **overrides)
        evidence = _explain(file, overrides)
        verification: tuple[str, ...] = ()
        if verify:
            # Imported here: a conversion that is not verified needs no network.
            from densenet_flax.weights.verify import verify_file

            verification = verify_file(file, variables, info)
    write(dst, variables, info)
    if verify:
        check_written(dst, variables)
        verification += (f"read back from {dst.name}: every number is bitwise the same",)
    return Conversion(info, _count_parameters(variables), evidence, verification)


def _explain(file: WeightsFile, overrides: InfoFields) -> tuple[str, ...]:
    given = (f"{', '.join(overrides)} as given by the user",) if overrides else ()
    return file.explain() + given


def _count_parameters(variables: Variables) -> int:
    return sum(value.size for value in flatten_dict(variables["params"]).values())
