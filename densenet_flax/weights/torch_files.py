"""Opens PyTorch's `.pth` and `.pt` files. Needs PyTorch, and never runs code from the file."""

import contextlib
import pickle
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from densenet_flax.common.errors import InputError
from densenet_flax.weights.safe_reading import check_expansion, reading
from densenet_flax.weights.torch_names import torch_metadata, torch_tensors
from densenet_flax.weights.weights_file import ReadTensor, WeightsFile

if TYPE_CHECKING:
    import torch

# Under what training scripts keep the state dict in a checkpoint.
_WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "network", "weights", "desc")


@contextlib.contextmanager
def open_torch(path: Path) -> Iterator[WeightsFile]:
    """Opens a state dict, or a training checkpoint that contains one."""
    state = load_state_dict(path)
    with reading(path):
        tensors = torch_tensors(
            (name, tuple(value.shape), _reader(path, name, value)) for name, value in state.items()
        )
        metadata, evidence = torch_metadata(path, tensors)
    yield WeightsFile(path, "PyTorch state dict", "PyTorch", tensors, metadata, evidence)


def load_state_dict(path: Path) -> dict[str, "torch.Tensor"]:
    """The tensors of a PyTorch file by name; InputError without PyTorch."""
    try:
        import torch
    except ImportError as error:
        advice = "pip install torch, or give the same weights as .safetensors"
        raise InputError(f"{path}: reading this file needs PyTorch; {advice}") from error
    with reading(path):
        stored = path.stat().st_size
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                unpacked = sum(member.file_size for member in archive.infolist())
            check_expansion(path, stored, unpacked)
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            fault = f"a pickle {_refusal(str(error))}; nothing was run"
            advice = "save the state_dict() alone, or distrust the file"
            raise InputError(f"{path}: {fault}; {advice}") from error
        state = _find_state_dict(path, content)
        # A tensor may repeat one number a billion times by its strides.
        declared = sum(value.numel() * value.element_size() for value in state.values())
        check_expansion(path, stored, declared)
    return state


def _refusal(message: str) -> str:
    """Why PyTorch refused a pickle, without its advice to switch the protection off."""
    if name := re.search(r"(?:GLOBAL|Unsupported class) ([\w.]+)", message):
        return f"that wants to run {name[1]}"
    reason = message.partition("WeightsUnpickler error:")[2].partition("Check the")[0]
    return f"PyTorch refuses ({' '.join(reason.split())})"


def _find_state_dict(path: Path, content: Any) -> dict[str, "torch.Tensor"]:
    """The tensors by name, where necessary from inside a checkpoint."""
    for _ in range(3):  # a trainer's checkpoint in a framework's, at most
        if not isinstance(content, Mapping):
            break
        tensors = {k: v for k, v in content.items() if isinstance(k, str) and hasattr(v, "numel")}
        if any("." in name for name in tensors):
            return tensors
        values = (content.get(name) for name in _WRAPPERS)
        content = next((value for value in values if isinstance(value, Mapping)), None)
    fault = f"no state dict in it (looked under {', '.join(_WRAPPERS)})"
    raise InputError(f"{path}: {fault}; save model.state_dict()")


def _reader(path: Path, name: str, value: "torch.Tensor") -> ReadTensor:
    def read() -> Float[np.ndarray, "..."]:
        if not value.is_floating_point():
            raise InputError(f"{path}: {name} is {value.dtype}; expected floats")
        return value.detach().float().numpy()

    return read
