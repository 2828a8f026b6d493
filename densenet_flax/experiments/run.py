"""From a configuration and a work directory to a trained, evaluated and reported network."""

import functools
import importlib.metadata
import json
import os
import platform
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging
from ml_collections import ConfigDict
from tqdm import tqdm

from densenet_flax.common.errors import InputError
from densenet_flax.common.host_memory import trim_host_memory
from densenet_flax.common.sharding import is_first_process, make_mesh, replicate
from densenet_flax.data.augmentation.preview import write_preview
from densenet_flax.data.augmentation.views import settings_for
from densenet_flax.data.batching import check_batch_size
from densenet_flax.data.data_config import DataConfig
from densenet_flax.data.dataset import Dataset
from densenet_flax.data.loading import open_dataset
from densenet_flax.data.splits.policies import make_split
from densenet_flax.data.splits.split import Split, load_split
from densenet_flax.data.splits.split_config import SplitConfig
from densenet_flax.data.splits.split_table import overlap_rows
from densenet_flax.evaluation.metrics.operating_point import check_rule, choose_operating_point
from densenet_flax.evaluation.predictions import Predictions
from densenet_flax.experiments import gallery as showcase
from densenet_flax.experiments.from_config import (
    as_trained,
    build_loss,
    build_model,
    build_sampler,
    build_stages,
    build_views,
    initial_variables,
)
from densenet_flax.inference.dataset_predictions import predict_probabilities
from densenet_flax.inference.saliency import next_unit
from densenet_flax.inference.segments import SegmentedModel
from densenet_flax.models.densenet import DenseNet
from densenet_flax.storage.atomic import write_text
from densenet_flax.storage.checkpoint import OPERATING_POINT_FILE, Checkpoints, Restored
from densenet_flax.storage.workdir import Workdir
from densenet_flax.training.progress import TrainProgress, best_step
from densenet_flax.training.stage import Stage
from densenet_flax.training.trainer import Trainer
from densenet_flax.weights import WeightsInfo

_VERSIONS = ("jax", "flax", "optax", "orbax-checkpoint", "tensorflow-datasets", "numpy")


def cache_directory(config: ConfigDict) -> Path:
    """Where prepared data and compiled programs are kept between runs."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "densenet_flax"
    return Path(config.cache_dir or default).expanduser().resolve()


def config_of_run(workdir: str) -> ConfigDict:
    """The configuration that a work directory was made with, as far as it can be read."""
    return ConfigDict({"cache_dir": "", **(Workdir(workdir).read_config() if workdir else {})})


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
        _check_judging(config, model)
        dataset = open_dataset(
            DataConfig.from_config(config.data, "config.data"), cache_directory(config)
        )
        check_rule(config.threshold, len(dataset.class_names))
        model = model.clone(num_classes=len(dataset.class_names))
        has_begun = place.has_begun
        if has_begun:
            place.check(config.to_dict())
        split = open_split(config, dataset, place, anew=not has_begun)
        check_batch_size(len(split.train), config.batch_size)
        views = build_views(config, dataset, split.train)
        sampler = build_sampler(config, dataset, split.train)
        stages = build_stages(config, sampler.size)
        loss = build_loss(config, dataset.labels[split.train])
        if not has_begun:
            place.write_config(config.to_dict())
        checkpoints = Checkpoints(place.checkpoints)
        restored = None
        if checkpoints.steps:
            restored = checkpoints.restore(checkpoints.steps[-1])
            position, variables = TrainProgress(**restored.meta["position"]), restored.variables
            info = WeightsInfo.from_dict(restored.meta["network"])
            logging.info("going on from step %d in %s", position.step, place.path)
        else:
            position = TrainProgress()
            variables, info = initial_variables(config, model, dataset, split)
        place.rewind(position.step)
        prepared = time.perf_counter()
        trainer = Trainer(
            model=as_trained(model, info),
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
            cache_directory=place.path / "prefix_cache",
            kept_features=cache_directory(config) / "features",
            views=views,
            sampler=sampler,
            workers=config.data.workers,
            preprocessing=info.preprocessing,
            log_every=config.log_every,
            network=info.to_dict(),
            write_metrics=place.metrics_writer(tensorboard=config.tensorboard),
            write_timing=place.timing_writer(),
        )
        trainer.run(variables, position, restored)
        del trainer, variables, restored
        trim_host_memory()
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
        _check_judging(config, build_model(config))
        checkpoints = Checkpoints(place.checkpoints)
        dataset = open_dataset(
            DataConfig.from_config(config.data, "config.data"), cache_directory(config)
        )
        check_rule(config.threshold, len(dataset.class_names))
        split = load_split(place.split, dataset)
        sampler = build_sampler(config, dataset, split.train)
        stages = build_stages(config, sampler.size)
        return _evaluate(config, place, stages, dataset, split, checkpoints, {})


def preview(config: ConfigDict, workdir: str) -> Path:
    """Writes `preview.png`, training images beside views of them, and returns where it is.

    The split is that of the work directory if it has one, else the one that training would make;
    nothing else is written, and a run that is going on there is not disturbed.

    Raises:
      InputError: the configuration, the data or the disk; as `train_and_evaluate`.
    """
    place = Workdir(workdir)
    dataset = open_dataset(
        DataConfig.from_config(config.data, "config.data"), cache_directory(config)
    )
    begun = place.has_begun and place.split.exists()
    split = (
        load_split(place.split, dataset)
        if begun
        else make_split(dataset, SplitConfig.from_config(config.split, "config.split"))
    )
    settings = settings_for(config.augment, dataset, split.train)
    path = place.path / "preview.png"
    group = split.policy.group
    if is_first_process():
        write_preview(path, dataset, split.train, settings, group=group, seed=config.seed)
        logging.info("preview: %s", path)
    return path


def _check_judging(config: ConfigDict, model: DenseNet) -> None:
    """Refuses, before anything takes time, what the evaluation could not do."""
    if config.explain:
        try:
            next_unit(model, config.explain)
        except InputError as error:
            raise InputError(f"config.explain: {error}") from error


def open_split(config: ConfigDict, dataset: Dataset, place: Workdir, *, anew: bool) -> Split:
    """The split of the work directory, checked against the data; made at the first start."""
    if anew or not place.split.exists():
        split = make_split(dataset, SplitConfig.from_config(config.split, "config.split"))
        if not is_first_process():
            return split  # the first one writes the same
        split.save(place.split)
    return load_split(place.split, dataset)


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
    from densenet_flax.evaluation.report.cautions import verdict
    from densenet_flax.evaluation.report.report import write_report

    started = time.perf_counter()
    last = checkpoints.restore(checkpoints.steps[-1])
    history = last.meta["position"]["history"]
    best = best_step(history)
    chosen = last
    if config.evaluate == "best" and best not in (None, last.step):
        chosen = checkpoints.restore(best)
    info = WeightsInfo.from_dict(chosen.meta["network"])
    mesh = make_mesh()
    pipeline = SegmentedModel(
        as_trained(build_model(config, len(dataset.class_names)), info),
        mesh,
        cuts=[stage.frontier.cut for stage in stages],
        preprocessing=info.preprocessing,
    )
    device = replicate(chosen.variables, mesh)
    predict = functools.partial(_predict, config, pipeline, device, dataset, split)
    test, validation = predict(split.test, "test"), predict(split.validation, "validation")
    point = choose_operating_point(validation, config.threshold)
    gallery, note = _gallery(config, pipeline, device, dataset, split.test, point.apply(test))
    seconds = {**seconds, "evaluation": time.perf_counter() - started}
    if not is_first_process():
        return {}
    judged = {**point.to_dict(), "step": chosen.step, "tta": config.tta}  # for who uses it
    write_text(place.path / OPERATING_POINT_FILE, json.dumps(judged, indent=2) + "\n")
    about = _about_the_run(config, place, stages, dataset, split, chosen, last.step, info, seconds)
    about |= {"gallery": gallery, "gallery_note": note}
    metrics = write_report(
        place.report, test, history, about, validation=validation, operating_point=point
    )
    logging.info("%s", verdict(metrics))
    logging.info("report: %s", place.report / "report.html")
    return metrics


def _predict(
    config: ConfigDict,
    pipeline: SegmentedModel,
    variables: Mapping[str, Any],
    dataset: Dataset,
    split: Split,
    rows: np.ndarray,
    side: str,
) -> Predictions:
    """The predictions table of one side of the split."""
    with tqdm(total=len(rows), desc=side, unit="img", disable=None) as bar:
        probability = predict_probabilities(
            pipeline,
            variables,
            dataset,
            rows,
            config.batch_size,
            tta=config.tta,
            progress=bar.update,
        )
    # The table has these columns for all data; where the data lacks them: class, 0 and patient.
    columns = {
        "subtype": np.array(dataset.class_names)[dataset.labels],
        "magnification": np.zeros(len(dataset), np.int32),
        "slide_id": list(dataset.groups.values())[-1],
        **dataset.columns,
    }
    return Predictions(
        file=dataset.files[rows],
        patient=dataset.patients(split.policy.group)[rows],
        subtype=columns["subtype"][rows],
        magnification=columns["magnification"][rows],
        slide=columns["slide_id"][rows],
        label=dataset.labels[rows],
        probability=probability,
        class_names=dataset.class_names,
    )


def _gallery(
    config: ConfigDict,
    pipeline: SegmentedModel,
    variables: Mapping[str, Any],
    dataset: Dataset,
    rows: np.ndarray,
    table: Predictions,
) -> tuple[list[dict[str, Any]], str]:
    """What the report shows of the network at work; nothing if `config.explain` is empty."""
    if not config.explain:
        return [], ""
    probability = table.probability
    if probability.ndim == 1:  # of the second of two classes
        probability = np.stack([1 - probability, probability], axis=1)
    return showcase.show(
        pipeline,
        variables,
        dataset,
        rows,
        probability,
        table.prediction,
        table.patient,
        threshold=table.threshold,
        unit=config.explain,
        batch_size=config.batch_size,
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
        "licence of that file": info.license,
        "checkpoint": f"step {chosen.step} of {last_step} ({config.evaluate})",
    }
    warnings += dataset.notes
    return {
        "title": place.path.name,
        "warnings": warnings,
        "split": {
            **split.policy.to_dict(),
            "hash": split.hash,
            "counts": split.counts,
            "patient_disjoint": split.patient_disjoint,
            "overlap": overlap_rows(split, dataset),
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
