"""From a configuration and a work directory to a trained, evaluated and reported network."""

import functools
import importlib.metadata
import json
import os
import platform
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from ml_collections import ConfigDict
from tqdm import tqdm

from densenet_flax import frontier
from densenet_flax.checkpoint import Checkpoints, Restored
from densenet_flax.data.policies import make_split
from densenet_flax.data.source import Dataset, check_batch_size, epoch_order, open_dataset
from densenet_flax.data.splits import Split, load_split
from densenet_flax.errors import InputError
from densenet_flax.evaluation.operating_point import check_rule, choose_operating_point
from densenet_flax.evaluation.predictions import Predictions
from densenet_flax.files import write_text
from densenet_flax.model import NETWORKS, REMAT, DenseNet, init_variables, preprocess_input
from densenet_flax.optimizer import OptimizerSettings, steps_of
from densenet_flax.predict import Pipeline, predict_logits, probabilities
from densenet_flax.sharding import is_first_process, make_mesh, replicate
from densenet_flax.step import Loss, Stage
from densenet_flax.train import Position, Trainer, best_step
from densenet_flax.weights import WeightsInfo
from densenet_flax.weights.load import load_with_info, open_source
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
        check_rule(config.threshold)
        dataset = open_dataset(config.data, cache_directory(config))
        if len(dataset.class_names) != 2:
            raise InputError(
                f"{dataset.name} has {len(dataset.class_names)} classes "
                f"({', '.join(dataset.class_names[:4])}, …): the head and the report are for two"
            )
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
            info = WeightsInfo.from_dict(restored.meta["network"])
            logging.info("going on from step %d in %s", position.step, place.path)
        else:
            position = Position()
            variables, info = initial_variables(config, model, dataset, split)
        place.rewind(position.step)
        prepared = time.perf_counter()
        trainer = Trainer(
            model=_as_trained(model, info),
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
            preprocessing=info.preprocessing,
            log_every=config.log_every,
            network=info.to_dict(),
            write_metrics=place.metrics_writer(tensorboard=config.tensorboard),
            write_timing=place.timing_writer(),
        )
        trainer.run(variables, position, restored)
        trained = time.perf_counter()
        seconds = {"preparation": prepared - started, "training": trained - prepared}
        return _evaluate(config, place, stages, dataset, split, checkpoints, seconds)


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
        place.check(config.to_dict())
        check_rule(config.threshold)
        checkpoints = Checkpoints(place.checkpoints)
        dataset = open_dataset(config.data, cache_directory(config))
        split = load_split(place.split, dataset)
        stages = build_stages(config, len(split.train))
        return _evaluate(config, place, stages, dataset, split, checkpoints, {})


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
    if config.model.remat not in REMAT:
        raise InputError(
            f"config.model.remat={config.model.remat!r}: expected one of {', '.join(REMAT)}"
        )
    hidden = tuple(config.model.hidden)
    if any(size < 1 for size in hidden) or not 0 <= config.model.dropout < 1:
        raise InputError("config.model: hidden sizes must be positive and dropout in [0, 1)")
    return NETWORKS[name](
        num_classes=2,
        hidden=hidden,
        dropout=config.model.dropout,
        momentum=config.model.bn_momentum,
        dtype=_DTYPES[dtype],
        remat=config.model.remat,
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
        split = make_split(dataset, config.split)
        if not is_first_process():
            return split  # the first one writes the same
        split.save(place.split)
    return load_split(place.split, dataset)


def initial_variables(
    config: ConfigDict, model: DenseNet, dataset: Dataset, split: Split
) -> tuple[dict[str, Any], WeightsInfo]:
    """Pretrained backbone and random head, or all random; and what the network means.

    A random backbone gets BatchNorm statistics from one batch of training images: the initial
    ones, mean 0 and variance 1, describe nothing, and the stages that keep them frozen would see
    features that hardly differ between images.
    """
    variables = init_variables(model, config.seed)
    about = {
        "class_names": tuple(dataset.class_names),
        "extra": {"image_size": list(config.data.image_size), "stain": dict(dataset.stain)},
    }
    source = config.model.weights
    if source != "random":
        if source != "imagenet":
            with open_source(source) as file:  # what these weights were trained in
                meaning = {"epsilon": 1.001e-5, "final_relu": True, **file.meaning}
            model = model.clone(epsilon=meaning["epsilon"], final_relu=meaning["final_relu"])
        backbone, found = load_with_info(source, model, ignore_head=True)
        layout = WeightsInfo.of(model, **about).to_dict()
        kept = ("preprocessing", "epsilon", "final_relu", "source", "sha256", "licence")
        origin = {name: getattr(found, name) for name in kept}
        merged = {name: {**tree, **backbone[name]} for name, tree in variables.items()}
        return merged, WeightsInfo.from_dict({**layout, **origin})

    logging.warning("starting from random weights: config.model.weights is 'random'")
    order = epoch_order(len(split.train), config.seed, 0)
    images = dataset.images[np.sort(split.train[order[:_CALIBRATION_IMAGES]])]
    everything = frontier.resolve("all", model.blocks).live_norms
    backbone_alone = model.clone(num_classes=0, momentum=0.0)  # 0: take the batch's statistics

    @jax.jit
    def statistics(variables, images):
        x = preprocess_input(images)
        return backbone_alone.apply(variables, x, live_norms=everything, mutable=["batch_stats"])[1]

    measured = jax.tree.map(np.asarray, statistics(variables, images))
    return {**variables, **measured}, WeightsInfo.of(model, source="random", **about)


def _as_trained(model: DenseNet, info: WeightsInfo) -> DenseNet:
    """The configuration's network with what the weights brought along."""
    return model.clone(epsilon=info.epsilon, final_relu=info.final_relu)


def _evaluate(
    config: ConfigDict,
    place: Workdir,
    stages: list[Stage],
    dataset: Dataset,
    split: Split,
    checkpoints: Checkpoints,
    seconds: dict[str, float],
) -> dict[str, Any]:
    # Here and not above, because scikit-learn and matplotlib would delay the first step.
    from densenet_flax.evaluation.report import verdict, write_report

    started = time.perf_counter()
    last = checkpoints.restore(checkpoints.steps[-1])
    history = last.meta["position"]["history"]
    best = best_step(history)
    chosen = last
    if config.evaluate == "best" and best not in (None, last.step):
        chosen = checkpoints.restore(best)
    info = WeightsInfo.from_dict(chosen.meta["network"])
    mesh = make_mesh()
    pipeline = Pipeline(
        _as_trained(build_model(config), info),
        mesh,
        cuts=[stage.frontier.cut for stage in stages],
        preprocessing=info.preprocessing,
    )
    device = replicate(chosen.variables, mesh)
    predict = functools.partial(_predict, config, pipeline, device, dataset, split)
    test, validation = predict(split.test, "test"), predict(split.validation, "validation")
    point = choose_operating_point(validation, config.threshold)
    seconds = {**seconds, "evaluation": time.perf_counter() - started}
    if not is_first_process():
        return {}
    write_text(place.path / "operating_point.json", json.dumps(point.to_dict(), indent=2) + "\n")
    about = _about_the_run(config, place, stages, dataset, split, chosen, last.step, info, seconds)
    metrics = write_report(
        place.report, test, history, about, validation=validation, operating_point=point
    )
    logging.info("%s", verdict(metrics))
    logging.info("report: %s", place.report / "report.html")
    return metrics


def _predict(
    config: ConfigDict,
    pipeline: Pipeline,
    variables: Mapping[str, Any],
    dataset: Dataset,
    split: Split,
    rows: np.ndarray,
    side: str,
) -> Predictions:
    """The predictions table of one side of the split."""
    with tqdm(total=len(rows), desc=side, unit="img", disable=None) as bar:
        logits = predict_logits(
            pipeline, variables, dataset, rows, config.batch_size, progress=bar.update
        )
    return Predictions(
        file=dataset.files[rows],
        patient=dataset.patients(split.policy["group"])[rows],
        subtype=dataset.metadata["subtype"][rows],
        magnification=dataset.metadata["magnification"][rows],
        slide=dataset.metadata["slide_id"][rows],
        label=dataset.labels[rows],
        probability=probabilities(logits)[:, 1],
        class_names=dataset.class_names,
    )


def _about_the_run(
    config: ConfigDict,
    place: Workdir,
    stages: list[Stage],
    dataset: Dataset,
    split: Split,
    chosen: Restored,
    last_step: int,
    info: WeightsInfo,
    seconds: Mapping[str, float],
) -> dict[str, Any]:
    """What the report says of the run."""
    warnings = []
    if config.model.weights == "random":
        warnings.append("The network started from random weights, not from ImageNet.")
    if dataset.name == "drawn":
        warnings.append("The images are drawn by a program. They are not tissue.")
    weights = {
        "network": config.model.name,
        "started from": info.source,
        "SHA-256 of that file": info.sha256,
        "licence of that file": info.licence,
        "checkpoint": f"step {chosen.step} of {last_step} ({config.evaluate})",
    }
    warnings += dataset.notes
    return {
        "title": place.path.name,
        "warnings": warnings,
        "split": {
            **split.policy,
            "hash": split.hash,
            "counts": split.counts,
            "patient_disjoint": split.patient_disjoint,
        },
        "config": config.to_dict(),
        "versions": {"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in _VERSIONS},
        "weights": {name: value for name, value in weights.items() if value},
        "device": ", ".join(sorted({device.device_kind for device in jax.devices()})),
        "seconds": seconds,
        "stages": [
            f"{stage.name}: {stage.frontier.describe(chosen.variables['params'])} · "
            f"{config.stages[stage.name].duration} · {stage.optimizer.name} "
            f"{stage.optimizer.learning_rate:g}"
            for stage in stages
        ],
    }
