"""Weight files of every framework, and what is stated beside the weights."""

import contextlib
import functools
import json
import random
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import safetensors.numpy
from flax.traverse_util import flatten_dict

from densenet_flax.weights import keras_files, read_weights, save_weights
from densenet_flax.weights.keras_config import read_config
from densenet_flax.weights.layout import Layout
from densenet_flax.weights.save import export_weights
from tests.fuzz.mutation import cut, damage, damage_json, flip_bit
from tests.fuzz.target import RANDOM_DAMAGE, Target
from tests.weights.helpers import info_of, keras_tiny, random_variables, torch_state

_SMALL = Layout((1, 1), growth_rate=2, stem_features=4, num_classes=3)
_KERAS = Layout((1, 1), num_classes=3)
_ZIP = (cut, flip_bit, damage)  # a zip has checksums


def _save(folder: Path, name: str) -> None:
    (folder / name).mkdir()
    path = folder / name / name
    if name == "ours.safetensors":
        save_weights(path, random_variables(_SMALL), info_of(_SMALL))
    elif name.endswith(".h5"):
        export_weights(path, random_variables(_KERAS), info_of(_KERAS))
    elif name.endswith(".keras"):
        keras_tiny().save(path)
    elif name.endswith(".safetensors"):
        safetensors.numpy.save_file(torch_state(random_variables(_SMALL)), path)
    else:
        import torch

        state = {k: torch.tensor(v) for k, v in torch_state(random_variables(_SMALL)).items()}
        torch.save(state, path, _use_new_zipfile_serialization=name != "old.pth")


def _read(folder: Path) -> dict[str, Any]:
    path = next(p for p in folder.iterdir() if p.name != "config.json")
    variables, info = read_weights(path)
    stated = info.to_dict()
    del stated["sha256"]  # of the damaged file
    return {"variables": flatten_dict(variables), "info": stated, "layout": info.layout}


def _is_network(written: Any, read: Any) -> str:
    arrays = read["variables"]
    if {name: array.shape for name, array in arrays.items()} != read["layout"].tensors():
        return "its arrays are not those of its network"
    if not all(np.isfinite(array).all() for array in arrays.values()):
        return "it has numbers that are not finite"
    return ""


def changed_header(rng: random.Random, data: bytes) -> bytes:
    """The JSON of a .safetensors, or of the metadata in it."""
    (length,) = struct.unpack_from("<Q", data)
    header = data[8 : 8 + length]
    content = json.loads(header)
    stated = content.get("__metadata__", {}).get("densenet_flax")
    if stated and rng.random() < 0.8:
        changed = damage_json(rng, stated.encode()).decode("utf-8", "replace")
        content["__metadata__"]["densenet_flax"] = changed
        header = json.dumps(content).encode()
    else:
        header = damage_json(rng, header)
    return struct.pack("<Q", len(header)) + header + data[8 + length :]


@contextlib.contextmanager
def _without_probe() -> Iterator[None]:
    """HDF5 is read at once, without the process that tries it first."""
    with mock.patch.object(keras_files, "_probe", lambda *arguments: None):
        yield


_HDF5: dict[str, Any] = {"unguarded": _without_probe}
_OPTIONS: dict[str, dict[str, Any]] = {
    "ours.safetensors": {"mutators": (*RANDOM_DAMAGE, *[changed_header] * 8), "weight": 3},
    "torch.safetensors": {"mutators": (*RANDOM_DAMAGE, changed_header, changed_header)},
    "model.weights.h5": _HDF5,
    "legacy.h5": _HDF5,
    "model.keras": {**_HDF5, "exact": _ZIP, "imports": ["keras"]},
    "state.pth": {"imports": ["torch"]},
    "old.pth": {"imports": ["torch"]},
}


def _make_config(folder: Path) -> None:
    import keras

    (folder / "keras").mkdir()
    model = keras_tiny()
    (folder / "keras" / "model.json").write_text(model.to_json())
    top = keras.Sequential([model, keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(2)])
    (folder / "sequential").mkdir()
    (folder / "sequential" / "model.json").write_text(top.to_json())


_TIMM_CONFIG = {
    "architecture": "densenet121",
    "num_classes": 3,
    "global_pool": "avg",
    "label_names": ["a", "b", "c"],
    "model_args": {"num_classes": 3},
    "pretrained_cfg": {
        "input_size": [3, 224, 224],
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "crop_mode": "center",
        "license": "mit",
        "classifier": "classifier",
    },
}


def _make_timm(folder: Path) -> None:
    _save(folder, "torch.safetensors")
    (folder / "torch.safetensors" / "config.json").write_text(json.dumps(_TIMM_CONFIG))


def _read_keras_config(folder: Path) -> Any:
    path = folder / "model.json"
    return read_config(path, path.read_bytes())


WEIGHTS_TARGETS = [
    *(
        Target(
            f"weights/{name}",
            functools.partial(_save, name=name),
            _read,
            accepts=_is_network,
            **{"exact": (cut,), **options},
        )
        for name, options in _OPTIONS.items()
    ),
    Target(
        "weights/timm-config",
        _make_timm,
        _read,
        (*[damage_json] * 8, damage),
        accepts=_is_network,
        damaged=lambda path: path == "config.json",
    ),
    Target(
        "weights/keras-config",
        _make_config,
        _read_keras_config,
        (*[damage_json] * 8, damage),
        imports=["keras"],
        weight=2,
    ),
]
