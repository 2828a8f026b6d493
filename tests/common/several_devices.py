"""One process of a run over several devices; started by test_sharding.py.

python -m tests.common.several_devices WORKDIR DEVICES [EPOCHS] [PROCESS PROCESSES PORT]
"""

import os
import sys

WORKDIR, DEVICES = sys.argv[1], int(sys.argv[2])
STOP_AT_STEP = int(sys.argv[3])  # 0: never
os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={DEVICES}"
os.environ["JAX_PLATFORMS"] = "cpu"

import contextlib
from pathlib import Path

import jax

from densenet_flax.common import sharding

if len(sys.argv) > 4:
    process, processes, port = sys.argv[4:]
    sharding.start_processes(f"127.0.0.1:{port}", int(processes), int(process))
assert jax.local_device_count() == DEVICES

from densenet_flax.common.errors import Stopped
from densenet_flax.data.splits.policies import make_split
from densenet_flax.data.splits.split_config import SplitConfig
from densenet_flax.models import frontier as fr
from densenet_flax.models.densenet import DenseNet
from densenet_flax.models.init import init_variables
from densenet_flax.storage.checkpoint import Checkpoints
from densenet_flax.training.optimizer import OptimizerSettings
from densenet_flax.training.progress import TrainProgress
from densenet_flax.training.stage import Loss, Stage
from densenet_flax.training.trainer import Trainer
from tests.helpers.datasets import make_dataset
from tests.helpers.networks import TINY_BLOCKS, randomize

dataset = make_dataset(patients=10, images=5)
model = DenseNet(blocks=TINY_BLOCKS, num_classes=2, hidden=(8,), dropout=0.5)
stages = [
    Stage(name, fr.resolve(at, TINY_BLOCKS), 6, OptimizerSettings(1e-3))
    for name, at in (("head", "head"), ("tail", "conv5_block2_1_conv"))
]
reads = []


class Counting:
    """The images, and a list of which rows this process read."""

    shape = dataset.images.shape

    def __getitem__(self, rows):
        reads.append(list(rows))
        return dataset.images[rows]


lines = []
checkpoints = Checkpoints(Path(WORKDIR) / "checkpoints")
trainer = Trainer(
    model=model,
    stages=stages,
    dataset=type("D", (), {**vars(dataset), "images": Counting()})(),
    split=make_split(dataset, SplitConfig(validation_fraction=0.25)),
    checkpoints=checkpoints,
    mesh=sharding.make_mesh(),
    batch_size=11,  # divided by no number of devices; the last batch of an epoch is shorter
    seed=0,
    cache="off",
    loss=Loss(dropout=True),
    write_metrics=lines.append,
)
position, restored = TrainProgress(), None
variables = randomize(init_variables(model, seed=1), seed=2)
if checkpoints.steps:
    restored = checkpoints.restore(checkpoints.steps[-1])
    position, variables = TrainProgress(**restored.meta["position"]), restored.variables
if STOP_AT_STEP:
    trainer._should_stop = lambda step: step >= STOP_AT_STEP
with contextlib.suppress(Stopped):
    trainer.run(variables, position, restored)
if sharding.is_first_process():
    for line in lines:
        if line["kind"] == "epoch":
            print("epoch", line["step"], line["train_loss"], line["validation_loss"])
print("rows", max(len(rows) for rows in reads), flush=True)
