"""Opens Keras's weight files with h5py alone: legacy `.h5`, `.weights.h5` and `.keras`."""

import contextlib
import io
import math
import re
import signal
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import h5py

from densenet_flax.common.errors import InputError
from densenet_flax.weights.keras_config import read_config
from densenet_flax.weights.keras_hub import STEM, is_keras_hub, read_preprocessing
from densenet_flax.weights.keras_names import tensors_by_name, tensors_by_order
from densenet_flax.weights.keras_pixels import explain_fault
from densenet_flax.weights.official import official_name
from densenet_flax.weights.safe_reading import (
    check_expansion,
    damaged,
    max_expansion,
    reading,
)
from densenet_flax.weights.weights_file import Head, StoredTensor, WeightsFile, stored_metadata

KERAS_EPSILON = 1.001e-5
INFO_ATTRIBUTE = "densenet_flax"  # of our own files: their `WeightsInfo`, as JSON

_OPTIMIZER_STATE = ("optimizer", "optimizer_weights", "_optimizer")
_NORMALIZATION = "statistics of pixels"
_ARCHIVE_MEMBERS = ("config.json", "model.weights.h5")

# How much processor time reading a file may take: a fixed part, and one for its bytes. Seconds on
# the clock would be those of a busy machine, too; they only end what waits for ever.
_CPU_SECONDS = 20.0
_BYTES_PER_CPU_SECOND = 2e7
_CLOCK_FACTOR = 30
_OUT_OF_MEMORY = 3  # exit status of the child


@contextlib.contextmanager
def open_hdf5(path: Path) -> Iterator[WeightsFile]:
    """Opens a `.h5` or `.weights.h5` file of Keras."""
    with reading(path):
        _probe(path)
        file = h5py.File(path, "r")
    with file:
        yield _open(path, file, path.stat().st_size)


@contextlib.contextmanager
def open_archive(path: Path) -> Iterator[WeightsFile]:
    """Opens a `.keras` file: a zip of `config.json` and `model.weights.h5`."""
    with reading(path), zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        check_expansion(path, path.stat().st_size, sum(member.file_size for member in members))
        names = archive.namelist()
        for name in _ARCHIVE_MEMBERS:
            if name not in names:
                raise InputError(f"{path}: a zip without {name}, so no .keras file; get it again")
        config, weights = (archive.read(name) for name in _ARCHIVE_MEMBERS)
    with reading(path, "model.weights.h5"):
        _probe(path, weights)
        file = h5py.File(io.BytesIO(weights), "r")
    with file:
        yield _open(path, file, len(weights), config)


def _probe(path: Path, content: bytes | None = None) -> None:
    """Reads a whole HDF5 file (`content` if it is a member of `path`) in a process of its own.

    libhdf5 does not survive every damaged file: fuzzing turned up files that make it loop for ever
    and files that crash the process. Either becomes an InputError. Takes a fifth of a second; none
    for an official file, which is known by its md5.
    """
    if not sys.executable:  # an embedded Python has none to start
        return
    if content is None and official_name(path):
        return
    size = path.stat().st_size if content is None else len(content)
    child = str(Path(__file__).with_name("hdf5_child.py"))
    cpu_seconds = _CPU_SECONDS + size / _BYTES_PER_CPU_SECOND
    limits = [str(math.ceil(cpu_seconds)), str(max_expansion(size))]
    # -P: no library shall import a module of this folder by mistake.
    source = str(path.resolve()) if content is None else "-"
    command = [sys.executable, "-P", child, source, *limits]
    seconds = _CLOCK_FACTOR * cpu_seconds
    try:
        result = subprocess.run(
            command, input=content or b"", capture_output=True, timeout=seconds, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise damaged(path, "reading it does not end") from error
    if -result.returncode in (signal.SIGXCPU, signal.SIGKILL):  # what ends it at the limit
        raise damaged(path, "reading it does not end")
    if result.returncode == _OUT_OF_MEMORY:
        raise damaged(path, "it unpacks to far more than it stores")
    if result.returncode < 0:
        raise damaged(path, "reading it crashes HDF5")


def _open(path: Path, file: h5py.File, size: int, config: bytes | str | None = None) -> WeightsFile:
    """HDF5 content of `size` bytes as a weights file; `config` is JSON that lies beside it."""
    with reading(path):
        arrays = _arrays(path, file)
        declared = sum(array.size * array.dtype.itemsize for array in arrays.values())
        check_expansion(path, size, declared)
        whole_model, is_archive = "model_weights" in file, config is not None
        config = config if is_archive else file.attrs.get("model_config")
        stated = read_config(path, config)
        metadata, evidence = stated.fields.copy(), list(stated.evidence)
        head = stated.head or Head()
        pixels_fault = stated.pixels_fault
        companions: dict[str, list[str]] = {}
        for name in list(arrays):
            if kind := _companion(name):
                companions.setdefault(kind, []).append(name)
                del arrays[name]
        if _NORMALIZATION in companions and not pixels_fault:
            pixels_fault = explain_fault("a Normalization layer keeps what it learned as weights")
        # Legacy files list their layers' names; `.weights.h5` has only their order.
        if whole_model or "layer_names" in file.attrs or "layer_names0" in file.attrs:
            format = "Keras legacy HDF5, " + ("a whole model" if whole_model else "weights")
            weights = file["model_weights"] if whole_model else file
            tensors = tensors_by_name(arrays, weights, head.layers)
        else:
            format = "Keras .keras" if is_archive else "Keras .weights.h5"
            tensors = tensors_by_order(path, arrays, head.layers)
        if INFO_ATTRIBUTE in file.attrs:
            metadata |= stored_metadata(path, str(file.attrs[INFO_ATTRIBUTE]))
            evidence = ["this package wrote the file and stated what it means"]
        elif stated.head is None and (outputs := _outputs(tensors)):
            metadata["activation"] = "softmax" if outputs > 1 else "sigmoid"
            evidence.append(
                "the file holds weights alone: mean pooling, ReLU between Dense layers and "
                f"{metadata['activation']} assumed"
            )
        is_hub = INFO_ATTRIBUTE not in file.attrs and is_keras_hub(path, arrays)
        if is_hub:
            metadata["preprocessing"], known, pixels_fault = read_preprocessing(path)
            evidence = [STEM, known]
    metadata = {"epsilon": KERAS_EPSILON, **metadata}
    return WeightsFile(
        path,
        format,
        "Keras Hub" if is_hub else "Keras",
        tensors,
        metadata,
        evidence,
        companions=companions,
        head_fault=STEM if is_hub else head.fault,
        pixels_fault=pixels_fault,
    )


def _outputs(tensors: Sequence[StoredTensor]) -> int:
    """How many outputs the head has; 0 without one."""
    path = ("params", "head", "predictions", "kernel")
    return next((tensor.shape[-1] for tensor in tensors if tensor.path == path), 0)


def _companion(name: str) -> str:
    """What an array is that is no part of a network; '' if it may be one."""
    parts = name.split("/")
    if "seed_generator" in parts or "seed_generators" in parts:
        return "random state"
    # Keras 2.12 to 2.15 save the metrics of a model that was compiled.
    if {"metrics", "_metrics", "compile_metrics"} & set(parts):
        return "states of metrics"
    is_normalization = any(re.fullmatch(r"normalization(_\d+)?", part) for part in parts)
    return _NORMALIZATION if is_normalization else ""


def _arrays(path: Path, file: h5py.File) -> dict[str, h5py.Dataset]:
    """All datasets but optimizer state, by name; one that has several names, once."""
    arrays: dict[str, h5py.Dataset] = {}
    seen = {file.id}  # groups may contain each other in a circle

    def walk(group: h5py.Group, prefix: str) -> None:
        for name in group:
            full = f"{prefix}{name}"
            # A link to another file, or data kept in one, would make us read whatever it names.
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                fault = "is a link, which Keras never writes"
                raise InputError(f"{path}: {full} {fault}; do not trust the file")
            item = group[name]
            if item.id in seen or (not prefix and name in _OPTIMIZER_STATE):
                continue
            seen.add(item.id)
            if isinstance(item, h5py.Group):
                walk(item, f"{full}/")
            elif not isinstance(item, h5py.Dataset) or item.external or item.is_virtual:
                fault = "is no array, or keeps its data in another file"
                raise InputError(f"{path}: {full} {fault}; do not trust the file")
            else:
                arrays[full] = item

    walk(file, "")
    return arrays
