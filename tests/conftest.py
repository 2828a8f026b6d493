"""Shared by all tests: CPU, compiled functions kept between runs, and a tiny DenseNet."""

import os
import tempfile
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "jax")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Child processes inherit it: what one test compiled, the next one and the next run find.
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(Path(tempfile.gettempdir()) / "densenet_flax_tests_xla")
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")

import numpy as np
import pytest

from densenet_flax.data.loading import Dataset
from densenet_flax.data.splits.split import patient_split
from densenet_flax.models.densenet import DenseNet
from densenet_flax.models.init import init_variables

TINY_BLOCKS = (2, 2, 3, 2)  # all kinds of units, and stages of more than one block


@pytest.fixture(scope="session")
def tiny():
    """A DenseNet with every kind of unit and the recipe's head, small."""
    return DenseNet(blocks=TINY_BLOCKS, num_classes=2, hidden=(8,), dropout=0.5)


@pytest.fixture(scope="session")
def tiny_variables(tiny):
    """Random weights and random statistics, so that no BatchNorm is close to the identity."""
    return randomise(init_variables(tiny, seed=1), seed=2)


def randomise(variables, seed):
    """Moves scales, biases and statistics away from their initial ones and zeros."""
    rng = np.random.default_rng(seed)

    def draw(tree):
        for name, leaf in tree.items():
            if isinstance(leaf, dict):
                draw(leaf)
            elif name in ("scale", "var"):
                tree[name] = rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32)
            elif name in ("bias", "mean"):
                tree[name] = rng.normal(0, 0.1, leaf.shape).astype(np.float32)

    draw(variables)
    return variables


@pytest.fixture(scope="session")
def dataset():
    """Ten patients with five 32 × 32 images each; the malignant ones are darker and rougher."""
    return make_dataset(patients=10, images=5)


def make_dataset(patients, images, size=32):
    rng = np.random.default_rng(0)
    label = np.repeat(np.arange(patients) % 2, images).astype(np.int32)
    n = len(label)
    pixels = rng.normal(150, 20, (n, size, size, 3))
    pixels += (label * -40)[:, None, None, None] + label[:, None, None, None] * rng.normal(
        0, 30, (n, size, size, 3)
    )
    case = np.repeat([f"{9000 + i}" for i in range(patients)], images)
    return Dataset(
        images=np.clip(pixels, 0, 255).astype(np.uint8),
        labels=label,
        class_names=("benign", "malignant"),
        files=np.array([f"tile-{i:03d}.png" for i in range(n)]),
        metadata={
            "case": case,
            "slide_id": case,
            "subtype": np.where(label, "ductal_carcinoma", "adenosis"),
            "magnification": np.full(n, 100, np.int32),
            "sequence": np.arange(n, dtype=np.int32),
        },
        name="made for tests",
        fingerprint="0",
    )


@pytest.fixture(scope="session")
def split(dataset):
    return patient_split(dataset, test_fraction=0.2, validation_fraction=0.25)


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory):
    """A small trained and evaluated run that normalises stains and was judged by its best epoch.

    (work directory, configuration, files of the test side, the evaluation's table of them)
    """
    from densenet_flax.evaluation.predictions_csv import read_csv
    from densenet_flax.experiments import run as experiment
    from tests.configs import tiny as tiny_config

    config = tiny_config.get_config()
    config.cache_dir = str(tmp_path_factory.mktemp("cache"))
    config.evaluate = "best"
    config.threshold = "youden"
    config.stages.head.duration = config.stages.finetune.duration = "2 epochs"
    config.stages.finetune.learning_rate = 0.05  # so that the last epoch is not the best one
    config.data.stain.method = "channel"
    config.data.stain.mean, config.data.stain.std = (180, 130, 190), (40.0, 45.0, 35.0)
    workdir = tmp_path_factory.mktemp("runs") / "run"
    experiment.train_and_evaluate(config, str(workdir))
    table = read_csv(workdir / "report" / "predictions.csv")
    paths = {path.name: path for path in experiment.cache_directory(config).rglob("*.png")}
    return workdir, config, [paths[name] for name in table.file], table
