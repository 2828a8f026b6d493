"""What kind of file it is, by its content; and what people take for weights that is none."""

import zipfile
from pathlib import Path
from typing import Literal, TypeAlias

from densenet_flax.common.errors import InputError
from densenet_flax.common.reading import check_regular
from densenet_flax.weights.safe_reading import reading
from densenet_flax.weights.weights_choice import WEIGHTS_SUFFIXES, choose_weights

Kind: TypeAlias = Literal["hdf5", "keras", "safetensors", "torch", "checkpoint"]

_HDF5 = b"\x89HDF\r\n\x1a\n"
# PyTorch before 1.6 wrote bare pickles, and zips since then; a `.keras` file is a zip, too.
_ZIP = b"PK\x03\x04"
_PICKLE = b"\x80"
_EXPECTED = (
    "Keras's .h5, .weights.h5 or .keras, PyTorch's .pth or .pt, .safetensors, or a checkpoint "
    "directory of this package"
)
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"7z\xbc\xaf": "7-zip"}


def recognize(file: Path) -> Kind:
    """The kind of a file, whatever it is called.

    Raises:
      InputError: it is none that this package reads; the message says what it is, if that is known.
    """
    if file.is_dir():
        if fault := _directory_fault(file):
            raise InputError(f"{file}: {fault}")
        return "checkpoint"
    with reading(file):
        check_regular(file, file)
        with open(file, "rb") as stream:
            start = stream.read(512)
    if fault := _fault(file, start):
        raise InputError(f"{file}: {fault}; expected {_EXPECTED}")
    if start.startswith(_HDF5):
        return "hdf5"
    if start.startswith(_ZIP):
        return _recognize_zip(file)
    if file.suffix == ".safetensors" or _is_safetensors(file, start):
        return "safetensors"
    if start.startswith(_PICKLE) and file.suffix != ".h5":
        return "torch"
    raise InputError(f"{file}: no weights file that this package knows; expected {_EXPECTED}")


def _recognize_zip(file: Path) -> Kind:
    if file.suffix == ".keras":
        return "keras"
    if file.suffix == ".h5":
        raise InputError(f"{file}: a zip, and no weights file of Keras; expected {_EXPECTED}")
    with reading(file):
        if not zipfile.is_zipfile(file):
            return "torch"  # cut short, as its reader will say
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
    if {"config.json", "model.weights.h5"} <= set(names):
        return "keras"
    paths = {name.partition("/")[2] or name for name in names}
    if "constants.pkl" in paths or any(path.startswith("code/") for path in paths):
        raise InputError(
            f"{file}: a TorchScript program, which would have to run to be read; load it with "
            "torch.jit.load(…, map_location='cpu') and save its state_dict() with torch.save"
        )
    if names and all(name.endswith(".npy") for name in names):
        raise InputError(
            f"{file}: NumPy arrays (.npz), whose names no framework defines; load them into the "
            "model that they are of and save its weights"
        )
    if "data.pkl" not in paths and not any(path.startswith("data/") for path in paths):
        listed = ", ".join(names[:3]) or "no files"
        raise InputError(f"{file}: a zip of {listed}; unpack it and give the weights file in it")
    return "torch"


def _is_safetensors(file: Path, start: bytes) -> bool:
    """Whether it begins with the length of a JSON header, and that header."""
    length = int.from_bytes(start[:8], "little")
    return start[8:9] == b"{" and length <= file.stat().st_size


def _fault(file: Path, start: bytes) -> str:
    """What a file with these first bytes is, of the things that people take for weights."""
    text = start.lstrip().lower()
    if not start:
        return "an empty file"
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "a web page, not weights; the download went wrong"
    if text.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer, not weights; fetch the file itself"
    for signature, name in _COMPRESSED.items():
        if start.startswith(signature):
            return f"compressed with {name}; unpack it first"
    if start[257:262] == b"ustar":
        return "a tar archive; unpack it and give the weights file in it"
    if file.name == "checkpoint" or file.suffix == ".index" or ".data-0" in file.name:
        return _TENSORFLOW
    if file.suffix == ".onnx":
        return "an ONNX program, whose weights may be folded into others; give the file it is from"
    if file.name == "saved_model.pb":
        return _SAVED_MODEL
    return ""


_TENSORFLOW = (
    "a checkpoint of TensorFlow; load it into its model and save that with "
    "model.save_weights('m.weights.h5')"
)
_SAVED_MODEL = (
    "a SavedModel of TensorFlow; load it with tf.keras.models.load_model (Keras 2) and save it "
    "with model.save('m.h5')"
)


def _directory_fault(folder: Path) -> str:
    """What a folder is that is no checkpoint of ours; '' if it may be one."""
    with reading(folder):
        names = sorted(path.name for path in folder.iterdir())
    if "saved_model.pb" in names:
        return _SAVED_MODEL
    if any(name.endswith(".index") for name in names):
        return _TENSORFLOW
    return ""


def weights_in_folder(folder: Path) -> str:
    """Name of the weights file in a folder as the Hub has it; '' if it may be a checkpoint.

    Raises:
      InputError: it holds several, and nothing says which.
    """
    with reading(folder):
        names = [path.name for path in folder.iterdir()]
    is_other = "checkpoints" in names or _directory_fault(folder)
    if is_other or not any(name.endswith(WEIGHTS_SUFFIXES) for name in names):
        return ""
    try:
        return choose_weights(names)
    except InputError as error:
        raise InputError(f"{folder}: {error}; give the file") from error
