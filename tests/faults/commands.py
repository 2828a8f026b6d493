"""The commands of `main.py` on drawn tiles with a small network, and digests of what they leave."""

import functools
import hashlib
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from densenet_flax.data.loading import open_dataset
from densenet_flax.experiments import run
from densenet_flax.experiments.from_config import resolve
from densenet_flax.export.export import export_classifier
from densenet_flax.inference.batch.outputs import OutputOptions
from densenet_flax.inference.batch.predict_files import predict
from densenet_flax.models.densenet import NETWORKS, DenseNet
from densenet_flax.storage.checkpoint import Checkpoints
from tests.configs import tiny


class Command(NamedTuple):
    """A command: what it needs in its folder, what it does there, and what it leaves."""

    needs: tuple[str, ...]
    start: Callable[[Path], object]
    results: tuple[str, ...]  # patterns
    share: float  # of all kills


def _config(folder: Path) -> ConfigDict:
    NETWORKS["smallest"] = functools.partial(DenseNet, blocks=(1, 1, 1, 2), growth_rate=8)
    config = tiny.get_config()
    config.model.name = "smallest"
    config.cache_dir = str(folder / "cache")
    config.ema_decay = 0.9
    config.stages.head.duration = config.stages.finetune.duration = "6 epochs"
    config.stages.finetune.restore_best = True
    config.explain = ""
    return config


def _prepare(folder: Path) -> None:
    experiment = resolve(_config(folder))
    open_dataset(experiment.data, experiment.cache_directory)


def _predict(folder: Path) -> None:
    options = OutputOptions(
        folder / "out" / "table.csv", folder / "out" / "maps", folder / "out" / "features.npy"
    )
    os.chdir(folder)  # the table has the paths as they are given
    predict("run", "cache/drawn", options, batch_size=3)


_CACHE = ("cache/**/*.png", "cache/**/images.npy", "cache/**/rows.json")
_REPORT = ("run/report/predictions.csv", "run/report/*.png")
COMMANDS = {
    "prepare": Command((), _prepare, _CACHE, 0.15),
    "train": Command(
        ("cache",),
        lambda folder: run.train_and_evaluate(_config(folder), str(folder / "run")),
        ("run/*.json", "run/metrics.jsonl", "run/checkpoints", *_REPORT, *_CACHE),
        0.4,
    ),
    "evaluate": Command(
        ("cache", "run"),
        lambda folder: run.evaluate(_config(folder), str(folder / "run")),
        ("run/*.json", "run/checkpoints", *_REPORT),
        0.15,
    ),
    "predict": Command(("cache", "run"), _predict, ("out/**/*",), 0.15),
    "export": Command(
        ("cache", "run"),
        lambda folder: export_classifier(str(folder / "run"), folder / "out"),
        ("out/*",),
        0.15,
    ),
}


def digests(command: Command, folder: Path) -> dict[str, str]:
    """A digest of each file and checkpoint that a command leaves."""
    results = {}
    for pattern in command.results:
        for path in sorted(folder.glob(pattern)):
            # Folders of the cache are named by the times of the files in them, too.
            name = re.sub("[0-9a-f]{16,}", "KEY", str(path.relative_to(folder)))
            if name.endswith("checkpoints"):
                results |= _checkpoint_digests(path)
            elif path.is_file() and "incomplete." not in name:
                results[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return results


def _checkpoint_digests(folder: Path) -> dict[str, str]:
    results = {}
    checkpoints = Checkpoints(folder)
    for step in checkpoints.steps:
        restored = checkpoints.restore(step)
        digest = hashlib.sha256(json.dumps(restored.meta).encode())
        for path, leaf in jax.tree.leaves_with_path((restored.variables, restored.train)):
            digest.update(f"{path} {leaf.dtype} {leaf.shape}".encode())
            digest.update(np.ascontiguousarray(leaf).tobytes())
        results[f"checkpoint {step}"] = digest.hexdigest()
    return results
