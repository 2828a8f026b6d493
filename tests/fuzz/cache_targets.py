"""Checkpoints, kept features and prepared images: one damaged file of a folder of many."""

from pathlib import Path
from typing import Any

import jax
import numpy as np

from densenet_flax.common.errors import InputError
from densenet_flax.data.images.array_cache import ImageOptions, prepare_images
from densenet_flax.storage.checkpoint import Checkpoints
from densenet_flax.storage.feature_store import keep_files, open_files
from densenet_flax.storage.named_arrays import NamedVector
from tests.fuzz.image_targets import encode, tile
from tests.fuzz.mutation import cut, damage, flip_bit
from tests.fuzz.target import Target, difference

_FEATURES = {"pool4": np.linspace(0, 1, 120, dtype=np.float32).reshape(10, 3, 4)}
_SHAPES = {cut: jax.ShapeDtypeStruct(a.shape, a.dtype) for cut, a in _FEATURES.items()}
_ROWS = [{"file": f"{i}.png", "label": i % 2} for i in range(5)]
_OPTIONS = ImageOptions((8, 8))


def _variables(seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    kernel = rng.normal(size=(3, 3, 4, 8)).astype(np.float32)
    return {
        "params": {"conv1": {"conv": {"kernel": kernel}}},
        "batch_stats": {"bn": {"mean": kernel[0, 0, 0].copy()}},
    }


def _write_checkpoints(folder: Path) -> None:
    checkpoints = Checkpoints(folder / "run" / "checkpoints")
    for step in (3, 6):
        state = [NamedVector(np.arange(9, dtype=np.float32) + step, [("mu", (3, 3))])]
        meta = {"history": [0.1, step / 7], "network": {"network": "densenet"}}
        checkpoints.save(
            step, lambda step=step, state=state: (_variables(step), state), meta, keep=[3]
        )


def _read_checkpoints(folder: Path) -> dict[int, Any]:
    """What a run goes on from; by its step, as an older one may be taken for a damaged one."""
    restored = Checkpoints(folder / "checkpoints").restore_latest()
    if restored is None:
        raise InputError(f"{folder}: no checkpoint")
    return {
        restored.step: {
            "variables": restored.variables,
            "train": restored.train,
            "meta": restored.meta,
        }
    }


def _is_one_of_the_checkpoints(written: Any, read: Any) -> str:
    ((step, content),) = read.items()
    expected = {
        "variables": _variables(step),
        "train": {"mu": (np.arange(9, dtype=np.float32) + step).reshape(3, 3)},
        "meta": {"history": [0.1, step / 7], "network": {"network": "densenet"}},
    }
    return difference(expected, content, f"checkpoint {step}")


def _write_features(folder: Path) -> None:
    keep_files(folder / "one" / "features", _FEATURES)


def _read_features(folder: Path) -> dict[str, np.ndarray]:
    arrays = open_files(folder / "features", _SHAPES)
    if arrays is None:
        raise InputError(f"{folder}: computed again")
    return {name: np.array(array) for name, array in arrays.items()}


def _prepare(folder: Path, read: Any) -> dict[str, Any]:
    prepared = prepare_images(folder / "arrays" / "all", _OPTIONS, lambda: _ROWS, read)
    table = prepared.table
    return {
        "images": np.array(prepared.images),
        "columns": dict(table.columns),
        "fingerprint": table.fingerprint,
    }


def _read_image(row: Any) -> bytes:
    return encode(tile(int(row["file"][0])), "PNG")


def _write_images(folder: Path) -> None:
    _prepare(folder / "one", _read_image)


def _read_images(folder: Path) -> dict[str, Any]:
    return _prepare(folder, _read_image)


_ANY = (damage, flip_bit, cut)

CACHE_TARGETS = [
    Target(
        "caches/checkpoints",
        _write_checkpoints,
        _read_checkpoints,
        accepts=_is_one_of_the_checkpoints,
        starts_anew=True,
        weight=4,
    ),
    Target("caches/features", _write_features, _read_features, exact=_ANY),
    Target("caches/images", _write_images, _read_images, exact=_ANY),
]
