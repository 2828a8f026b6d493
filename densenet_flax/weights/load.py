"""From a weights file of any format to variables."""

import contextlib
import dataclasses
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

from absl import logging

from densenet_flax.common.errors import InputError
from densenet_flax.common.trees import PyTree
from densenet_flax.models.densenet import DenseNet
from densenet_flax.weights.formats import recognize, weights_in_folder
from densenet_flax.weights.hub_names import card_license, is_hub_name, origin_of
from densenet_flax.weights.info import EPSILON_TOLERANCE, InfoFields, WeightsInfo
from densenet_flax.weights.layout import Layout
from densenet_flax.weights.official import OFFICIAL, download
from densenet_flax.weights.safe_reading import StrPath
from densenet_flax.weights.weights_file import WeightsFile

# What a network takes from the file whose backbone it starts from.
_INHERITED = ("preprocessing", "epsilon", "final_relu", "source", "sha256", "license")


@contextlib.contextmanager
def open_weights(path: StrPath, which: str = "") -> Iterator[WeightsFile]:
    """Opens a weights file of any supported format, recognized by its first bytes.

    Of a name on the Hugging Face Hub, the file is downloaded; of a folder that is no checkpoint,
    it is chosen as in a repository of the Hub. `which` names one of several networks in a PyTorch
    file.
    """
    file = locate(path)
    opener: Callable[..., contextlib.AbstractContextManager[WeightsFile]]
    # Each format is imported when it is met: Keras's files need no torch, PyTorch's no h5py, and
    # neither needs Orbax.
    kind = recognize(file)
    if kind == "checkpoint":
        from densenet_flax.weights.checkpoint_directory import open_checkpoint as opener
    elif kind == "hdf5":
        from densenet_flax.weights.keras_files import open_hdf5 as opener
    elif kind == "keras":
        from densenet_flax.weights.keras_files import open_archive as opener
    elif kind == "safetensors":
        from densenet_flax.weights.safetensors_files import open_safetensors as opener
    else:
        from densenet_flax.weights.torch_files import open_torch as opener
    options = {"which": which} if kind in ("torch", "safetensors") else {}
    with opener(file, **options) as opened:
        if which and opened.which != which:
            raise InputError(f"{file}: which={which!r}: only PyTorch's files hold several networks")
        yield _with_origin(opened)


def locate(path: StrPath) -> Path:
    """The file or checkpoint directory that a path or a name on the Hub means.

    Raises:
      InputError: it is empty, or as `hub.fetch`.
    """
    if not os.fspath(path):
        raise InputError("'': no path; expected that of a weights file or a work directory")
    if is_hub_name(path):
        from densenet_flax.weights.hub import fetch

        return fetch(path)
    file = Path(os.path.expanduser(path))
    return file / weights_in_folder(file) if file.is_dir() else file


def _with_origin(file: WeightsFile) -> WeightsFile:
    """Notes where on the Hub a file is from, by its path in the cache, and under which license."""
    origin = origin_of(file.path)
    if origin is None:
        return file
    metadata = {key: value for key, value in file.metadata.items() if key != "sha256"}
    card, own = card_license(file.path, origin), file.metadata.get("license", "")
    # 'CC BY 4.0' is 'cc-by-4.0'.
    differ = card and own and len({re.sub(r"\W+", "-", text.lower()) for text in (card, own)}) > 1
    license = f"{card} (model card), {own} (stated with the weights)" if differ else card or own
    metadata |= {"source": str(origin), "license": license}
    return dataclasses.replace(file, metadata=cast(InfoFields, metadata))


def read_weights(
    path: StrPath, *, which: str = "", activation: str = "", verify: bool = False
) -> tuple[dict[str, PyTree], WeightsInfo]:
    """Reads any file of Keras, PyTorch or this package, or a checkpoint directory of our training.

    Args:
      path: the file or directory, or a name on the Hugging Face Hub,
        `hf://owner/name[@revision][/file]`.
      which: of several networks in a checkpoint of PyTorch, such as 'state_dict'; by default the
        average, as timm takes it.
      activation: 'softmax', 'sigmoid' or 'none' where the file does not tell or is wrong.
      verify: compare with what the source's framework computes, where it is installed; takes some
        seconds for files that are neither ours nor Keras's official ones.

    Returns:
      `{'params': …, 'batch_stats': …}` of float32 NumPy arrays, and their `WeightsInfo`.

    Raises:
      InputError: the file is damaged, is no DenseNet, or tensors are missing or left over; or its
        head computes something that ours does not.
    """
    overrides: InfoFields = {"activation": activation} if activation else {}
    with open_weights(path, which) as file:
        layout = file.layout()
        variables, info = file.read(layout), file.info(layout, **overrides)
        _report(file, variables, info, verify)
        return variables, info


def _report(file: WeightsFile, variables: PyTree, info: WeightsInfo, verify: bool) -> None:
    """Logs what was assumed of another framework's file, and with `verify` how it compares."""
    if not file.framework:
        return
    logging.info("%s: %s", file.path, "; ".join(file.explain()))
    if not verify:
        return
    # Imported here: what is not compared needs no network.
    from densenet_flax.weights.verify import summarize, verify_file

    logging.info("%s: %s", file.path, summarize(verify_file(file, variables, info)))


def load_weights(path: StrPath, model: DenseNet, *, ignore_head: bool = False) -> dict[str, PyTree]:
    """Reads the variables of `model` from any supported file.

    Args:
      path: a file as for `read_weights`; or 'imagenet', the official file of the model's network,
        from Keras's cache or downloaded.
      model: what they are for.
      ignore_head: read and check only the backbone.

    Returns:
      A tree like that of `model.init`, of float32 NumPy arrays; with `ignore_head` without 'head'.

    Raises:
      InputError: the file does not hold exactly the variables of the model, or was trained in a
        network that computes something else.
    """
    return load_with_info(path, model, ignore_head=ignore_head)[0]


def load_with_info(
    path: StrPath, model: DenseNet, *, ignore_head: bool = False
) -> tuple[dict[str, PyTree], WeightsInfo]:
    """As `load_weights`; returns the `WeightsInfo` of what was loaded as well."""
    variables, info = _load(path, model, ignore_head)
    _check_computation(path, model, info)
    return variables, info


def load_backbone(
    path: StrPath, model: DenseNet, *, verify: bool = False
) -> tuple[dict[str, PyTree], InfoFields]:
    """As `load_weights` with `ignore_head`, for a model of another epsilon or final_relu, too.

    `verify` is that of `read_weights`.

    Returns:
      The variables without 'head', and what a network that starts from them must take from the
      file, such as its preprocessing, epsilon and final_relu.
    """
    variables, info = _load(path, model, ignore_head=True, verify=verify)
    inherited = {name: getattr(info, name) for name in _INHERITED}
    return variables, cast(InfoFields, inherited)


def _load(
    path: StrPath, model: DenseNet, ignore_head: bool, verify: bool = False
) -> tuple[dict[str, PyTree], WeightsInfo]:
    layout = Layout.of(model)
    if ignore_head:
        layout = layout.backbone
    if os.fspath(path) == "imagenet":
        path = download(_official_name(layout))
    with open_weights(path) as file:
        if ignore_head and any(tensor.in_head for tensor in file.tensors):
            logging.info("%s: the head in this file is left out; its backbone is used", path)
        elif file.head_fault:  # it is about the backbone: good to start from, and not the same
            logging.warning("%s: %s", path, file.head_fault)
        variables, info = file.read(layout, ignore_head=ignore_head), file.info(layout)
        _report(file, variables, info, verify)
        return variables, info


def _official_name(layout: Layout) -> str:
    """The name in `OFFICIAL` of the ImageNet weights of this layout."""
    if layout.network not in OFFICIAL:
        known = ", ".join(name for name in OFFICIAL if not name.endswith("-notop"))
        raise InputError(
            f"'imagenet': there is no official Keras file for {layout.describe()}, only for "
            f"{known}; give a PyTorch file"
        )
    if not layout.num_classes:
        return f"{layout.network}-notop"
    if layout.num_classes != 1000 or layout.hidden:
        raise InputError(
            f"'imagenet': the official file has 1000 classes, this model is {layout.describe()}; "
            "load with ignore_head=True and start from a new head"
        )
    return layout.network


def _check_computation(path: StrPath, model: DenseNet, info: WeightsInfo) -> None:
    """Rejects weights that would silently compute something else in `model`."""
    if model.final_relu != info.final_relu:
        has, lacks = ("a", "none") if info.final_relu else ("no", "one")
        raise InputError(
            f"{path}: these weights belong to a network with {has} ReLU after the last norm, and "
            f"the model has {lacks}; build it with final_relu={info.final_relu}"
        )
    if abs(model.epsilon / info.epsilon - 1) > EPSILON_TOLERANCE:
        epsilon = f"{info.epsilon:g}"
        raise InputError(
            f"{path}: these weights belong to a network with a BatchNorm epsilon of {epsilon}, "
            f"and the model has {model.epsilon:g}; build it with epsilon={epsilon}"
        )
