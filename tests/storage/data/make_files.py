"""Wrote the files in this folder with the code of commit 61df2c6, where modules were still flat.

    cd CLONE_OF_61df2c6 && python PATH/TO/make_files.py

It imports modules that are gone; it is kept to say exactly what the files hold.
"""

import contextlib
import functools
import importlib.util
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp
from PIL import Image

sys.path.insert(0, str(Path.cwd()))  # the clone, also when this file is run by its path

from densenet_flax.checkpoint import Checkpoints
from densenet_flax.errors import Stopped
from densenet_flax.model import NETWORKS, DenseNet

from densenet_flax import experiment, load_classifier, train

HERE = Path(__file__).resolve().parent
NETWORKS["small"] = functools.partial(DenseNet, blocks=(2, 2, 3, 2), growth_rate=4, stem_features=8)
STOP_AT = 11  # of 15 steps; the second stage begins after step 6, its second epoch after step 9


def main():
    write_images(HERE / "images")
    with tempfile.TemporaryDirectory() as folder:
        config = read_config()
        config.data.path = str(HERE / "images")
        config.cache_dir = f"{folder}/cache"
        whole, stopped = Path(folder, "whole"), Path(folder, "stopped")
        experiment.train_and_evaluate(config, str(whole))
        subprocess.run(
            [
                sys.executable,
                "-m",
                "densenet_flax.weights",
                "convert",
                whole,
                HERE / "network.safetensors",
            ],
            check=True,
        )
        train.Trainer._should_stop = lambda self, step: step >= STOP_AT
        with contextlib.suppress(Stopped):
            experiment.train_and_evaluate(config, str(stopped))
        archive(stopped, HERE / "stopped.tar.gz")
        one_array_per_leaf(stopped / "checkpoints")
        archive(stopped, HERE / "stopped_leaves.tar.gz")
        expected(whole, HERE / "expected.json")


def read_config():
    path = HERE.parents[1] / "configs" / "small_folder.py"
    spec = importlib.util.spec_from_file_location("small_folder", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config()


def write_images(folder):
    """36 smooth tiles of 12 patients; those of class b are darker at one end."""
    shutil.rmtree(folder, ignore_errors=True)
    rng = np.random.default_rng(0)
    ramp = np.linspace(0, 1, 32)
    for number in range(36):
        name = "ab"[number % 2]
        corners = rng.integers(100, 220, (2, 2, 3)) - 40 * (name == "b") * np.eye(2)[..., None]
        pixels = np.einsum("ya,xb,abc->yxc", *2 * [np.stack([1 - ramp, ramp], 1)], corners)
        path = folder / name / f"p{number // 6 * 2 + number % 2:02d}_{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(path)


def archive(workdir, path):
    """What resuming needs, with owners and times left out."""
    with tarfile.open(path, "w:gz") as file:
        for name in ("config.json", "split.json", "metrics.jsonl", "timing.jsonl", "checkpoints"):
            file.add(workdir / name, name, filter=anonymous)


def anonymous(entry):
    entry.uid = entry.gid = entry.mtime = 0
    entry.uname = entry.gname = ""
    return entry


def one_array_per_leaf(folder):
    """Writes the last checkpoint as it was written until commit 82c0308, the first form."""
    checkpoints = Checkpoints(folder)
    restored = checkpoints.restore(STOP_AT)
    shutil.rmtree(folder / str(STOP_AT))
    items = ocp.args.Composite(
        model=ocp.args.StandardSave(restored.variables),
        train=ocp.args.StandardSave(restored.train),
        meta=ocp.args.JsonSave(restored.meta),
    )
    manager = ocp.CheckpointManager(folder)
    manager.save(STOP_AT, args=items)
    manager.close()


def expected(workdir, path):
    """What the run that was never stopped ended with."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    classifier = load_classifier(HERE / "network.safetensors")
    files = sorted((HERE / "images").rglob("*.png"))
    probability = classifier.predict([str(file) for file in files]).probability
    rows = (workdir / "report" / "predictions.csv").read_text().splitlines()
    text = {
        "metrics": lines,
        "predictions.csv": rows,
        "probability": dict(
            zip([file.name for file in files], np.asarray(probability).tolist(), strict=True)
        ),
    }
    path.write_text(json.dumps(text, indent=1) + "\n")


if __name__ == "__main__":
    main()
