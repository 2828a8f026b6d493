"""A trainer in a folder, for tests."""

import jax
import numpy as np

from densenet_flax.common.sharding import make_mesh
from densenet_flax.models import frontier as fr
from densenet_flax.storage.checkpoint import Checkpoints
from densenet_flax.training.optimizer import OptimizerSettings
from densenet_flax.training.progress import TrainProgress
from densenet_flax.training.stage import Stage
from densenet_flax.training.trainer import Trainer
from tests.helpers.networks import TINY_BLOCKS

ADAM = OptimizerSettings(1e-3)


def stage(name, at, epochs=2, settings=ADAM, per_epoch=3, **kwargs):
    return Stage(name, fr.resolve(at, TINY_BLOCKS), epochs * per_epoch, settings, **kwargs)


RECIPE = (stage("head", "head"), stage("tail", "conv5_block2_1_conv"))


class Run:
    """A trainer in a folder, with what it wrote."""

    def __init__(self, folder, tiny, dataset, split, stages=RECIPE, **kwargs):
        self.lines, self.timing = [], []
        self.checkpoints = Checkpoints(folder / "checkpoints")
        self.trainer = Trainer(
            model=tiny,
            stages=stages,
            dataset=dataset,
            split=split,
            checkpoints=self.checkpoints,
            mesh=make_mesh(),
            batch_size=11,  # three batches an epoch, the last one short
            seed=0,
            log_every=kwargs.pop("log_every", 2),
            write_metrics=self.lines.append,
            write_timing=self.timing.append,
            **kwargs,
        )

    def __call__(self, variables):
        """Starts, or resumes from the last checkpoint."""
        if not self.checkpoints.steps:
            self.progress = TrainProgress()
            return self.trainer.run(variables, self.progress)
        restored = self.last_checkpoint
        self.progress = TrainProgress(**restored.meta["position"])
        return self.trainer.run(restored.variables, self.progress, restored)

    @property
    def last_checkpoint(self):
        return self.checkpoints.restore(self.checkpoints.steps[-1])

    def epochs(self, key):
        """A value of each epoch's line of metrics."""
        return [line[key] for line in self.lines if line["kind"] == "epoch"]


def assert_same(a, b):
    """Trees of the same structure with the same bits."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for (path, x), y in zip(jax.tree.leaves_with_path(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y, err_msg=jax.tree_util.keystr(path))
