"""From trained runs to an ensemble: its folder, and a report where no member trained on images."""

import dataclasses
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from absl import logging

from densenet_flax.common.errors import InputError
from densenet_flax.common.trees import JsonDict
from densenet_flax.evaluation.metrics.comparison import align
from densenet_flax.evaluation.metrics.operating_point import LIKELIEST, choose_operating_point
from densenet_flax.evaluation.predictions import Predictions
from densenet_flax.experiments.evaluate_run import predict_rows
from densenet_flax.experiments.from_config import resolve
from densenet_flax.experiments.prepare import PreparedRun, prepare_run
from densenet_flax.inference.classifier import Classifier
from densenet_flax.inference.ensemble import (
    COMBINE,
    FILE,
    Combination,
    Ensemble,
    file_sha256,
    stacking_weights,
    write_ensemble,
)
from densenet_flax.inference.load import load_classifier
from densenet_flax.storage.atomic import is_incomplete, writing
from densenet_flax.storage.locks import locked
from densenet_flax.storage.workdir import Workdir
from densenet_flax.weights.inference_settings import StoredOperatingPoint
from densenet_flax.weights.load import read_weights
from densenet_flax.weights.save import save_weights

HOW = (*COMBINE, "stacking")
_MEMBER = re.compile(r"(new-)?member\d+(-[0-9a-f]{8})?\.safetensors")


def make_ensemble(
    runs: Sequence[str],
    output: str | os.PathLike[str],
    *,
    combine: str = "probabilities",
    overwrite: bool = False,
) -> JsonDict:
    """Writes an ensemble of evaluated runs, and a report on it.

    Threshold and temperature are chosen on images that are validation images of all runs, by the
    rule and calibration of the first run's last evaluation, and the report is on images that are
    test images of all runs. Folds of a cross-validation have neither: every image trained some of
    their networks, so that their ensemble keeps 0.5 and 1 and has to be tested on other images.

    Args:
      runs: two or more work directories of the same data.
      output: the folder to write.
      combine: 'probabilities' or 'logits', whose mean it is; or 'stacking', a mean of logits with
        weights fitted on the validation images.
      overwrite: whether to replace an ensemble in the folder.

    Returns:
      The content of `report/metrics.json`; {} without test images.

    Raises:
      InputError: what can be corrected in runs, their data or the folder.
    """
    folder = Path(output).expanduser()
    if combine not in HOW:
        raise InputError(f"--combine={combine!r}: expected one of {', '.join(HOW)}")
    if len({Path(run).expanduser().resolve() for run in runs}) < max(2, len(runs)):
        raise InputError(f"--members={','.join(runs)}: expected two or more different runs")
    if os.path.lexists(folder) and not folder.is_dir():
        raise InputError(f"{folder}: is a file; choose another folder")
    if (folder / FILE).exists() and not overwrite:
        raise InputError(
            f"{folder}: holds an ensemble; choose another folder, or replace it with --overwrite"
        )
    is_ours = (folder / FILE).exists() or not folder.is_dir()
    if not is_ours and not all(
        _is_member(path) or is_incomplete(path) for path in folder.iterdir()
    ):
        raise InputError(f"{folder}: holds other files than an ensemble; choose another folder")
    with locked(folder, "another process is writing into it; wait for it", file=""):
        return _make(runs, folder, combine)


def _make(runs: Sequence[str], folder: Path, combine: str) -> JsonDict:
    for run in runs:
        if not Workdir(run).has_begun:
            raise InputError(f"{run}: no trained network in it; --members takes work directories")
    members = {run: load_classifier(run) for run in runs}
    weights = (1 / len(runs),) * len(runs)
    combination = Combination(combine if combine in COMBINE else "logits", weights)
    Ensemble(members, combination, None)  # rejects members that do not go together
    prepared = [_prepare(run, member) for run, member in members.items()]
    validation = _common_table(prepared, members, "validation")
    if combine == "stacking":
        if validation is None:
            raise InputError(
                "--combine=stacking: no image is a validation image of all runs, so there is "
                "nothing to fit weights on; choose 'probabilities' or 'logits'"
            )
        table = validation.table
        fitted = stacking_weights(validation.each, table.label, table.patient, table.class_names)
        combination = dataclasses.replace(combination, weights=fitted)
    point = stored = None
    if validation is not None:
        settings = prepared[0].experiment.evaluation
        point = choose_operating_point(
            validation.combined(combination), settings.threshold, settings.calibration
        )
        stored = StoredOperatingPoint.from_dict({**point.to_dict(), "tta": settings.tta})
    test = _common_table(prepared, members, "test")
    with writing(folder):
        files = {_write_member(folder, i, run): run for i, run in enumerate(runs, start=1)}
        write_ensemble(folder, files, combination, stored)
        # What belongs to an ensemble that this one replaces, or that was interrupted.
        for path in folder.iterdir():
            if _is_member(path) and path.name not in files:
                path.unlink()
        shutil.rmtree(folder / "report", ignore_errors=True)
    _log(files, combination, folder)
    if test is None:
        logging.warning(
            "no image is a test image of all runs, so there is no report; predict other images: "
            "--mode=predict --model=%s",
            folder,
        )
        return {}
    # Here, because it imports matplotlib.
    from densenet_flax.evaluation.report.cautions import verdict
    from densenet_flax.evaluation.report.report import write_report

    notes = [] if point else ["No image is a validation image of all runs: the threshold is 0.5."]
    metrics = write_report(
        folder / "report",
        test.combined(combination),
        info=_info(prepared, folder, files, combination, notes),
        validation=validation.combined(combination) if validation else None,
        operating_point=point,
    )
    logging.info("%s", verdict(metrics))
    logging.info("report: %s", folder / "report" / "report.html")
    return metrics


def _write_member(folder: Path, number: int, run: str) -> str:
    """Writes the weights of a run; returns the name of the file.

    The name has a digest of the content, so that members never replace those of another ensemble,
    which is whole until its `ensemble.json` is replaced.
    """
    variables, info = read_weights(run)
    path = folder / f"new-member{number}.safetensors"
    save_weights(path, variables, info)
    name = f"member{number}-{file_sha256(path)[:8]}.safetensors"
    path.rename(folder / name)
    return name


def _is_member(path: Path) -> bool:
    return bool(_MEMBER.fullmatch(path.name))


def _prepare(run: str, member: Classifier) -> PreparedRun:
    """Opens the data of a run, which is evaluated as it was the last time."""
    directory = Workdir(run)
    experiment = resolve(directory.require_config())
    if point := member.info.inference.operating_point:
        evaluation = dataclasses.replace(
            experiment.evaluation,
            threshold="fixed" if point.rule == LIKELIEST else point.rule,
            calibration=point.method,
            tta=point.tta,
        )
        experiment = dataclasses.replace(experiment, evaluation=evaluation)
    return prepare_run(experiment, directory)


@dataclasses.dataclass(frozen=True, eq=False)
class _Tables:
    """Images of a subset that all runs have, and each network's probabilities of them."""

    table: Predictions
    each: list[np.ndarray]

    def combined(self, combination: Combination) -> Predictions:
        """The table with the ensemble's probabilities."""
        return dataclasses.replace(self.table, probability=combination(self.each))


def _common_table(
    prepared: Sequence[PreparedRun], members: Mapping[str, Classifier], subset: str
) -> _Tables | None:
    """The images that are in this subset of every run; None if there are none."""
    first, *others = prepared
    for run in others:
        if run.dataset.fingerprint != first.dataset.fingerprint:
            raise InputError(
                f"{run.workdir.path}: is of other images, or of another size, than "
                f"{first.workdir.path}; members of an ensemble are of the same data"
            )
    rows = getattr(first.split, subset)
    for run in others:
        rows = np.intersect1d(rows, getattr(run.split, subset))
    if not len(rows):
        return None
    tables = {
        name: predict_rows(
            run, member.network, member.variables, subset, run.experiment.batch_size, rows
        )
        for run, (name, member) in zip(prepared, members.items(), strict=True)
    }
    each = [table.probability for table in align(tables).values()]
    if each[0].ndim == 1:  # of two classes a table has that of the second one
        each = [np.stack([1 - p, p], axis=1) for p in each]
    return _Tables(next(iter(tables.values())), each)


def _info(
    prepared: Sequence[PreparedRun],
    folder: Path,
    files: Mapping[str, str],
    combination: Combination,
    notes: list[str],
) -> JsonDict:
    dataset = prepared[0].dataset
    drawn = ["The images are drawn by a program. They are not tissue."]
    disjoint = all(run.split.patient_disjoint for run in prepared)
    return {
        "title": folder.name,
        "warnings": [*(drawn if dataset.name == "drawn" else []), *notes, *dataset.notes],
        "split": {"patient_disjoint": disjoint or None},
        "weights": {
            "ensemble": f"weighted mean of {combination.combine}",
            **{
                name: f"{run}, weight {weight:.3g}"
                for (name, run), weight in zip(files.items(), combination.weights, strict=True)
            },
        },
    }


def _log(files: Mapping[str, str], combination: Combination, folder: Path) -> None:
    for (name, run), weight in zip(files.items(), combination.weights, strict=True):
        logging.info("%s: %s, weight %.3g", folder / name, run, weight)
    logging.info("%s: mean of %s", folder / FILE, combination.combine)
