"""The network of a run on its validation and test images, and the report on it."""

import contextlib
import dataclasses
import importlib.metadata
import platform
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from absl import logging
from jaxtyping import Float, Int

from densenet_flax.common.console import progress_bar
from densenet_flax.common.errors import InputError
from densenet_flax.common.sharding import (
    broadcast,
    device_kinds,
    is_first_process,
    make_mesh,
    replicate,
)
from densenet_flax.common.trees import JsonDict, Variables
from densenet_flax.data.data_summary import describe_summary, summarize
from densenet_flax.data.splits.split_table import overlap_rows
from densenet_flax.evaluation.metrics.feature_space import measure_features
from densenet_flax.evaluation.metrics.operating_point import choose_operating_point
from densenet_flax.evaluation.predictions import Predictions
from densenet_flax.experiments.extension import Extension, read_notes
from densenet_flax.experiments.gallery import Picture, make_gallery
from densenet_flax.experiments.initial_weights import with_weights_info
from densenet_flax.experiments.neighbors import neighbor_pictures
from densenet_flax.experiments.prepare import PreparedRun
from densenet_flax.inference.dataset_predictions import predict_probabilities
from densenet_flax.inference.segments import SegmentedModel
from densenet_flax.storage.checkpoint import Restored
from densenet_flax.storage.checksums import write_checksums
from densenet_flax.storage.json_files import write_json_object
from densenet_flax.storage.trained_model import read_operating_point
from densenet_flax.training.progress import best_step, best_steps
from densenet_flax.weights.info import WeightsInfo

REPORT_FILES = ("metrics.json", "predictions.csv")  # what a cross-validation reads again

_VERSIONS = ("jax", "flax", "optax", "orbax-checkpoint", "tensorflow-datasets", "numpy")


def evaluate_run(
    run: PreparedRun, seconds: Mapping[str, float], *, batch_size: int | None = None
) -> JsonDict:
    """Chooses the operating point on the validation images, tests, and writes the report.

    `seconds` are those of the phases before this one, for the report; `batch_size` is by default
    that of training.

    Returns:
      The content of `report/metrics.json`; {} in all processes but the first, or if there are no
      test images, of which then nothing is written.
    """
    # Here, because matplotlib would delay the first step.
    from densenet_flax.evaluation.report.cautions import verdict
    from densenet_flax.evaluation.report.report import write_report

    started = time.perf_counter()
    settings, notes = run.experiment.evaluation, read_notes(run.workdir)
    last, checkpoint, warnings = _checkpoints(run)
    history = last.meta["position"]["history"]
    batch_size = batch_size or run.experiment.batch_size
    info = WeightsInfo.from_dict(checkpoint.meta["network"])
    mesh = make_mesh()
    model, cuts = with_weights_info(run.model, info), [stage.frontier.cut for stage in run.stages]
    network = SegmentedModel(model, mesh, cuts=cuts, preprocessing=info.preprocessing)
    variables = replicate(checkpoint.variables, mesh)

    validation = predict_rows(run, network, variables, "validation", batch_size)
    # The threshold and the temperature are chosen without a look at the test images.
    operating_point = choose_operating_point(validation, settings.threshold, settings.calibration)
    # Other processors may round differently, and all processes draw maps of the same images.
    chosen = broadcast(np.array([operating_point.threshold, operating_point.temperature]))
    operating_point = dataclasses.replace(
        operating_point, threshold=float(chosen[0]), temperature=float(chosen[1])
    )
    point = {**operating_point.to_dict(), "step": checkpoint.step, "tta": settings.tta}
    if tiles := _tiles(run):
        point["tiles"] = tiles
    if not len(run.split.test):
        if is_first_process():
            _save_point(run, point)
        logging.info("no test images yet, so there is no report: see densenet_flax.Run.evaluate")
        return {}
    features: list[Float[np.ndarray, "n C"]] = []
    test = predict_rows(run, network, variables, "test", batch_size, features=features.append)
    pictures: list[Picture] = []
    note = ""
    if settings.explain:
        pictures, note = make_gallery(run, network, variables, operating_point.apply(test))
    seconds = {**seconds, "evaluation": time.perf_counter() - started}
    if not is_first_process():  # all compute, one writes
        return {}

    _save_point(run, point)
    space = measure_features(np.concatenate(features), test.label, test.patient)
    summary = _summary(run, checkpoint, last.step, info, notes)
    summary["warnings"] = [*warnings, *summary["warnings"]]
    summary |= {"seconds": seconds, "gallery": pictures, "gallery_note": note}
    if space is not None:
        summary["neighbors"] = neighbor_pictures(run, test, space)
    directory = run.workdir.report
    metrics = write_report(
        directory,
        test,
        history,
        summary,
        validation=validation,
        operating_point=operating_point,
        features=space,
    )
    write_checksums(directory, REPORT_FILES)
    logging.info("%s", verdict(metrics))
    logging.info("report: %s", directory / "report.html")
    return metrics


def _tiles(run: PreparedRun) -> JsonDict:
    """How much tissue a tile shows, which may be stated after training; {} if nobody stated it."""
    if field := run.dataset.field:
        return {"mpp": field.mpp, "field_um": field.size_um}
    with contextlib.suppress(InputError):  # a damaged file is about to be replaced
        return read_operating_point(run.workdir.operating_point).get("tiles", {})
    return {}


def _save_point(run: PreparedRun, point: JsonDict) -> None:
    write_json_object(run.workdir.operating_point, point, indent=2)


def _checkpoints(run: PreparedRun) -> tuple[Restored, Restored, list[str]]:
    """The last checkpoint of the run, the one to evaluate, and warnings for the report."""
    last = run.checkpoints.restore_latest(train=False)
    if last is None:
        raise InputError(f"{run.workdir.checkpoints}: no complete checkpoint; run --mode=train")
    kept, history = run.checkpoints.steps, last.meta["position"]["history"]
    monitor = run.experiment.monitor
    warnings, checkpoint, best = [], last, best_step(history, monitor)
    if last.step != kept[-1]:
        warnings.append(f"The last checkpoint, of step {kept[-1]}, is damaged.")
    # The trainer always keeps the checkpoint of the best epoch besides the last one.
    if run.experiment.evaluation.evaluate == "best" and best not in (None, last.step):
        ordered = best_steps(history, kept, monitor)
        checkpoint = run.checkpoints.restore_first(ordered, train=False)
        if checkpoint.step != best:
            warnings.append(f"The checkpoint of the best epoch, of step {best}, is damaged.")
    if warnings:
        warnings.append(f"The results are those of step {checkpoint.step}.")
    return last, checkpoint, warnings


def predict_rows(
    run: PreparedRun,
    network: SegmentedModel,
    variables: Variables,
    subset: str,
    size: int,
    rows: Int[np.ndarray, "N"] | None = None,
    features: Callable[[Float[np.ndarray, "n C"]], object] | None = None,
) -> Predictions:
    """The predictions table of a subset of the split, or of these rows of it.

    `features` is that of `predict_logits`.
    """
    if rows is None:
        rows = run.split.test if subset == "test" else run.split.validation
    dataset, tta = run.dataset, run.experiment.evaluation.tta
    with progress_bar(len(rows), subset) as bar:
        probability = predict_probabilities(
            network,
            variables,
            dataset,
            rows,
            size,
            tta=tta,
            progress=bar.update,
            features=features,
        )
    # predictions.csv has these columns for all data. Where the data lacks one, it holds the class,
    # 0 and the patient.
    columns = {
        "subtype": np.array(dataset.class_names)[dataset.labels],
        "magnification": np.zeros(len(dataset), np.int32),
        "slide_id": list(dataset.groups.values())[-1],
        **dataset.columns,
    }
    return Predictions(
        file=dataset.files[rows],
        patient=dataset.patients(run.split.policy.group)[rows],
        subtype=columns["subtype"][rows],
        magnification=columns["magnification"][rows],
        slide=columns["slide_id"][rows],
        label=dataset.labels[rows],
        probability=probability,
        class_names=dataset.class_names,
    )


def _summary(
    run: PreparedRun,
    checkpoint: Restored,
    last_step: int,
    info: WeightsInfo,
    notes: Sequence[Extension],
) -> JsonDict:
    """The `info` of `write_report`: what the run was."""
    experiment, dataset, split = run.experiment, run.dataset, run.split
    warnings = list(dataset.notes)
    if dataset.name == "drawn":
        warnings.insert(0, "The images are drawn by a program. They are not tissue.")
    warnings += [note.describe() for note in notes if not note.exact]
    if experiment.model.weights == "random":
        warnings.insert(0, "The network started from random weights, not from ImageNet.")
    # Empty values are left out.
    weights = {
        "network": experiment.model.name,
        "started from": info.source,
        "SHA-256 of that file": info.sha256,
        "licence of that file": info.license,  # spelled as in earlier metrics.json files
        "checkpoint": f"step {checkpoint.step} of {last_step} ({experiment.evaluation.evaluate})",
    }
    if experiment.evaluation.evaluate == "best" and experiment.monitor != "loss":
        weights["checkpoint"] += f", by validation {experiment.monitor}"
    params = checkpoint.variables["params"]
    data = summarize(dataset, split)
    return {
        "title": run.workdir.path.name,
        "warnings": warnings,
        "data": {**data, "facts": describe_summary(data)},
        "split": {
            **split.policy.to_dict(),
            "hash": split.hash,
            "counts": split.counts,
            "patient_disjoint": split.patient_disjoint,
            "overlap": overlap_rows(split, dataset),
        },
        "config": experiment.config,
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in _VERSIONS},
        },
        "weights": {name: value for name, value in weights.items() if value},
        "device": device_kinds(),
        "computation": run.model.computation,
        "stages": [
            f"{stage.name}: {stage.frontier.describe(params)} · "
            f"{experiment.stages[stage.name].duration} · {stage.optimizer.name} "
            f"{stage.optimizer.learning_rate:g}"
            for stage in run.stages
        ],
    }
