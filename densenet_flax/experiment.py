"""From a configuration and a work directory to a trained, evaluated and reported network."""

import functools
import importlib.metadata
import os
import platform
import time
from collections.abc import Sequence
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
from densenet_flax.model import NETWORKS, DenseNet, init_variables, preprocess_input
from densenet_flax.optimizer import OptimizerSettings, steps_of
from densenet_flax.predict import Pipeline, predict_logits, probabilities
from densenet_flax.sharding import is_first_process, make_mesh, replicate
from densenet_flax.step import Loss, Stage
from densenet_flax.train import Position, Trainer, best_step
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
      Stopped: the process was asked to stop; the run is saved.
    """
    place = Workdir(workdir)
    with place.lock():
        started = time.perf_counter()
        model = build_model(config)
        dataset = open_dataset(config.data, cache_directory(config))
        has_begun = place.has_begun
        if has_begun:
            place.check(config.to_dict())
        split = open_split(config, dataset, place, anew=not has_begun)
        check_batch_size(len(split.train), config.batch_size)
        stages = build_stages(config, len(split.train))
        loss = build_loss(config, dataset.labels[split.train])
        if not has_begun:
            place.write_config(config.to_dict())
        checkpoints = Checkpoints(place.checkpoints)
        restored = None
        if checkpoints.steps:
            restored = checkpoints.restore(checkpoints.steps[-1])
            position, variables = Position(**restored.meta["position"]), restored.variables
            logging.info("going on from step %d in %s", position.step, place.path)
        else:
            position = Position()
            variables = initial_variables(config, model, dataset, split)
        place.rewind(position.step)
        prepared = time.perf_counter()
        trainer = Trainer(
            model=model,
            stages=stages,
            dataset=dataset,
            split=split,
            checkpoints=checkpoints,
            mesh=make_mesh(),
            batch_size=config.batch_size,
            seed=config.seed,
            loss=loss,
            ema_decay=config.ema_decay,
            cache=config.cache,
            log_every=config.log_every,
            network=describe_network(config, dataset),
            write_metrics=place.metrics_writer(tensorboard=config.tensorboard),
            write_timing=place.timing_writer(),
        )
        trainer.run(variables, position, restored)
        trained = time.perf_counter()
        seconds = {"preparation": prepared - started, "training": trained - prepared}
        return _evaluate(config, place, model, stages, dataset, split, checkpoints, seconds)


def evaluate(config: ConfigDict, workdir: str) -> dict[str, Any]:
    """Evaluates the network of a work directory on its test images and writes the report.

    Raises:
      InputError: there is no checkpoint, or as `train_and_evaluate`.
    """
    place = Workdir(workdir)
    if not place.has_begun:
        raise InputError(
            f"{place.path}: no trained network in it; run --mode=train with this --workdir first"
        )
    with place.lock():
        model = build_model(config)
        place.check(config.to_dict())
        checkpoints = Checkpoints(place.checkpoints)
        dataset = open_dataset(config.data, cache_directory(config))
        split = load_split(place.split, dataset)
        stages = build_stages(config, len(split.train))
        return _evaluate(config, place, model, stages, dataset, split, checkpoints, {})


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


def build_stages(config: ConfigDict, examples: int) -> list[Stage]:
    """The stages that `config.stage_order` names.

    Args:
      config: see `configs/keras_recipe.py`.
      examples: training images, which are an epoch.

    Raises:
      InputError: no stage, or one that makes no sense; the message names the key.
    """
    blocks = build_model(config).blocks
    if not config.stage_order:
        raise InputError("config.stage_order is empty: a run needs at least one stage")
    stages = []
    for name in config.stage_order:
        if name not in config.stages:
            raise InputError(
                f"config.stage_order names {name!r}, but config.stages has "
                f"{', '.join(config.stages)}"
            )
        try:
            stages.append(_build_stage(name, config, blocks, examples))
        except ValueError as error:
            raise InputError(f"config.stages.{name}: {error}") from error
    return stages


def _build_stage(name: str, config: ConfigDict, blocks: Sequence[int], examples: int) -> Stage:
    stage = config.stages[name]
    in_steps = functools.partial(steps_of, examples=examples, batch_size=config.batch_size)
    steps = in_steps(stage.duration)
    settings = OptimizerSettings(
        learning_rate=stage.learning_rate,
        name=stage.optimizer,
        schedule=stage.schedule,
        warmup=in_steps(stage.warmup, total=steps),
        weight_decay=stage.weight_decay,
        momentum=stage.momentum,
        clip_norm=stage.clip_norm,
        layer_decay=stage.layer_decay,
        accumulate=stage.accumulate,
        plateau_factor=stage.plateau_factor,
        plateau_patience=stage.plateau_patience,
    )
    return Stage(
        name=name,
        frontier=frontier.resolve(stage.unfreeze_from, blocks, bn_mode=stage.bn_mode),
        steps=steps,
        optimizer=settings,
        keep_moments=stage.keep_moments,
        patience=stage.patience,
        restore_best=stage.restore_best,
    )


def build_loss(config: ConfigDict, labels: np.ndarray) -> Loss:
    """The loss of a configuration, given the labels of the training images.

    Raises:
      InputError: an option that makes no sense.
    """
    if config.seed < 0:
        raise InputError(f"config.seed={config.seed}: expected 0 or a positive number")
    if not 0 <= config.label_smoothing < 1 or not 0 <= config.ema_decay < 1:
        raise InputError("config.label_smoothing and config.ema_decay: expected 0 to below 1")
    wanted, classes = config.class_weights, np.unique(labels)
    weights: tuple[float, ...] = ()
    if wanted == "balanced":
        from sklearn.utils.class_weight import compute_class_weight  # slow to import

        balanced = compute_class_weight("balanced", classes=classes, y=labels)
        weights = tuple(float(weight) for weight in balanced)
    elif wanted != "none":
        try:
            weights = tuple(float(part) for part in wanted.split(","))
        except ValueError:
            weights = ()
        if len(weights) != len(classes) or min(weights) < 0:
            raise InputError(
                f"config.class_weights={wanted!r}: expected 'none', 'balanced' or "
                f"{len(classes)} numbers with a comma between"
            )
    return Loss(config.label_smoothing, weights)


def open_split(config: ConfigDict, dataset: Dataset, place: Workdir, *, anew: bool) -> Split:
    """The split of the work directory, checked against the data; made at the first start."""
    if anew or not place.split.exists():
        rule = config.split
        split = patient_split(
            dataset,
            group=rule.group,
            test_fraction=rule.test_fraction,
            validation_fraction=rule.validation_fraction,
            seed=rule.seed,
        )
        if not is_first_process():
            return split  # the first one writes the same
        split.save(place.split)
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
    stages: list[Stage],
    dataset: Dataset,
    split: Split,
    checkpoints: Checkpoints,
    seconds: dict[str, float],
) -> dict[str, Any]:
    # Here and not above, because scikit-learn and matplotlib would delay the first step.
    from densenet_flax.evaluation.predictions import Predictions
    from densenet_flax.evaluation.report import verdict, write_report

    started = time.perf_counter()
    last = checkpoints.restore(checkpoints.steps[-1])
    history = last.meta["position"]["history"]
    best = best_step(history)
    chosen = last
    if config.evaluate == "best" and best not in (None, last.step):
        chosen = checkpoints.restore(best)
    mesh = make_mesh()
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
            f"{config.stages[stage.name].duration} · {stage.optimizer.name} "
            f"{stage.optimizer.learning_rate:g}"
            for stage in stages
        ],
    }
    if not is_first_process():
        return {}
    metrics = write_report(place.report, predictions, history, info)
    logging.info("%s", verdict(metrics))
    logging.info("report: %s", place.report / "report.html")
    return metrics
