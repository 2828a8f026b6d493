"""Opens PyTorch's `.pth` and `.pt` files. Needs PyTorch, and never runs code from the file."""

import argparse
import contextlib
import dataclasses
import datetime
import io
import pathlib
import pickle
import re
import reprlib
import types
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from densenet_flax.common.errors import InputError
from densenet_flax.weights.safe_reading import check_expansion, reading
from densenet_flax.weights.torch_names import network_file
from densenet_flax.weights.torch_networks import TorchNetwork, select_network
from densenet_flax.weights.torch_options import find_options
from densenet_flax.weights.weights_file import ReadTensor, WeightsFile

if TYPE_CHECKING:
    import torch


@contextlib.contextmanager
def open_torch(path: Path, which: str = "") -> Iterator[WeightsFile]:
    """Opens a state dict, or a training checkpoint that contains some."""
    network = load_network(path, which)
    yield network_file(
        path,
        "PyTorch state dict",
        network,
        lambda name: _reader(path, name, network.tensors[name]),
        is_ordered=True,
    )


def load_network(path: Path, which: str = "") -> TorchNetwork["torch.Tensor"]:
    """The tensors of a network in a PyTorch file by name; InputError without PyTorch."""
    try:
        import torch
    except ImportError as error:
        advice = "pip install torch, or give the same weights as .safetensors"
        raise InputError(f"{path}: reading this file needs PyTorch; {advice}") from error
    with reading(path):
        stored = path.stat().st_size
        if is_zip := zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                unpacked = sum(member.file_size for member in archive.infolist())
            check_expansion(path, stored, unpacked)
        try:
            with contextlib.ExitStack() as stack:
                stack.enter_context(torch.serialization.safe_globals(_harmless_globals()))
                source = path if is_zip else stack.enter_context(_BoundedReader(path))
                content = torch.load(source, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            fault = f"a pickle {_refusal(str(error))}; nothing was run"
            advice = "save the state_dict() alone, or distrust the file"
            raise InputError(f"{path}: {fault}; {advice}") from error
        if not isinstance(content, Mapping):
            content = {}
        network = select_network(content, which)
        if network is None:
            keys = ", ".join(reprlib.repr(key) for key in list(content)[:5]) or "none"
            fault = f"no state dict of a DenseNet in it (keys: {keys})"
            raise InputError(f"{path}: {fault}; save model.state_dict()")
        # Some keep NumPy's arrays.
        tensors = {name: torch.as_tensor(value) for name, value in network.tensors.items()}
        # A tensor may repeat one number a billion times by its strides.
        declared = sum(v.numel() * v.element_size() for v in tensors.values())
        check_expansion(path, stored, declared)
    return dataclasses.replace(network, tensors=tensors, options=find_options(content))


class _BoundedReader(io.BufferedReader):
    """A file of which no more is read than is left: room is made for all that a pickle asks for."""

    def __init__(self, path: Path):
        super().__init__(io.FileIO(path))
        self._size = path.stat().st_size

    def read(self, size: int | None = -1) -> bytes:
        left = max(0, self._size - self.tell())
        return super().read(left if size is None or size < 0 else min(size, left))


def _harmless_globals() -> list[Any]:
    """What training scripts keep beside the weights, and what can do nothing when it is made.

    The options of timm's and torchvision's scripts are an `argparse.Namespace`, which may hold
    paths, and a best accuracy or a history is often of NumPy, or in a `defaultdict(list)`. Files
    name these as the NumPy or the Python that wrote them.
    """
    multiarray = np._core.multiarray  # type: ignore[attr-defined]
    renamed = [
        (getattr(multiarray, name), f"numpy.{core}.multiarray.{name}")
        for core in ("core", "_core")
        for name in ("scalar", "_reconstruct")
    ]
    renamed += [
        (pathlib.PurePosixPath if "Posix" in name else pathlib.PureWindowsPath, f"{module}.{name}")
        for module in ("pathlib", "pathlib._local")
        for name in ("PosixPath", "PurePosixPath", "WindowsPath", "PureWindowsPath")
    ]
    dtypes = {type(np.dtype(code)) for code in "?bBhHiIlLqQefd"}
    own = [argparse.Namespace, types.SimpleNamespace, datetime.datetime]
    # PyTorch fills plain dictionaries alone.
    renamed += [(lambda *_: {}, "collections.defaultdict"), (lambda: [], "builtins.list")]
    return [*own, np.dtype, *dtypes, np.ndarray, *renamed]


def _refusal(message: str) -> str:
    """Why PyTorch refused a pickle, without its advice to switch the protection off."""
    if name := re.search(r"(?:GLOBAL|Unsupported class) ([\w.]+)", message):
        return f"that wants to run {name[1]}"
    reason = message.partition("WeightsUnpickler error:")[2].partition("Check the")[0]
    return f"PyTorch refuses ({' '.join(reason.split())})"


def _reader(path: Path, name: str, value: "torch.Tensor") -> ReadTensor:
    def read() -> Float[np.ndarray, "..."]:
        if not value.is_floating_point():
            raise InputError(f"{path}: {name} is {value.dtype}; expected floats")
        return value.detach().float().numpy()

    return read
