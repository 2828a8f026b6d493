"""A small trained run that several tests read."""

from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict

from densenet_flax.evaluation.predictions import Predictions
from densenet_flax.evaluation.predictions_csv import read_csv
from densenet_flax.experiments import run
from tests.configs import tiny


class TinyRun(NamedTuple):
    """A trained and evaluated run.

    Attributes:
      workdir: its work directory.
      config: the configuration it was made with.
      paths: the image files of the test subset, in the order of the table.
      table: the evaluation's predictions of them.
    """

    workdir: Path
    config: ConfigDict
    paths: list[Path]
    table: Predictions


def train_tiny_run(cache_dir: Path, workdir: Path) -> TinyRun:
    """Trains with stain normalization and evaluates the best epoch, which is not the last one."""
    config = tiny.get_config()
    config.cache_dir = str(cache_dir)
    config.evaluate = "best"
    config.threshold = "youden"
    config.stages.head.duration = config.stages.finetune.duration = "2 epochs"
    config.stages.finetune.learning_rate = 0.05  # so that the last epoch is not the best one
    config.data.stain.method = "channel+clahe"
    config.data.stain.mean, config.data.stain.std = (180, 130, 190), (40.0, 45.0, 35.0)
    run.train_and_evaluate(config, str(workdir))
    table = read_csv(workdir / "report" / "predictions.csv")
    paths = {path.name: path for path in cache_dir.rglob("*.png")}
    return TinyRun(workdir, config, [paths[name] for name in table.file], table)
