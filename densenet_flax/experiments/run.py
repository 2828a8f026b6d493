"""From a configuration and a work directory to a trained, evaluated and reported network."""

import time
from pathlib import Path

import jax
from absl import logging
from ml_collections import ConfigDict

from densenet_flax.common.errors import InputError
from densenet_flax.common.host_memory import EVALUATION_BEGINS
from densenet_flax.common.sharding import is_first_process, make_mesh, require_equal
from densenet_flax.common.trees import JsonDict, Variables
from densenet_flax.data.augmentation.color import with_stain_statistics
from densenet_flax.data.augmentation.preview import write_preview
from densenet_flax.data.loading import open_dataset
from densenet_flax.experiments.evaluate_run import evaluate_run
from densenet_flax.experiments.extension import extend
from densenet_flax.experiments.from_config import build_loss, resolve
from densenet_flax.experiments.initial_weights import initial_variables, with_weights_info
from densenet_flax.experiments.prepare import PreparedRun, load_or_make_split, log_data, prepare_run
from densenet_flax.storage.workdir import Workdir
from densenet_flax.training.input_pipeline import Views
from densenet_flax.training.progress import TrainProgress
from densenet_flax.training.trainer import Trainer
from densenet_flax.weights.info import WeightsInfo


def train_and_evaluate(
    config: ConfigDict | JsonDict, workdir: str, *, weights: str = ""
) -> JsonDict:
    """Trains, or resumes training, then evaluates and writes the report.

    Args:
      config: the experiment; `configs/keras_recipe.py` describes the keys.
      workdir: created if it does not exist.
      weights: what a run that has not begun starts from, by default those of the configuration.

    Returns:
      The content of `report/metrics.json`.

    Raises:
      InputError: what the user can correct in configuration, data, weights or work directory.
      Stopped: the process was asked to stop; the run is saved.
    """
    experiment, directory = resolve(config), Workdir(workdir)
    with directory.lock():
        started = time.perf_counter()
        run = prepare_run(experiment, directory, to_train=True, weights=weights)
        # What training holds in memory is freed with this call; the evaluation needs the room.
        seconds = _train(run, started)
        jax.monitoring.record_event(EVALUATION_BEGINS)
        return evaluate_run(run, seconds)


def evaluate(
    config: ConfigDict | JsonDict, workdir: str, *, batch_size: int | None = None
) -> JsonDict:
    """Writes the report on the network of a work directory; returns its `metrics.json`.

    `batch_size` is that of the evaluation; by default that of training.

    Raises:
      InputError: there is no checkpoint, or as `train_and_evaluate`.
    """
    experiment, directory = resolve(config), Workdir(workdir)
    if not directory.has_begun:
        raise InputError(
            f"{directory.path}: no trained network in it; run --mode=train with this --workdir "
            "first"
        )
    with directory.lock():
        if not directory.split.exists():
            raise InputError(
                f"{directory.split}: missing, so it is unknown which images to test on; put it "
                "back, or run --mode=train, which makes it again by the configuration"
            )
        run = prepare_run(experiment, directory)
        if not len(run.split.test):
            raise InputError(
                f"{directory.path}: has no test images; they are given in Python: "
                f"densenet_flax.Run({str(directory.path)!r}).evaluate(images, labels)"
            )
        return evaluate_run(run, {}, batch_size=batch_size)


def preview(config: ConfigDict | JsonDict, workdir: str) -> Path:
    """Writes `preview.png`, training images beside views of them, and returns its path.

    Nothing else is written, and a run in progress there is not disturbed.

    Raises:
      InputError: the configuration, the data or the disk; as `train_and_evaluate`.
    """
    experiment, directory = resolve(config), Workdir(workdir)
    dataset = open_dataset(experiment.data, experiment.cache_directory)
    split = load_or_make_split(experiment, dataset, directory, save=False)
    log_data(dataset, split)
    settings = with_stain_statistics(experiment.augment.settings, dataset, split.train)
    path, group = directory.path / "preview.png", split.policy.group
    if is_first_process():
        write_preview(path, dataset, split.train, settings, group=group, seed=experiment.seed)
        logging.info("preview: %s", path)
    return path


def _train(run: PreparedRun, started: float) -> dict[str, float]:
    """Trains to the end of the last stage; returns the seconds since `started` by phase."""
    experiment, directory, checkpoints = run.experiment, run.workdir, run.checkpoints
    augment, rows = experiment.augment, run.split.train
    # As in RandStainNA the stains are measured on the training images alone.
    settings = with_stain_statistics(augment.settings, run.dataset, rows)
    loss = build_loss(experiment.loss, run.dataset.labels[rows])
    restored = checkpoints.restore_latest(repair=True)
    if restored:
        progress = TrainProgress(**restored.meta["position"])
        variables: Variables = restored.variables
        info = WeightsInfo.from_dict(restored.meta["network"])
        logging.info("resuming from step %d in %s", progress.step, directory.path)
        steps_per_epoch = -(-run.sampler.size // experiment.batch_size)
        extend(experiment, directory, run.stages, progress, steps_per_epoch)
    else:
        # Until the first checkpoint a run may be started again with another configuration.
        directory.write_config(experiment.config)
        progress = TrainProgress()
        variables, info = initial_variables(experiment, run.model, run.dataset, run.split)
    require_equal({"the weights that training starts from": variables})
    # A killed process may have logged steps after its last checkpoint; they are run again.
    directory.rewind(progress.step)
    ready = time.perf_counter()
    trainer = Trainer(
        model=with_weights_info(run.model, info),
        stages=run.stages,
        dataset=run.dataset,
        split=run.split,
        checkpoints=checkpoints,
        mesh=make_mesh(),
        batch_size=experiment.batch_size,
        seed=experiment.seed,
        loss=loss,
        ema_decay=experiment.ema_decay,
        cache=experiment.cache,
        cache_directory=directory.path / "prefix_cache",
        kept_features=experiment.cache_directory / "features",
        views=Views(settings, augment.views, experiment.seed),
        sampler=run.sampler,
        workers=experiment.data.workers,
        preprocessing=info.preprocessing,
        log_every=experiment.log_every,
        network=info.to_dict(),
        write_metrics=directory.metrics_writer(tensorboard=experiment.tensorboard),
        write_timing=directory.timing_writer(),
    )
    trainer.run(variables, progress, restored)
    return {"preparation": ready - started, "training": time.perf_counter() - ready}
