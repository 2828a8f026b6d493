"""From any file to variables."""

import contextlib
import dataclasses
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path as FilePath
from typing import Any

import numpy as np

from densenet_flax.common.errors import InputError
from densenet_flax.models.densenet import DenseNet
from densenet_flax.weights.info import WeightsInfo
from densenet_flax.weights.layout import Layout, flatten, recognise
from densenet_flax.weights.official import OFFICIAL, download
from densenet_flax.weights.source import Source, Tensor, file_hash, meaning_of, reading

Variables = dict[str, Any]

_HDF5 = b"\x89HDF\r\n\x1a\n"
_ZIP = b"PK\x03\x04"


@contextlib.contextmanager
def open_source(path: str | os.PathLike[str]) -> Iterator[Source]:
    """Opens a weights file of any supported kind, told by its first bytes.

    Raises:
      InputError: it is none, or cannot be read.
    """
    file = FilePath(path)
    if file.is_dir():
        yield _checkpoint(file)
        return
    with reading(file), open(file, "rb") as stream:
        start = stream.read(512)
    # Imported here so that Keras's files need no torch, and torch's no h5py.
    if fault := _no_weights(start):
        raise InputError(f"{file}: {fault}; expected {_EXPECTED}")
    if start.startswith(_HDF5):
        from densenet_flax.weights.keras_files import open_hdf5 as opener
    elif start.startswith(_ZIP) and file.suffix == ".keras":
        from densenet_flax.weights.keras_files import open_archive as opener
    elif file.suffix == ".safetensors":
        from densenet_flax.weights.safetensors_files import open_safetensors as opener
    elif start.startswith((_ZIP, b"\x80")) and file.suffix != ".h5":
        from densenet_flax.weights.torch_files import open_torch as opener
    else:
        raise InputError(f"{file}: no weights file that this package knows; expected {_EXPECTED}")
    with opener(file) as source:
        yield source


_EXPECTED = (
    "Keras's .h5, .weights.h5 or .keras, PyTorch's .pth or .pt, .safetensors, or a checkpoint "
    "directory of this package"
)


def _no_weights(start: bytes) -> str:
    """What a file with this start is, of the things that people take for weights."""
    text = start.lstrip().lower()
    if not start:
        return "an empty file"
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "a web page, not weights; the download went wrong"
    if text.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer, not weights; fetch the file itself"
    return ""


def read_weights(path: str | os.PathLike[str]) -> tuple[Variables, WeightsInfo]:
    """Reads any supported file and says what it is.

    Args:
      path: a file of Keras, PyTorch or this package, or a checkpoint directory of our training.

    Returns:
      `{'params': …, 'batch_stats': …}` of float32 NumPy arrays, and what they mean.

    Raises:
      InputError: the file is damaged, is no DenseNet, or tensors are missing or left over.
    """
    with open_source(path) as source:
        return read_source(source)


def read_source(source: Source) -> tuple[Variables, WeightsInfo]:
    """As `read_weights`, from a file that is open."""
    layout = source.layout()
    return source.read(layout), source.info(layout, _hash(source))


def load_weights(
    path: str | os.PathLike[str], model: DenseNet, *, ignore_head: bool = False
) -> Variables:
    """Reads the variables of `model` from any supported file.

    Args:
      path: a file as for `read_weights`; or 'imagenet', the official file of the model's network,
        from Keras's cache or downloaded.
      model: what they are for.
      ignore_head: leave out the head of the file and that of the model: only the backbone is
        read and checked.

    Returns:
      A tree like that of `model.init`, of float32 NumPy arrays; with `ignore_head` without 'head'.

    Raises:
      InputError: the file does not hold exactly the variables of the model, or was trained in a
        network that computes something else.
    """
    return load_with_info(path, model, ignore_head=ignore_head)[0]


def load_with_info(
    path: str | os.PathLike[str], model: DenseNet, *, ignore_head: bool = False
) -> tuple[Variables, WeightsInfo]:
    """As `load_weights`, with what the loaded variables mean: the preprocessing, for one."""
    layout = Layout.of(model)
    if os.fspath(path) == "imagenet":
        path = download(_official_name(layout, ignore_head))
    with open_source(path) as source:
        meaning = source.meaning
        _check_meaning(path, model, meaning.get("final_relu", True), meaning["epsilon"])
        variables = source.read(layout, ignore_head=ignore_head)
        return variables, source.info(layout.backbone if ignore_head else layout, _hash(source))


def _hash(source: Source) -> str:
    return "" if source.path.is_dir() else file_hash(source.path)


def _official_name(layout: Layout, ignore_head: bool) -> str:
    if layout.network not in OFFICIAL:
        known = ", ".join(n for n in OFFICIAL if not n.endswith("-notop"))
        raise InputError(
            f"'imagenet': there is no official Keras file for {layout.describe()}, only for "
            f"{known}; give a PyTorch file"
        )
    if ignore_head or not layout.num_classes:
        return f"{layout.network}-notop"
    if layout.num_classes != 1000 or layout.hidden:
        raise InputError(
            f"'imagenet': the official file has 1000 classes, this model is {layout.describe()}; "
            "load with ignore_head=True and start from a new head"
        )
    return layout.network


def _check_meaning(
    path: str | os.PathLike[str], model: DenseNet, final_relu: bool, epsilon: float
) -> None:
    """Refuses weights that would silently compute something else in `model`.

    Keras's epsilon of 1.001e-5 and torch's of 1e-5 are taken for each other: the difference is
    below what float32 resolves but where a variance is itself about as small.
    """
    if model.final_relu != final_relu:
        has, lacks = ("a", "none") if final_relu else ("no", "one")
        raise InputError(
            f"{path}: these weights belong to a network with {has} ReLU after the last norm, and "
            f"the model has {lacks}; build it with final_relu={final_relu}"
        )
    if abs(model.epsilon / epsilon - 1) > 0.01:
        raise InputError(
            f"{path}: these weights belong to a network with a BatchNorm epsilon of {epsilon:g}, "
            f"and the model has {model.epsilon:g}; build it with epsilon={epsilon:g}"
        )


def _checkpoint(path: FilePath) -> Source:
    """A checkpoint directory of our training."""
    from densenet_flax.storage.trained_model import read_model  # Orbax is slow to import

    variables, values = read_model(path)
    shapes = {name: tuple(np.shape(value)) for name, value in flatten(variables).items()}
    layout = recognise(shapes)
    if layout is None:
        raise InputError(f"{path}: a checkpoint of something else than a DenseNet")
    with reading(path, "what the checkpoint says of itself"):
        # The shapes say what the network is; the rest is for the checkpoint to say.
        info = WeightsInfo.from_dict(
            {**values, **dataclasses.asdict(layout), "network": layout.network}
        )
    tensors = [
        Tensor("/".join(name), shapes[name], name, partial(np.asarray, value), name[1] == "head")
        for name, value in flatten(variables).items()
    ]
    meaning = meaning_of(info)
    meaning["source"] = info.source or path.name
    return Source(path, "densenet_flax checkpoint", tensors, meaning, ["stated in the checkpoint"])
