"""From a configuration and a work directory to a trained, evaluated and reported network."""

import importlib.metadata
import os
import platform
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from ml_collections import ConfigDict
from tqdm import tqdm

from densenet_flax import frontier
from densenet_flax.checkpoint import Checkpoints
from densenet_flax.data.source import Dataset, check_batch_size, epoch_order, open_dataset
from densenet_flax.data.splits import Split, load_split, patient_split
from densenet_flax.errors import InputError
from densenet_flax.evaluation.predictions import Predictions
from densenet_flax.evaluation.report import verdict, write_report
from densenet_flax.model import NETWORKS, DenseNet, init_variables, preprocess_input
from densenet_flax.predict import Pipeline, predict_logits, probabilities
from densenet_flax.sharding import make_mesh, replicate
from densenet_flax.step import Stage
from densenet_flax.train import Position, Trainer
from densenet_flax.weights import load_weights
from densenet_flax.workdir import Workdir

_DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
_CALIBRATION_IMAGES = 64
_VERSIONS = ("jax", "flax", "optax", "orbax-checkpoint", "tensorflow-datasets", "numpy")


def cache_directory(config: ConfigDict) -> Path:
    """Where prepared data and compiled programs are kept between runs."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "densenet_flax"
    return Path(config.cache_dir or default).expanduser().resolve()


def train_and_evaluate(config: ConfigDict, workdir: str) -> dict[str, Any]:
    """Trains, or goes on training, then evaluates and writes the report.

    Args:
      config: see `configs/`.
      workdir: created if need be.

    Returns:
      The content of `report/metrics.json`.

    Raises:
      InputError: anything in the configuration, the data, the weights or the work directory that
        the user can mend.
    """
    place = Workdir(workdir)
    with place.lock():
        started = time.perf_counter()
        model, stages = build_model(config), build_stages(config)
        dataset = open_dataset(config.data, cache_directory(config))
        split = open_split(config, dataset, place)
        check_batch_size(len(split.train), config.batch_size)
        place.claim(config.to_dict())
        checkpoints = Checkpoints(place.checkpoints)
        prepared = time.perf_counter()
        if checkpoints.steps:
            restored = checkpoints.restore(checkpoints.steps[-1])
            meta = dict(restored.meta)
            meta.pop("network")
            position, variables = Position(**meta), restored.variables
            logging.info("going on from step %d in %s", position.step, place.path)
            place.rewind_metrics(position.step)
        else:
            position, variables = Position(), initial_variables(config, model, dataset, split)
            place.rewind_metrics(-1)
        trainer = Trainer(
            model=model,
            stages=stages,
            dataset=dataset,
            split=split,
            checkpoints=checkpoints,
            mesh=make_mesh(),
            batch_size=config.batch_size,
            seed=config.seed,
            cache=config.cache,
            network=describe_network(config, dataset),
            write_metrics=place.append_metrics,
        )
        trainer.run(variables, position)
        trained = time.perf_counter()
        seconds = {"preparation": prepared - started, "training": trained - prepared}
        return _evaluate(config, place, model, dataset, split, checkpoints, seconds)


def evaluate(config: ConfigDict, workdir: str) -> dict[str, Any]:
    """Evaluates the network of a work directory on its test images and writes the report.

    Raises:
      InputError: there is no checkpoint, or as `train_and_evaluate`.
    """
    place = Workdir(workdir)
    if not (place.path / "config.json").exists() or not place.checkpoints.is_dir():
        raise InputError(
            f"{place.path}: no trained network in it; run --mode=train with this --workdir first"
        )
    with place.lock():
        model = build_model(config)
        build_stages(config)
        place.claim(config.to_dict())
        checkpoints = Checkpoints(place.checkpoints)
        if not checkpoints.steps:
            raise InputError(
                f"{place.checkpoints}: no whole checkpoint in it; run --mode=train first"
            )
        dataset = open_dataset(config.data, cache_directory(config))
        split = load_split(place.split, dataset)
        return _evaluate(config, place, model, dataset, split, checkpoints, {})


def build_model(config: ConfigDict) -> DenseNet:
    """The network of a configuration, with a head for two classes.

    Raises:
      InputError: an unknown network or number format, or a head that cannot be.
    """
    name, dtype = config.model.name, config.model.dtype
    if name not in NETWORKS:
        raise InputError(f"config.model.name={name!r}: expected one of {', '.join(NETWORKS)}")
    if dtype not in _DTYPES:
        raise InputError(f"config.model.dtype={dtype!r}: expected one of {', '.join(_DTYPES)}")
    hidden = tuple(config.model.hidden)
    if any(size < 1 for size in hidden) or not 0 <= config.model.dropout < 1:
        raise InputError("config.model: hidden sizes must be positive and dropout in [0, 1)")
    return NETWORKS[name](
        num_classes=2,
        hidden=hidden,
        dropout=config.model.dropout,
        momentum=config.model.bn_momentum,
        dtype=_DTYPES[dtype],
    )


def build_stages(config: ConfigDict) -> list[Stage]:
    """The stages of a configuration, in the order of their `order` keys' writing.

    Raises:
      InputError: no stage, or one that makes no sense; the message names the key.
    """
    model = build_model(config)
    stages = []
    for name in config.stage_order:
        if name not in config.stages:
            raise InputError(
                f"config.stage_order names {name!r}, but config.stages has "
                f"{', '.join(config.stages)}"
            )
        stage = config.stages[name]
        if stage.epochs < 0 or not stage.learning_rate > 0:
            raise InputError(
                f"config.stages.{name}: expected epochs of 0 or more and a learning rate above 0, "
                f"got {stage.epochs} and {stage.learning_rate}"
            )
        try:
            at = frontier.resolve(stage.unfreeze_from, model.blocks, bn_mode=stage.bn_mode)
        except ValueError as error:
            raise InputError(f"config.stages.{name}: {error}") from error
        stages.append(Stage(name, at, stage.epochs, stage.learning_rate))
    if not stages:
        raise InputError("config.stage_order is empty: a run needs at least one stage")
    return stages


def open_split(config: ConfigDict, dataset: Dataset, place: Workdir) -> Split:
    """The split of the work directory, checked against the data; made the first time."""
    if not place.split.exists():
        rule = config.split
        patient_split(
            dataset,
            group=rule.group,
            test_fraction=rule.test_fraction,
            validation_fraction=rule.validation_fraction,
            seed=rule.seed,
        ).save(place.split)
    return load_split(place.split, dataset)


def initial_variables(
    config: ConfigDict, model: DenseNet, dataset: Dataset, split: Split
) -> dict[str, Any]:
    """Pretrained backbone and random head, or all random.

    A random backbone gets BatchNorm statistics from one batch of training images: the initial
    ones, mean 0 and variance 1, describe nothing, and the stages that keep them frozen would see
    features that hardly differ between images.
    """
    variables = init_variables(model, config.seed)
    if config.model.weights != "random":
        backbone = load_weights(config.model.weights, model, ignore_head=True)
        return {name: {**tree, **backbone[name]} for name, tree in variables.items()}
    logging.warning("starting from random weights: config.model.weights is 'random'")
    order = epoch_order(len(split.train), config.seed, 0)
    images = dataset.images[np.sort(split.train[order[:_CALIBRATION_IMAGES]])]
    everything = frontier.resolve("all", model.blocks).live_norms
    backbone_alone = model.clone(num_classes=0, momentum=0.0)  # 0: take the batch's statistics

    @jax.jit
    def statistics(variables, images):
        x = preprocess_input(images)
        return backbone_alone.apply(variables, x, live_norms=everything, mutable=["batch_stats"])[1]

    return {**variables, **jax.tree.map(np.asarray, statistics(variables, images))}


def describe_network(config: ConfigDict, dataset: Dataset) -> dict[str, Any]:
    """What someone needs to know to use the trained network; kept with each checkpoint."""
    return {
        "network": config.model.name,
        "num_classes": len(dataset.class_names),
        "hidden": list(config.model.hidden),
        "class_names": list(dataset.class_names),
        "preprocessing": "torch",
        "image_size": list(config.data.image_size),
    }


def _evaluate(
    config: ConfigDict,
    place: Workdir,
    model: DenseNet,
    dataset: Dataset,
    split: Split,
    checkpoints: Checkpoints,
    seconds: dict[str, float],
) -> dict[str, Any]:
    started = time.perf_counter()
    last = checkpoints.restore(checkpoints.steps[-1])
    position = last.meta
    chosen = last
    if config.evaluate == "best" and position["best_step"] != last.step:
        chosen = checkpoints.restore(position["best_step"])
    mesh = make_mesh()
    stages = build_stages(config)
    pipeline = Pipeline(model, mesh, cuts=[stage.frontier.cut for stage in stages])
    with tqdm(total=len(split.test), desc="test", unit="img", disable=None) as bar:
        logits = predict_logits(
            pipeline,
            replicate(chosen.variables, mesh),
            dataset,
            split.test,
            config.batch_size,
            progress=bar.update,
        )
    rows = split.test
    predictions = Predictions(
        file=dataset.files[rows],
        patient=dataset.patients(split.policy["group"])[rows],
        subtype=dataset.metadata["subtype"][rows],
        magnification=dataset.metadata["magnification"][rows],
        slide=dataset.metadata["slide_id"][rows],
        label=dataset.labels[rows],
        probability=probabilities(logits)[:, 1],
        class_names=dataset.class_names,
    )
    seconds = {**seconds, "evaluation": time.perf_counter() - started}
    warnings = []
    if config.model.weights == "random":
        warnings.append("The network started from random weights, not from ImageNet.")
    if dataset.name == "drawn":
        warnings.append("The images are drawn by a program. They are not tissue.")
    info = {
        "title": place.path.name,
        "warnings": warnings,
        # load_split and patient_split assert it, so nothing else gets here
        "split": {
            **split.policy,
            "hash": split.hash,
            "counts": split.counts,
            "patient_disjoint": True,
        },
        "config": config.to_dict(),
        "versions": {"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in _VERSIONS},
        "weights": f"{config.model.name}, started from {config.model.weights}; checkpoint of step "
        f"{chosen.step} ({config.evaluate} of {last.step})",
        "device": ", ".join(sorted({device.device_kind for device in jax.devices()})),
        "seconds": seconds,
        "stages": [
            f"{stage.name}: {stage.frontier.describe(chosen.variables['params'])} · "
            f"{stage.epochs} epochs · learning rate {stage.learning_rate:g}"
            for stage in stages
        ],
    }
    metrics = write_report(place.report, predictions, position["history"], info)
    logging.info("%s", verdict(metrics))
    logging.info("report: %s", place.report / "report.html")
    return metrics
