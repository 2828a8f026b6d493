"""The spelling of DenseNet in PyTorch: torchvision, timm, TIAToolbox, and what wraps them."""

import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path as FilePath
from typing import Any

import numpy as np

from densenet_flax.common.errors import InputError
from densenet_flax.models.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from densenet_flax.weights.layout import Path, Shape
from densenet_flax.weights.source import Tensor, reading

TORCH_EPSILON = 1e-5

_BACKBONE = re.compile(
    r"(?P<prefix>(?:\w+\.)*?)(?:features\.)?(?:"
    r"(?P<stem>conv|norm)0|(?P<last>norm)5|"
    r"transition(?P<pool>[1-9])\.(?P<pool_layer>conv|norm)|"
    # torchvision before 0.3 wrote `norm.1` where today's says `norm1`.
    r"denseblock(?P<stage>[1-9])\.denselayer(?P<block>[1-9]\d{0,2})\."
    r"(?P<layer>conv|norm)\.?(?P<number>[12])"
    r")\.(?P<variable>weight|bias|running_mean|running_var)"
)
_NORM = {
    "weight": ("params", "scale"),
    "bias": ("params", "bias"),
    "running_mean": ("batch_stats", "mean"),
    "running_var": ("batch_stats", "var"),
}
_LAYERS = {"norm1": "0_bn", "conv1": "1_conv", "norm2": "1_bn", "conv2": "2_conv"}

# https://github.com/TissueImageAnalytics/tiatoolbox, `CNNModel`: pixels / 255, no final ReLU.
_TIATOOLBOX = {"preprocessing": "scale", "final_relu": False}
_KATHER_CLASSES = ("BACK", "NORM", "DEB", "TUM", "ADI", "MUC", "MUS", "STR", "LYM")


def torch_tensors(arrays: Iterable[tuple[str, Shape, Callable[[], np.ndarray]]]) -> list[Tensor]:
    """Tensors of a state dict, given as (name, shape, how to read it), in our layout."""
    tensors = []
    others = []
    for name, shape, read in arrays:
        if name.endswith("num_batches_tracked"):  # a counter that torch keeps, not a weight
            continue
        match = _BACKBONE.fullmatch(name)
        if match:
            tensors.append(_tensor(name, shape, read, _path(match)))
        else:
            others.append((name, shape, read))
    kernels = [name for name, shape, _ in others if name.endswith(".weight") and len(shape) == 2]
    dense = sorted((name.removesuffix(".weight") for name in kernels), key=_natural)
    for name, shape, read in others:
        owner, _, variable = name.rpartition(".")
        path: Path | None = None
        if owner in dense and variable in ("weight", "bias"):
            number = dense.index(owner) + 1
            layer = "predictions" if number == len(dense) else f"dense_{number}"
            path = ("params", "head", layer, "kernel" if variable == "weight" else "bias")
        tensors.append(_tensor(name, shape, read, path, in_head=True))
    return tensors


def torch_meaning(file: FilePath, tensors: list[Tensor]) -> tuple[dict[str, Any], list[str]]:
    """What a torch file means: by a timm `config.json` beside it, its names, or convention."""
    meaning: dict[str, Any] = {"epsilon": TORCH_EPSILON}
    reasons = ["names as in torchvision and timm: ImageNet mean and standard deviation"]
    config = _timm_config(file)
    hint = f"{file.parent.name}/{file.name} {config.get('pretrained_cfg', {}).get('tag', '')}"
    wrapped = any("feat_extract." in tensor.name for tensor in tensors)
    if wrapped or re.search("tiatoolbox|kather100k|-pcam", hint, re.IGNORECASE):
        meaning |= _TIATOOLBOX
        where = "feat_extract in its names" if wrapped else "its name"
        reasons = [f"TIAToolbox, by {where}: pixels / 255, no ReLU after the last norm"]
        classes = _classes(tensors)
        if classes == len(_KATHER_CLASSES):
            meaning |= {"class_names": _KATHER_CLASSES, "license": "CC BY 4.0"}
        elif classes == 2 and "pcam" in hint.lower():
            meaning |= {"license": "CC0 1.0"}
    elif config:
        meaning |= _timm_meaning(file, config["pretrained_cfg"])
        reasons = ["timm's config.json beside the file"]
    names = config.get("label_names")
    if isinstance(names, list) and len(names) == _classes(tensors):
        meaning["class_names"] = tuple(str(name) for name in names)
    return meaning, reasons


def _timm_config(file: FilePath) -> dict[str, Any]:
    """The `config.json` that the Hugging Face hub keeps beside a timm file; {} if there is none."""
    path = file.parent / "config.json"
    if not path.is_file():
        return {}
    with reading(path):
        config = json.loads(path.read_text())
    is_timm = isinstance(config, dict) and isinstance(config.get("pretrained_cfg"), dict)
    return config if is_timm and str(config.get("architecture")).startswith("densenet") else {}


def _timm_meaning(file: FilePath, config: dict[str, Any]) -> dict[str, Any]:
    with reading(file.parent / "config.json"):
        pixels = [float(v) for key in ("mean", "std") for v in config.get(key, ())]
    result = {"license": str(config["license"])} if config.get("license") else {}
    if np.allclose(pixels, [*IMAGENET_MEAN, *IMAGENET_STD], atol=1e-4):
        return {**result, "preprocessing": "torch"}
    if np.allclose(pixels, [0, 0, 0, 1, 1, 1]):
        return {**result, "preprocessing": "scale"}
    raise InputError(
        f"{file.parent / 'config.json'}: normalises pixels by {pixels}; this package knows the "
        "ImageNet mean and standard deviation, or none"
    )


def _classes(tensors: list[Tensor]) -> int:
    heads = (t for t in tensors if t.path == ("params", "head", "predictions", "bias"))
    return next((t.shape[0] for t in heads if t.shape), 0)


def _path(match: re.Match[str]) -> Path | None:
    variable = match["variable"]
    if match["stem"]:
        layer: Path = ("conv1", "conv" if match["stem"] == "conv" else "bn")
    elif match["last"]:
        layer = ("bn",)
    elif match["pool"]:
        kind = "conv" if match["pool_layer"] == "conv" else "bn"
        layer = (f"pool{int(match['pool']) + 1}", kind)
    else:
        unit = f"conv{int(match['stage']) + 1}_block{match['block']}"
        layer = (unit, _LAYERS[match["layer"] + match["number"]])
    if layer[-1].endswith("conv"):
        return ("params", *layer, "kernel") if variable == "weight" else None
    collection, name = _NORM[variable]
    return (collection, *layer, name)


def _tensor(
    name: str, shape: Shape, read: Callable[[], np.ndarray], path: Path | None, in_head=False
) -> Tensor:
    axes = {4: (2, 3, 1, 0), 2: (1, 0)}.get(len(shape))
    if axes is None:
        return Tensor(name, shape, path, read, in_head)
    ours = tuple(shape[axis] for axis in axes)
    return Tensor(name, ours, path, lambda: np.transpose(read(), axes), in_head)


def _natural(name: str) -> list[tuple[int, str]]:
    """Sorts `classifier.10` after `classifier.2`."""
    parts = re.split(r"(\d+)", name)
    return [(int(part), "") if part.isdigit() else (-1, part) for part in parts]
