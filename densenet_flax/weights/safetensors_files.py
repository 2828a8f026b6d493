"""`.safetensors`: our own files, and PyTorch's."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy
from flax.traverse_util import flatten_dict
from jaxtyping import Float

from densenet_flax.common.errors import InputError
from densenet_flax.common.trees import Variables
from densenet_flax.storage.atomic import atomic_file
from densenet_flax.weights.info import WeightsInfo
from densenet_flax.weights.layout import Shape
from densenet_flax.weights.safe_reading import reading
from densenet_flax.weights.torch_names import torch_metadata, torch_tensors
from densenet_flax.weights.weights_file import (
    ReadTensor,
    StoredTensor,
    WeightsFile,
    stored_metadata,
)

INFO_KEY = "densenet_flax"  # of the header's metadata: our `WeightsInfo`, as JSON

_FLOATS = ("F64", "F32", "F16", "BF16")


@contextlib.contextmanager
def open_safetensors(path: Path) -> Iterator[WeightsFile]:
    """Opens a file of ours, recognized by its metadata, or one with PyTorch's names."""
    with reading(path):
        file = safetensors.safe_open(path, framework="numpy")
        metadata = file.metadata() or {}
        arrays = [_array(path, file, name) for name in file.keys()]  # noqa: SIM118
    with file:
        if INFO_KEY in metadata:
            format, framework = "densenet_flax safetensors", ""
            tensors = [_our_tensor(*array) for array in arrays]
            fields = stored_metadata(path, metadata[INFO_KEY])
            evidence = ["stated in the file's header"]
        else:
            format, framework = "safetensors with PyTorch's names", "PyTorch"
            tensors = torch_tensors(arrays)
            fields, evidence = torch_metadata(path, tensors)
        yield WeightsFile(path, format, framework, tensors, fields, evidence)


def save_safetensors(path: Path, variables: Variables, info: WeightsInfo) -> None:
    """Writes our own form: `params/conv4_block23/2_conv/kernel` and so on, float32."""
    flat = flatten_dict(variables, sep="/")
    arrays = {name: np.ascontiguousarray(value, np.float32) for name, value in flat.items()}
    # One key: the library writes several in any order, and equal files should be equal bytes.
    metadata = {INFO_KEY: json.dumps(info.to_dict(), sort_keys=True)}
    with atomic_file(path) as temporary:
        try:
            safetensors.numpy.save_file(arrays, temporary, metadata)
        except safetensors.SafetensorError as error:
            raise OSError(str(error)) from error


def _array(path: Path, file: safetensors.safe_open, name: str) -> tuple[str, Shape, ReadTensor]:
    header = file.get_slice(name)

    def read() -> Float[np.ndarray, "..."]:
        if header.get_dtype() not in _FLOATS:
            raise InputError(f"{path}: {name} is {header.get_dtype()}; expected floats")
        return file.get_tensor(name)

    return name, tuple(header.get_shape()), read


def _our_tensor(name: str, shape: Shape, read: ReadTensor) -> StoredTensor:
    path = tuple(name.split("/"))
    is_variable = len(path) >= 3 and path[0] in ("params", "batch_stats")
    return StoredTensor(name, shape, path if is_variable else None, read, path[1:2] == ("head",))
