"""PyTorch's names for a DenseNet: torchvision, timm, TIAToolbox, and what wraps them.

They are the same in `.pth` files, which need PyTorch, and in `.safetensors`, which do not.
"""

import json
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from densenet_flax.common.errors import InputError
from densenet_flax.common.trees import JsonDict
from densenet_flax.models.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from densenet_flax.weights.info import InfoFields
from densenet_flax.weights.layout import Shape, VariablePath, name_head_layers
from densenet_flax.weights.safe_reading import reading
from densenet_flax.weights.weights_file import ReadTensor, StoredTensor

TORCH_EPSILON = 1e-5

# What comes before depends on the wrapper: DistributedDataParallel adds `module.`, others `model.`.
_BACKBONE = re.compile(
    r"(?P<prefix>(?:\w+\.)*?)(?:features\.)?(?:"
    r"(?P<stem>conv|norm)0|(?P<last>norm)5|"
    r"transition(?P<pool>[1-9])\.(?P<pool_layer>conv|norm)|"
    # torchvision before 0.3 wrote `norm.1` where today's says `norm1`.
    r"denseblock(?P<block>[1-9])\.denselayer(?P<dense_layer>[1-9]\d{0,2})\."
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
_LAYERS |= {"norm": "bn", "conv": "conv"}  # of the stem and of transitions

# https://github.com/TissueImageAnalytics/tiatoolbox, `CNNModel`: pixels / 255, no final ReLU.
_TIATOOLBOX: InfoFields = {"preprocessing": "scale", "final_relu": False}
_KATHER_CLASSES = ("BACK", "NORM", "DEB", "TUM", "ADI", "MUC", "MUS", "STR", "LYM")


def torch_tensors(arrays: Iterable[tuple[str, Shape, ReadTensor]]) -> list[StoredTensor]:
    """Tensors of a state dict, given as (name, shape, how to read it), in our layout."""
    tensors, others = [], []
    for name, shape, read in arrays:
        if match := _BACKBONE.fullmatch(name):
            tensors.append(_tensor(name, shape, read, _backbone_path(match)))
        elif not name.endswith("num_batches_tracked"):  # a counter of PyTorch's, not a weight
            others.append((name, shape, read))
    kernels = [name for name, shape, _ in others if name.endswith(".weight") and len(shape) == 2]
    dense = sorted((name.removesuffix(".weight") for name in kernels), key=_natural_order)
    head = dict(zip(dense, name_head_layers(len(dense)), strict=True))
    for name, shape, read in others:
        layer, _, variable = name.rpartition(".")
        ours = {"weight": "kernel", "bias": "bias"}.get(variable)
        path = ("params", "head", head[layer], ours) if layer in head and ours else None
        tensors.append(_tensor(name, shape, read, path, in_head=True))
    return tensors


def torch_metadata(file: Path, tensors: list[StoredTensor]) -> tuple[InfoFields, list[str]]:
    """Metadata of a PyTorch file and their evidence: timm's `config.json`, names, or convention.

    Raises:
      InputError: the `config.json` cannot be read, or states pixels that we do not compute.
    """
    metadata: InfoFields = {"epsilon": TORCH_EPSILON}
    evidence = ["names as in torchvision and timm: ImageNet mean and standard deviation"]
    config_path = file.parent / "config.json"
    config = _timm_config(config_path)
    # Weights of TIAToolbox were published under timm's names, so that only words give them away.
    hint = f"{file.parent.name}/{file.name} {config.get('pretrained_cfg', {}).get('tag', '')}"
    biases = (t.shape for t in tensors if t.path == ("params", "head", "predictions", "bias"))
    classes = next((shape[0] for shape in biases if shape), 0)
    is_wrapped = any("feat_extract." in tensor.name for tensor in tensors)
    if is_wrapped or re.search("tiatoolbox|kather100k|-pcam", hint, re.IGNORECASE):
        metadata |= _TIATOOLBOX
        clue = "feat_extract in its names" if is_wrapped else "its name"
        evidence = [f"TIAToolbox, by {clue}: pixels / 255, no ReLU after the last norm"]
        if classes == len(_KATHER_CLASSES):
            metadata |= {"class_names": _KATHER_CLASSES, "license": "CC BY 4.0"}
        elif classes == 2 and "pcam" in hint.lower():
            metadata |= {"license": "CC0 1.0"}
    elif config:
        metadata |= _timm_metadata(config_path, config["pretrained_cfg"])
        evidence = ["timm's config.json beside the file"]
    names = config.get("label_names")
    if isinstance(names, list) and len(names) == classes:
        metadata["class_names"] = tuple(map(str, names))
    return metadata, evidence


def _timm_config(path: Path) -> JsonDict:
    """The `config.json` that the Hugging Face hub keeps beside a timm file; {} if there is none."""
    if not path.is_file():
        return {}
    with reading(path):
        config = json.loads(path.read_text())
    is_timm = isinstance(config, dict) and isinstance(config.get("pretrained_cfg"), dict)
    return config if is_timm and str(config.get("architecture")).startswith("densenet") else {}


def _timm_metadata(path: Path, pretrained: JsonDict) -> InfoFields:
    with reading(path):
        pixels = [float(v) for key in ("mean", "std") for v in pretrained.get(key, ())]
    license: InfoFields = {"license": str(pretrained.get("license") or "")}
    if len(pixels) == 6 and np.allclose(pixels, [*IMAGENET_MEAN, *IMAGENET_STD], atol=1e-4):
        return {**license, "preprocessing": "torch"}
    # timm's way to say that pixels / 255 are not normalized.
    if pixels == [0, 0, 0, 1, 1, 1]:
        return {**license, "preprocessing": "scale"}
    raise InputError(
        f"{path}: normalizes pixels by {pixels}; this package knows the ImageNet mean and "
        "standard deviation, or none"
    )


def _backbone_path(match: re.Match[str]) -> VariablePath | None:
    """The variable of a name in the backbone; None for a convolution's bias, which ours lack."""
    variable = match["variable"]
    layer: VariablePath
    if kind := match["stem"]:
        layer = ("conv1", _LAYERS[kind])
    elif match["last"]:
        layer = ("bn",)
    elif match["pool"]:
        # PyTorch counts blocks and transitions from 1, Keras from 2: its 1 is the stem.
        layer = (f"pool{int(match['pool']) + 1}", _LAYERS[match["pool_layer"]])
    else:
        unit = f"conv{int(match['block']) + 1}_block{match['dense_layer']}"
        layer = (unit, _LAYERS[match["layer"] + match["number"]])
    if layer[-1].endswith("conv"):
        return ("params", *layer, "kernel") if variable == "weight" else None
    collection, name = _NORM[variable]
    return (collection, *layer, name)


def _tensor(
    name: str, shape: Shape, read: ReadTensor, path: VariablePath | None, in_head: bool = False
) -> StoredTensor:
    # Kernels are OIHW and [out, in] in PyTorch, HWIO and [in, out] in Flax.
    axes = {4: (2, 3, 1, 0), 2: (1, 0)}.get(len(shape))
    if axes is None:
        return StoredTensor(name, shape, path, read, in_head)
    ours = tuple(shape[axis] for axis in axes)
    return StoredTensor(name, ours, path, lambda: np.transpose(read(), axes), in_head)


def _natural_order(name: str) -> list[tuple[int, str]]:
    """Sorts `classifier.10` after `classifier.2`."""
    parts = re.split(r"(\d+)", name)
    return [(int(part), "") if part.isdigit() else (-1, part) for part in parts]
