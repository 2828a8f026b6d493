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
from densenet_flax.weights.torch_names import INFO_KEY, network_file
from densenet_flax.weights.torch_networks import BACKBONE_NAME, select_network
from densenet_flax.weights.weights_file import StoredTensor, WeightsFile, stored_metadata

_FLOATS = ("F64", "F32", "F16", "BF16")


@contextlib.contextmanager
def open_safetensors(path: Path, which: str = "") -> Iterator[WeightsFile]:
    """Opens a file of ours, recognized by its metadata, or one with PyTorch's names."""
    with reading(path):
        file = safetensors.safe_open(path, framework="numpy")
        metadata = file.metadata() or {}
        arrays = {name: _HeaderTensor(path, file, name) for name in file.keys()}  # noqa: SIM118
    with file:
        stored = stored_metadata(path, metadata[INFO_KEY]) if INFO_KEY in metadata else None
        is_torch = any(BACKBONE_NAME.fullmatch(name) for name in arrays)
        if stored is not None and not is_torch:
            tensors = [_our_tensor(name, array) for name, array in arrays.items()]
            evidence = ["stated in the file's header"]
            yield WeightsFile(path, "densenet_flax safetensors", "", tensors, stored, evidence)
            return
        with reading(path):
            network = select_network(arrays, which)
            if network is None:
                names = ", ".join(list(arrays)[:3]) or "no tensors at all"
                raise InputError(
                    f"not the weights of a DenseNet (safetensors with {names}, …); expected "
                    "DenseNet121, 161, 169 or 201"
                )
        format = "safetensors with PyTorch's names"
        yield network_file(
            path,
            format,
            network,
            lambda name: arrays[name].read,
            is_ordered=False,
            stored=stored,
        )


def save_safetensors(path: Path, variables: Variables, info: WeightsInfo) -> None:
    """Writes our own form: `params/conv4_block23/2_conv/kernel` and so on, float32."""
    flat = flatten_dict(variables, sep="/")
    arrays = {name: np.ascontiguousarray(value, np.float32) for name, value in flat.items()}
    # One key: the library writes several in any order, and equal files should be equal bytes.
    with atomic_file(path) as temporary:
        write_safetensors(temporary, arrays, info)


def write_safetensors(
    path: Path, arrays: dict[str, np.ndarray], info: WeightsInfo, **metadata: str
) -> None:
    """Writes arrays with `info` and more metadata in the header; OSError if the disk refuses."""
    metadata[INFO_KEY] = json.dumps(info.to_dict(), sort_keys=True)
    try:
        safetensors.numpy.save_file(arrays, path, metadata)
    except safetensors.SafetensorError as error:
        raise OSError(str(error)) from error


class _HeaderTensor:
    """A tensor of the file, not read yet."""

    def __init__(self, path: Path, file: safetensors.safe_open, name: str):
        self._path, self._file, self._name = path, file, name
        self._header = file.get_slice(name)
        self.shape: Shape = tuple(self._header.get_shape())

    def read(self) -> Float[np.ndarray, "..."]:
        """Reads it; InputError if it holds no floats."""
        if (dtype := self._header.get_dtype()) not in _FLOATS:
            raise InputError(f"{self._path}: {self._name} is {dtype}; expected floats")
        return self._file.get_tensor(self._name)


def _our_tensor(name: str, array: _HeaderTensor) -> StoredTensor:
    path = tuple(name.split("/"))
    is_variable = len(path) >= 3 and path[0] in ("params", "batch_stats")
    in_head = path[1:2] == ("head",)
    return StoredTensor(name, array.shape, path if is_variable else None, array.read, in_head)
