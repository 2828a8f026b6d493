"""PyTorch's `.pth` and `.pt` files. Needs PyTorch, and never runs code from the file."""

import contextlib
import pickle
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path as FilePath
from typing import Any

import numpy as np

from densenet_flax.common.errors import InputError
from densenet_flax.weights.source import Source, check_expansion, reading
from densenet_flax.weights.torch_names import torch_meaning, torch_tensors

_WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "network", "weights", "desc")


@contextlib.contextmanager
def open_torch(path: FilePath) -> Iterator[Source]:
    """Opens a state dict, or a training checkpoint that contains one."""
    state = load_state_dict(path)
    with reading(path):
        tensors = torch_tensors(
            (name, tuple(value.shape), _reader(path, name, value)) for name, value in state.items()
        )
        meaning, reasons = torch_meaning(path, tensors)
    yield Source(path, "PyTorch state dict", tensors, meaning, reasons)


def load_state_dict(path: FilePath) -> dict[str, Any]:
    """The tensors of a torch file by name.

    Raises:
      InputError: PyTorch is not installed, or the file is damaged, hostile, or no state dict.
    """
    try:
        import torch
    except ImportError as error:
        raise InputError(
            f"{path}: reading this file needs PyTorch; pip install torch, or give the same "
            "weights as .safetensors"
        ) from error
    stored = path.stat().st_size
    with reading(path):
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                total = sum(member.file_size for member in archive.infolist())
            check_expansion(path, stored, total)
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            # PyTorch's own message goes on to advise switching this protection off.
            reason = str(error).partition("WeightsUnpickler error:")[2].partition("Check the")[0]
            wanted = re.search(r"GLOBAL ([\w.]+)|Unsupported class ([\w.]+)", str(error))
            what = (
                f"that wants to run {wanted[1] or wanted[2]}"
                if wanted
                else f"PyTorch refuses ({reason})"
            )
            raise InputError(
                f"{path}: a pickle {' '.join(what.split())}; nothing was run; save the "
                "state_dict() alone, or distrust the file"
            ) from error
        state = _state_dict(path, content)
        declared = sum(value.numel() * value.element_size() for value in state.values())
        check_expansion(path, stored, declared)
    return state


def _reader(path: FilePath, name: str, value: Any) -> Callable[[], np.ndarray]:
    def read() -> np.ndarray:
        if not value.is_floating_point():
            raise InputError(f"{path}: {name} is {value.dtype}; expected floats")
        return value.detach().float().numpy()

    return read


def _state_dict(path: FilePath, content: Any) -> dict[str, Any]:
    """The tensors by name, where necessary from inside a checkpoint."""
    for _ in range(3):
        if not isinstance(content, Mapping):
            break
        tensors = {k: v for k, v in content.items() if isinstance(k, str) and hasattr(v, "numel")}
        if any("." in name for name in tensors):
            return tensors
        inner = [content[name] for name in _WRAPPERS if isinstance(content.get(name), Mapping)]
        if not inner:
            break
        content = inner[0]
    raise InputError(
        f"{path}: no state dict in it (looked under {', '.join(_WRAPPERS)}); save "
        "model.state_dict()"
    )
