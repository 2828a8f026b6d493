"""One process of a run over several devices; started by test_sharding.py.

python -m tests.common.several_devices WORKDIR DEVICES STOP_AT_STEP [PROCESS PROCESSES PORT ORDER…]

An ORDER is that of the devices in the mesh, by their processes, such as 0110; each has its own run
in a folder of WORKDIR of that name.
"""

import os
import signal
import sys

WORKDIR, DEVICES = sys.argv[1], int(sys.argv[2])
STOP_AT_STEP = int(sys.argv[3])  # 0: never; negative: there process 1 kills itself
os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={DEVICES}"
os.environ["JAX_PLATFORMS"] = "cpu"

import contextlib
import dataclasses
from pathlib import Path

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from densenet_flax.common import processes, sharding

stack = contextlib.ExitStack()
if len(sys.argv) > 4:
    process, count, port = map(int, sys.argv[4:7])
    joined = processes.joined_processes(f"127.0.0.1:{port}", count, process, timeout=60)
    stack.enter_context(joined)
assert jax.local_device_count() == DEVICES

from densenet_flax.common.errors import InputError, Stopped
from densenet_flax.data.splits.policies import make_split
from densenet_flax.data.splits.split_config import SplitConfig
from densenet_flax.inference import classifier as classifier_module
from densenet_flax.inference.classifier import Classifier
from densenet_flax.inference.dataset_predictions import predict_logits
from densenet_flax.models import frontier as fr
from densenet_flax.models.densenet import DenseNet
from densenet_flax.models.init import init_variables
from densenet_flax.storage import workdir as workdir_module
from densenet_flax.storage.checkpoint import Checkpoints
from densenet_flax.storage.workdir import Workdir
from densenet_flax.training.optimizer import OptimizerSettings
from densenet_flax.training.progress import TrainProgress
from densenet_flax.training.stage import Loss, Stage
from densenet_flax.training.trainer import Trainer
from densenet_flax.weights.info import WeightsInfo
from tests.helpers.datasets import make_dataset
from tests.helpers.networks import TINY_BLOCKS, randomize

dataset = make_dataset(patients=10, images=5)
model = DenseNet(blocks=TINY_BLOCKS, num_classes=2, hidden=(8,), dropout=0.5)
stages = [
    Stage(name, fr.resolve(at, TINY_BLOCKS), 6, OptimizerSettings(1e-3))
    for name, at in (("head", "head"), ("tail", "conv5_block2_1_conv"))
]
variables = randomize(init_variables(model, seed=1), seed=2)
reads = []


class Counting:
    """The images, and a list of which rows this process read."""

    shape = dataset.images.shape

    def __getitem__(self, rows):
        reads.append(list(rows))
        return dataset.images[rows]


counting_dataset = dataclasses.replace(dataset, images=Counting())


def mesh_of(order):
    """A mesh whose devices belong to these processes."""
    devices = {p: [d for d in jax.devices() if d.process_index == p] for p in map(int, order)}
    in_order = [devices[int(process)].pop(0) for process in order]
    return Mesh(np.array(in_order), ("data",), axis_types=(AxisType.Auto,))


def train(workdir, mesh, cache):
    """Trains, or resumes training; returns the trainer and the lines of its metrics."""
    lines = []
    checkpoints = Checkpoints(workdir / "checkpoints")
    trainer = Trainer(
        model=model,
        stages=stages,
        dataset=counting_dataset,
        split=make_split(dataset, SplitConfig(validation_fraction=0.25)),
        checkpoints=checkpoints,
        mesh=mesh,
        batch_size=11,  # divided by no number of devices; the last batch of an epoch is shorter
        seed=0,
        cache=cache,
        cache_directory=workdir / "features",
        loss=Loss(dropout=True),
        write_metrics=lines.append,
    )
    position, restored, initial = TrainProgress(), None, variables
    if checkpoints.steps:
        restored = checkpoints.restore(checkpoints.steps[-1])
        position, initial = TrainProgress(**restored.meta["position"]), restored.variables
    if STOP_AT_STEP < 0:
        trainer._should_stop = kill_second_process
    elif STOP_AT_STEP:
        trainer._should_stop = lambda step: step >= STOP_AT_STEP
    with contextlib.suppress(Stopped):
        trainer.run(initial, position, restored)
    return trainer, lines


def kill_second_process(step):
    if jax.process_index() == 1 and step >= -STOP_AT_STEP:
        os.kill(os.getpid(), signal.SIGKILL)


def disagreements(workdir):
    """The messages on what the processes do not have in common."""
    messages = []
    mine = f"{workdir}/of-process-{jax.process_index()}"
    with contextlib.suppress(InputError), Workdir(workdir).lock():
        messages.append("all see it")
    try:
        with Workdir(mine).lock():
            messages.append("not reached")
    except InputError as error:
        messages.append(str(error))
    try:
        sharding.require_equal({"the seed": 1, "the split": jax.process_index()})
    except InputError as error:
        messages.append(str(error))
    return messages


def write_predictions(path, trainer):
    """Saves what has a row for each image, by the untrained network: its rows can be compared."""
    segmented = trainer.segmented
    replicated = sharding.replicate(variables, segmented.mesh)
    ids = np.random.default_rng(0).permutation(len(dataset))
    classifier_module.make_mesh = lambda: segmented.mesh
    classifier = Classifier(variables, WeightsInfo.of(model, source="made"), batch_size=11)
    predicted = [classifier.forward(dataset.images[ids[i : i + 11]]) for i in (0, 11)]
    explained = classifier.explain_batch(
        dataset.images[ids[11:22]], np.arange(11) % 2, predicted[1], unit="pool3"
    )
    batch = sharding.put_batch(ids, np.ones(len(ids)), lambda ids: {"id": ids}, segmented.mesh)
    rows = {
        "ids": ids,
        "returned_ids": sharding.to_host(batch["id"])[: len(ids)],
        "gathered": sharding.gather(jax.process_index()),
        "broadcast": sharding.broadcast([np.full(2, jax.process_index()), np.float64(0.1)])[0],
        "disagreements": disagreements(Path(path).parent),
        "logits": predict_logits(segmented, replicated, counting_dataset, ids, 11),
        "probability": np.concatenate([output.probability for output in predicted]),
        "features": np.concatenate([output.features for output in predicted]),
        "maps": explained,
    }
    for file in Path(path).parent.glob("features/*/*.npy"):  # of the prefix cache
        rows[f"cached {file.stem}"] = np.load(file)
    if sharding.is_first_process():
        np.savez(path, **rows)


def main():
    # Images in every epoch on one mesh, cached features on the other.
    runs = {order: cache for order, cache in zip(sys.argv[7:], ("off", "disk"), strict=False)}
    for order, cache in (runs or {"": "disk"}).items():
        workdir = Path(WORKDIR) / order
        workdir.mkdir(exist_ok=True)
        mesh = mesh_of(order) if order else sharding.make_mesh()
        trainer, lines = train(workdir, mesh, cache)
        if sharding.is_first_process():
            for line in lines:
                if line["kind"] == "epoch":
                    print("epoch", line["step"], line["train_loss"], line["validation_loss"])
        if not STOP_AT_STEP and (runs or DEVICES == 1):
            write_predictions(workdir / "rows.npz", trainer)
    print("rows", max(len(rows) for rows in reads), flush=True)


workdir_module._VISIBLE_SECONDS = 1
with stack:
    main()
