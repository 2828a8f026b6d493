"""Writes state dicts that timm and torchvision load, with `config.json` in timm's form."""

import importlib.util
import itertools
import json
from pathlib import Path

import numpy as np
from flax.traverse_util import flatten_dict
from jaxtyping import Shaped

from densenet_flax.common.errors import InputError
from densenet_flax.common.trees import JsonDict, Variables
from densenet_flax.models.preprocessing import MEAN_STD
from densenet_flax.storage.atomic import atomic_file, write_text
from densenet_flax.weights.info import WeightsInfo
from densenet_flax.weights.layout import VariablePath
from densenet_flax.weights.safe_reading import reading
from densenet_flax.weights.safetensors_files import write_safetensors
from densenet_flax.weights.torch_names import INFO_KEY, LAYERS, NORM_VARIABLES, TIMM_CONFIG

_VARIABLES = {ours: theirs for theirs, (_, ours) in NORM_VARIABLES.items()} | {"kernel": "weight"}
_LAYERS = {ours: theirs for theirs, ours in LAYERS.items()}

StateDict = dict[str, Shaped[np.ndarray, "..."]]


def save_torch(path: Path, variables: Variables, info: WeightsInfo) -> None:
    """Writes `.safetensors`, or `.pth` for any other name, and `config.json`.

    Raises:
      InputError: timm and torchvision have no such network, another `config.json` is in the way, or
        PyTorch is needed and not installed.
    """
    is_pth = path.suffix != ".safetensors"
    if is_pth and not importlib.util.find_spec("torch"):
        advice = "pip install torch, or write the same as .safetensors"
        raise InputError(f"{path}: writing this file needs PyTorch; {advice}")
    config_path = path.with_name(TIMM_CONFIG)
    _check_config(config_path)
    state = torch_state_dict(variables)
    with atomic_file(path) as temporary:
        if is_pth:
            _save_pth(temporary, state)
        else:
            write_safetensors(temporary, state, info, format="pt")
    write_text(config_path, json.dumps(timm_config(info), indent=2) + "\n")


def torch_state_dict(variables: Variables) -> StateDict:
    """The variables in torchvision's spelling and layout, with PyTorch's counters."""
    state: StateDict = {}
    flat = flatten_dict(variables)
    num_dense = len(variables["params"].get("head", ()))
    for path, value in flat.items():
        array = np.asarray(value, np.float32)
        axes = {4: (3, 2, 0, 1), 2: (1, 0)}.get(array.ndim)
        layer = _layer_name(path, num_dense)
        name = f"{layer}.{_VARIABLES[path[-1]]}"
        state[name] = np.ascontiguousarray(array.transpose(axes) if axes else array)
        if path[-1] == "var":
            state[f"{layer}.num_batches_tracked"] = np.array(0, np.int64)
    return state


def head_code(info: WeightsInfo) -> str:
    """Python that gives timm's or torchvision's model the head of the file; '' if it has it."""
    if not info.hidden:
        return ""
    sizes = [info.layout.features, *info.hidden, info.num_classes]
    linears = [f"nn.Linear({i}, {o})" for i, o in itertools.pairwise(sizes)]
    return f"model.classifier = nn.Sequential({', nn.ReLU(), '.join(linears)})"


def timm_config(info: WeightsInfo) -> JsonDict:
    """What timm keeps beside the weights, and our metadata, which timm ignores."""
    mean, std = MEAN_STD[info.preprocessing]
    size = info.inference.image_size or (224, 224)
    pretrained: JsonDict = {
        "custom_load": False,
        "input_size": [3, *size],
        "fixed_input_size": False,
        "interpolation": "bilinear",
        "crop_pct": 1.0,  # images are resized as a whole
        "crop_mode": "squash",
        "mean": list(mean),
        "std": list(std),
        "num_classes": info.num_classes,
        "pool_size": [size[0] // 32, size[1] // 32],
        "first_conv": "features.conv0",
        "classifier": "classifier",
        **({"license": info.license} if info.license else {}),
    }
    names = {"label_names": list(info.class_names)} if info.class_names else {}
    # timm's models have no hidden layers in their head: it makes the backbone, to be completed.
    arguments = {"model_args": {"num_classes": 0}} if info.hidden else {}
    return {
        "architecture": info.network,
        "num_classes": info.num_classes,
        "num_features": info.layout.features,
        **names,
        **arguments,
        "pretrained_cfg": pretrained,
        INFO_KEY: info.to_dict(),
    }


def _layer_name(path: VariablePath, num_dense: int) -> str:
    unit, *layer = path[1:-1]
    if unit == "head":
        # ReLUs are the odd modules of the `nn.Sequential`.
        position = num_dense if layer[0] == "predictions" else int(layer[0].removeprefix("dense_"))
        return f"classifier.{2 * (position - 1)}" if num_dense > 1 else "classifier"
    if unit == "conv1":
        return f"features.{_LAYERS[layer[0]]}0"
    if unit == "bn":
        return "features.norm5"
    if unit.startswith("pool"):
        return f"features.transition{int(unit.removeprefix('pool')) - 1}.{_LAYERS[layer[0]]}"
    block, number = unit.removeprefix("conv").split("_block")
    return f"features.denseblock{int(block) - 1}.denselayer{number}.{_LAYERS[layer[0]]}"


def _check_config(path: Path) -> None:
    """Rejects a folder whose `config.json` is not of an earlier export."""
    if not path.exists():
        return
    with reading(path):
        config = json.loads(path.read_text()) if path.is_file() else None
    if not (isinstance(config, dict) and INFO_KEY in config):
        raise InputError(f"{path}: another file is in the way; choose another folder")


def _save_pth(path: Path, state: StateDict) -> None:
    import torch

    tensors = {name: torch.from_numpy(array) for name, array in state.items()}
    try:
        torch.save(tensors, path)
    except RuntimeError as error:  # of a full disk
        raise OSError(" ".join(str(error).split())[:200]) from error
