"""PyTorch's names for a DenseNet: torchvision, timm, MONAI, TIAToolbox, and what wraps them.

They are the same in `.pth` files, which need PyTorch, and in `.safetensors`, which do not.
"""

import dataclasses
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from densenet_flax.common.trees import JsonDict
from densenet_flax.weights.hub_names import origin_of
from densenet_flax.weights.inference_settings import MAX_IMAGE_SIZE, InferenceSettings
from densenet_flax.weights.info import InfoFields, WeightsInfo
from densenet_flax.weights.layout import Shape, VariablePath, infer_layout, name_head_layers
from densenet_flax.weights.safe_reading import reading
from densenet_flax.weights.torch_head import read_head
from densenet_flax.weights.torch_networks import BACKBONE_NAME, BATCH_COUNTERS, TorchNetwork
from densenet_flax.weights.torch_options import StatedSettings, find_options, read_options
from densenet_flax.weights.weights_file import (
    Head,
    ReadTensor,
    StoredTensor,
    WeightsFile,
    zero_biases,
)

# That timm and torchvision build; `models.densenet.NETWORKS` may hold others, of a user.
TORCH_NETWORKS = ("densenet121", "densenet161", "densenet169", "densenet201")
TORCH_EPSILON = 1e-5
TIMM_CONFIG = "config.json"  # beside the weights, on the Hugging Face hub
INFO_KEY = "densenet_flax"  # in it, and in the header of `.safetensors`: our `WeightsInfo`
_STORED = "this package wrote the file and stated what it means"

NORM_VARIABLES = {
    "weight": ("params", "scale"),
    "bias": ("params", "bias"),
    "running_mean": ("batch_stats", "mean"),
    "running_var": ("batch_stats", "var"),
}
LAYERS = {"norm1": "0_bn", "conv1": "1_conv", "norm2": "1_bn", "conv2": "2_conv"}
LAYERS |= {"norm": "bn", "conv": "conv"}  # of the stem and of transitions
_LAST_SCALE = ("params", "bn", "scale")

# https://github.com/TissueImageAnalytics/tiatoolbox, `CNNModel`: pixels / 255, no final ReLU.
_TIATOOLBOX: InfoFields = {"preprocessing": "scale", "final_relu": False}
_TIATOOLBOX_NAME = re.compile(r"tiatoolbox|densenet\d+-(kather100k|pcam)", re.IGNORECASE)
_KATHER_CLASSES = ("BACK", "NORM", "DEB", "TUM", "ADI", "MUC", "MUS", "STR", "LYM")


def network_file(
    path: Path,
    format: str,
    network: TorchNetwork[Any],
    reader: Callable[[str], ReadTensor],
    *,
    is_ordered: bool,
    stored: InfoFields | None = None,
) -> WeightsFile:
    """A network in a PyTorch file as a weights file.

    Args:
      path: the file.
      format: in words.
      network: the network; its tensors have a `shape`.
      reader: how to read the tensor of a name.
      is_ordered: whether the file keeps the order in which the model declares its layers.
      stored: metadata of this package in the file.
    """
    arrays = [(name, tuple(value.shape), reader(name)) for name, value in network.tensors.items()]
    with reading(path):
        tensors, head = _torch_tensors(arrays, is_ordered=is_ordered)
        config = {} if stored else _timm_config(path.parent / TIMM_CONFIG)
        # What was trained since has options, which the export that it began with does not know.
        if INFO_KEY in config and not network.options:
            stored = _metadata_beside(path, config[INFO_KEY], tensors)
        if stored:
            metadata, evidence, settings = stored, [_STORED], StatedSettings()
            head = dataclasses.replace(head, activation=metadata["activation"], notes=())
        else:
            metadata, evidence, settings = _torch_metadata(path, tensors, network.options, config)
            if head.activation:
                metadata["activation"] = head.activation
    return WeightsFile(
        path,
        format,
        "PyTorch",
        tensors,
        metadata,
        (*network.notes, *evidence, *head.notes),
        companions={k: v for k, v in network.companions.items() if k != BATCH_COUNTERS},
        head_fault=head.fault or (settings.head_fault if head.layers else ""),
        pixels_fault=settings.pixels_fault,
        is_activation_known=head.activation is not None,
        which=network.label,
    )


def _torch_tensors(
    arrays: Iterable[tuple[str, Shape, ReadTensor]], *, is_ordered: bool
) -> tuple[list[StoredTensor], Head[str]]:
    """Tensors of a network in our layout, and its head.

    Args:
      arrays: name, shape and how to read each.
      is_ordered: whether they are in the order in which the model declares them.
    """
    tensors, others = [], []
    for name, shape, read in arrays:
        if match := BACKBONE_NAME.fullmatch(name):
            tensors.append(_tensor(name, shape, read, _backbone_path(match)))
        else:
            others.append((name, shape, read))
    features = next((t.shape[0] for t in tensors if t.path == _LAST_SCALE and t.shape), 0)
    shapes = {name: shape for name, shape, _ in others}
    head = read_head(shapes, features, is_ordered=is_ordered)
    ours = dict(zip(head.layers, name_head_layers(len(head.layers)), strict=True))
    for name, shape, read in others:
        layer, _, variable = name.rpartition(".")
        kind = {"weight": "kernel", "bias": "bias"}.get(variable)
        path = ("params", "head", ours[layer], kind) if layer in ours and kind else None
        tensors.append(_tensor(name, shape, read, path, in_head=True))
    return tensors + zero_biases(tensors), head


def _torch_metadata(
    file: Path, tensors: list[StoredTensor], options: Mapping[str, object], config: JsonDict
) -> tuple[InfoFields, list[str], StatedSettings]:
    """Metadata of a PyTorch file, their evidence, and what is stated beside the weights.

    They are from the options in the file, timm's `config.json` beside it, names, or convention.

    Raises:
      InputError: a backbone that ours is not is stated.
    """
    metadata: InfoFields = {"epsilon": TORCH_EPSILON}
    is_monai = any(".layers." in tensor.name for tensor in tensors)
    names_of, relu = ("MONAI", "ReLU, ") if is_monai else ("torchvision and timm", "")
    evidence = [f"names as in {names_of}: {relu}ImageNet mean and standard deviation assumed"]
    pretrained = config.get("pretrained_cfg", config)  # timm before 0.9 had one level
    # Those in the file are nearer to it, and so the last ones.
    settings = read_options({**find_options(config, f"{TIMM_CONFIG}: "), **options})
    # Weights of TIAToolbox were published under timm's names, so that only words give them away;
    # a checkpoint with the options of its training script is no such publication.
    origin = origin_of(file)
    folder = origin.repo if origin else file.parent.name
    hint = f"{folder}/{file.name} {pretrained.get('tag', '')}" if not options else ""
    biases = (t.shape for t in tensors if t.path == ("params", "head", "predictions", "bias"))
    classes = next((shape[0] for shape in biases if shape), 0)
    is_wrapped = any("feat_extract." in tensor.name for tensor in tensors)
    if is_wrapped or _TIATOOLBOX_NAME.search(hint):
        metadata |= _TIATOOLBOX
        clue = "feat_extract in its names" if is_wrapped else "its name"
        evidence = [f"TIAToolbox, by {clue}: pixels / 255, no ReLU after the last norm"]
        if classes == len(_KATHER_CLASSES):
            metadata |= {"class_names": _KATHER_CLASSES, "license": "CC BY 4.0"}
        elif classes == 2 and "pcam" in hint.lower():
            metadata |= {"license": "CC0 1.0"}
        settings = dataclasses.replace(settings, pixels_fault="")
    elif settings.preprocessing:
        metadata["preprocessing"] = settings.preprocessing
        evidence = [f"preprocessing {settings.preprocessing!r} by {settings.pixels_source}"]
    if config:
        metadata.setdefault("license", str(pretrained.get("license") or ""))
        evidence.append("timm's config.json beside the file")
        evidence += _use_timm_images(metadata, pretrained)
        evidence += _use_label_names(metadata, config.get("label_names"), classes)
    return metadata, evidence, settings


def _use_timm_images(metadata: InfoFields, pretrained: JsonDict) -> list[str]:
    """Takes over the size of images from timm's configuration; returns what to say of it."""
    match pretrained.get("input_size"):
        case [3, int(height), int(width)] if (
            32 <= min(height, width) <= max(height, width) <= MAX_IMAGE_SIZE
        ):
            metadata["inference"] = InferenceSettings(image_size=(height, width))
        case _:
            return []
    note = f"images of {height}×{width} pixels"
    share = pretrained.get("crop_pct")
    if isinstance(share, float) and share < 1 and pretrained.get("crop_mode") != "squash":
        note += f", resized as a whole, where timm takes {share:.1%} of each side, from the middle"
    return [note]


def _use_label_names(metadata: InfoFields, names: object, classes: int) -> list[str]:
    """Takes over timm's names of classes, if they fit; returns what to say of others."""
    if isinstance(names, dict) and {*names} == {*map(str, range(len(names)))}:
        names = [names[str(i)] for i in range(len(names))]
    if isinstance(names, list) and len(names) == classes:
        metadata["class_names"] = tuple(map(str, names))
    elif names and classes:
        return [f"its label_names left out, which are not one for each of {classes} outputs"]
    return []


def _metadata_beside(
    path: Path, values: JsonDict, tensors: Sequence[StoredTensor]
) -> InfoFields | None:
    """What this package wrote into `config.json` beside a `.pth`, if it is of these tensors."""
    with reading(path.parent / TIMM_CONFIG, INFO_KEY):
        info = WeightsInfo.from_dict(values)
    shapes = {tensor.path: tensor.shape for tensor in tensors if tensor.path}
    return info.fields if infer_layout(shapes) == info.layout else None


def _timm_config(path: Path) -> JsonDict:
    """The `config.json` that the Hugging Face hub keeps beside a timm file; {} if there is none."""
    if not path.is_file():
        return {}
    with reading(path):
        config = json.loads(path.read_text())
    is_timm = isinstance(config, dict) and isinstance(config.get("pretrained_cfg", {}), dict)
    names = ("densenet", "tv_densenet")
    return config if is_timm and str(config.get("architecture")).startswith(names) else {}


def _backbone_path(match: re.Match[str]) -> VariablePath | None:
    """The variable of a name in the backbone; None for a convolution's bias, which ours lack."""
    variable = match["variable"]
    layer: VariablePath
    if kind := match["stem"]:
        layer = ("conv1", LAYERS[kind])
    elif match["last"]:
        layer = ("bn",)
    elif match["pool"]:
        # PyTorch counts blocks and transitions from 1, Keras from 2: its 1 is the stem.
        layer = (f"pool{int(match['pool']) + 1}", LAYERS[match["pool_layer"]])
    else:
        unit = f"conv{int(match['block']) + 1}_block{match['dense_layer']}"
        layer = (unit, LAYERS[match["layer"] + match["number"]])
    if layer[-1].endswith("conv"):
        return ("params", *layer, "kernel") if variable == "weight" else None
    collection, name = NORM_VARIABLES[variable]
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
