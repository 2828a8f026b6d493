"""`.safetensors`: our own files, and PyTorch's."""

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path as FilePath
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from densenet_flax.common.errors import InputError
from densenet_flax.storage.atomic import atomic_file
from densenet_flax.weights.info import WeightsInfo
from densenet_flax.weights.layout import Shape, flatten
from densenet_flax.weights.source import Source, Tensor, reading, stated
from densenet_flax.weights.torch_names import torch_meaning, torch_tensors

METADATA = "densenet_flax"  # the key of the header's metadata that holds our `WeightsInfo`

_FLOATS = ("F64", "F32", "F16", "BF16")


@contextlib.contextmanager
def open_safetensors(path: FilePath) -> Iterator[Source]:
    """Opens a file of ours, told by its metadata, or one in torch's spelling."""
    with contextlib.ExitStack() as stack:
        with reading(path):
            file = stack.enter_context(safetensors.safe_open(path, framework="numpy"))
            metadata = file.metadata() or {}
            arrays = [_array(path, file, name) for name in file.keys()]  # noqa: SIM118
        if METADATA in metadata:
            tensors = [_own(*array) for array in arrays]
            reasons = ["stated in the file's header"]
            form, meaning = "densenet_flax safetensors", stated(path, metadata[METADATA])
        else:
            tensors = torch_tensors(arrays)
            form = "safetensors in PyTorch's spelling"
            meaning, reasons = torch_meaning(path, tensors)
        yield Source(path, form, tensors, meaning, reasons)


def save_safetensors(path: FilePath, variables: Mapping[str, Any], info: WeightsInfo) -> None:
    """Writes our own form: `params/conv4_block23/2_conv/kernel` and so on, float32."""
    arrays = {
        "/".join(name): np.ascontiguousarray(value, np.float32)
        for name, value in flatten(variables).items()
    }
    # One key: the library writes several in any order, and equal files should be equal bytes.
    metadata = {METADATA: json.dumps(info.to_dict(), sort_keys=True)}
    with atomic_file(path) as temporary:
        try:
            safetensors.numpy.save_file(arrays, temporary, metadata)
        except safetensors.SafetensorError as error:
            raise OSError(str(error)) from error


def _array(path: FilePath, file: Any, name: str) -> tuple[str, Shape, Callable[[], np.ndarray]]:
    part = file.get_slice(name)

    def read() -> np.ndarray:
        if part.get_dtype() not in _FLOATS:
            raise InputError(f"{path}: {name} is {part.get_dtype()}; expected floats")
        return file.get_tensor(name)

    return name, tuple(part.get_shape()), read


def _own(name: str, shape: Shape, read: Callable[[], np.ndarray]) -> Tensor:
    path = tuple(name.split("/"))
    is_ours = len(path) >= 3 and path[0] in ("params", "batch_stats")
    return Tensor(name, shape, path if is_ours else None, read, in_head="head" in path[1:2])
