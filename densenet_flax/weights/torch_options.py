"""What timm and training scripts state beside the weights: pixels, pooling and kinds of layers.

timm keeps it in `config.json` beside a file, and the options of its training script in a
checkpoint. A state dict shows none of it, and each changes the probabilities.
"""

import argparse
import dataclasses
import reprlib
import types
from collections.abc import Mapping

import numpy as np

from densenet_flax.common.errors import InputError
from densenet_flax.models.preprocessing import IMAGENET_MEAN, IMAGENET_STD, MEAN_STD

_POOLING = ("gp", "global_pool")  # timm's flag, and the argument of its models
_LAYERS = {
    "act_layer": ("relu",),
    "norm_layer": ("batchnorm", "batchnorm2d", "batchnormact", "batchnormact2d"),
    "aa_layer": ("",),
}
_NAMES = {*_POOLING, *_LAYERS, "mean", "std"}
_CONTAINERS = {
    *("args", "opt", "config", "cfg", "hparams", "hyper_parameters"),  # of training scripts
    *("model_kwargs", "model_args", "pretrained_cfg"),  # of timm, in its options and config.json
}
_MAX_DEPTH = 3
# 'fast' is the default of timm's pooling layer; the last three are words of other scripts.
_AVERAGE_POOLING = ("avg", "fast", "fastavg", "mean", "average", "gap")


@dataclasses.dataclass(frozen=True)
class StatedSettings:
    """What options say about a network.

    Attributes:
      preprocessing: mode of `preprocess_input`; '' if nothing is stated, or no mode is the same.
      pixels_fault: why pixels cannot be preprocessed as stated; '' if they can.
      head_fault: why the head cannot be read exactly; '' if nothing speaks against it.
      pixels_source: the options that state the pixels, in words.
    """

    preprocessing: str = ""
    pixels_fault: str = ""
    head_fault: str = ""
    pixels_source: str = ""


def find_options(
    content: Mapping[str, object], where: str = "", depth: int = 0
) -> dict[str, object]:
    """The options in a checkpoint or `config.json` that matter here, by where they are.

    Args:
      content: a mapping that may hold namespaces or mappings of options.
      where: what comes before their names, such as 'config.json: '.
      depth: of the mapping in the file; a pickle can contain itself.

    Returns:
      Values by name, such as 'args.gp'. None, which is timm's default, is left out.
    """
    options: dict[str, object] = {}
    for key, value in content.items():
        is_namespace = isinstance(value, argparse.Namespace | types.SimpleNamespace)
        value = vars(value) if is_namespace else value
        if key in _CONTAINERS and isinstance(value, Mapping) and depth < _MAX_DEPTH:
            options |= find_options(value, f"{where}{key}.", depth + 1)
        elif key in _NAMES and value is not None:
            options[f"{where}{key}"] = value
    return options


def read_options(options: Mapping[str, object]) -> StatedSettings:
    """What options mean; of several that state the same pixels the last one.

    Raises:
      InputError: they state a backbone that computes something that ours does not.
    """
    head_fault = ""
    for where, value in options.items():
        name = _plain(where)
        # A number is another script's option: `gp` is also the weight of a gradient penalty.
        if not isinstance(value, str):
            continue
        stated = f"{where}={reprlib.repr(value)}"
        if name in _POOLING and value.lower() not in _AVERAGE_POOLING:
            pooling = "global average pooling, which this package's head begins with"
            head_fault = head_fault or f"{stated} is not {pooling}"
        if name in _LAYERS and value.lower() not in _LAYERS[name]:
            raise InputError(
                f"{stated}: this package's network has BatchNorm and ReLU, and nothing between "
                "convolutions and pooling; use these weights with timm"
            )
    sources = {_plain(where): where for where in options if _plain(where) in ("mean", "std")}
    if not sources:
        return StatedSettings(head_fault=head_fault)
    # As in timm, the one that is not stated is ImageNet's.
    mean = options.get(sources.get("mean", ""), IMAGENET_MEAN)
    std = options.get(sources.get("std", ""), IMAGENET_STD)
    source = " and ".join(sources.values())
    mode, fault = _mode(mean, std), ""
    if not mode:
        fault = (
            f"{source}: normalizes pixels by {_describe(mean)} and {_describe(std)}; this package "
            "knows the mean and standard deviation of ImageNet (torch), 0.5 and 0.5 (tf), or none "
            "(scale); if one of them is meant, state it with convert … --preprocessing"
        )
    return StatedSettings(mode, fault, head_fault, source)


def _plain(where: str) -> str:
    """The name of an option without where it is."""
    return where.replace(" ", ".").rpartition(".")[2]


def _mode(mean: object, std: object) -> str:
    """The mode that normalizes by these; '' if there is none."""
    try:
        # One number is for all channels, as for timm's flags.
        pixels = np.stack(
            [np.broadcast_to(np.asarray(v, np.float64), 3) for v in (mean, std)]
        ).ravel()
    except (TypeError, ValueError, RuntimeError):
        return ""
    # Scripts round ImageNet's numbers; 0 and 1 are timm's way to say that pixels / 255 are not
    # normalized, and 0.5 its IMAGENET_INCEPTION_MEAN and _STD.
    known = {mode: np.ravel(values) for mode, values in MEAN_STD.items()}
    return next((mode for mode in known if np.allclose(pixels, known[mode], atol=1e-4)), "")


def _describe(value: object) -> str:
    """A value as an error shows it: a few numbers in full, anything else cut short."""
    value = list(value) if isinstance(value, tuple) else value
    return " ".join(reprlib.repr(value).split())
