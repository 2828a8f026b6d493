"""Cross-validation: a run for each fold, then a report on all folds together."""

import dataclasses
from pathlib import Path

import numpy as np
from absl import logging
from ml_collections import ConfigDict

from densenet_flax.common.errors import InputError
from densenet_flax.common.sharding import broadcast, is_first_process
from densenet_flax.common.trees import JsonDict
from densenet_flax.data.breakhis.folds import FOLDS
from densenet_flax.evaluation.report import cautions
from densenet_flax.experiments.evaluate_run import REPORT_FILES
from densenet_flax.experiments.experiment import Experiment
from densenet_flax.experiments.from_config import resolve
from densenet_flax.experiments.run import train_and_evaluate
from densenet_flax.storage.checkpoint import Checkpoints
from densenet_flax.storage.checksums import check_files
from densenet_flax.storage.json_files import read_json_object
from densenet_flax.storage.workdir import Workdir
from densenet_flax.weights.hub_names import PREFIX


def cross_validate(config: ConfigDict, workdir: str) -> JsonDict:
    """Trains and evaluates every fold in a work directory of its own, then pools them.

    The same command can be run again: complete folds are skipped, an interrupted one is resumed.

    Args:
      config: as for `train_and_evaluate`. `split.policy` 'official' takes BreakHis's five folds;
        'kfold', and 'patient' or 'auto', which become it, `split.folds` folds of patients; 'given'
        the folds that the data states.
      workdir: gets `fold1`, `fold2`, … and `report`.

    Returns:
      The content of `report/metrics.json`; {} in all processes but the first.

    Raises:
      InputError, Stopped: as `train_and_evaluate`; or the policy has no folds.
    """
    count = count_folds(config)
    resolve(config_of_fold(config, 1))  # a mistake is found before the directory is created
    directory = Workdir(workdir)
    if directory.has_begun:
        raise InputError(
            f"{directory.path}: holds a run of its own; choose another --workdir for the folds"
        )
    folders = [directory.path / f"fold{number}" for number in range(1, count + 1)]
    # A fold locks its own directory; this lock keeps another cross-validation away.
    with directory.lock():
        for number, folder in enumerate(folders, start=1):
            fold_config = config_of_fold(config, number)
            if broadcast(np.array(_is_done(folder, fold_config))):
                logging.info("fold %d of %d: done already", number, count)
                continue
            logging.info("fold %d of %d: %s", number, count, folder)
            train_and_evaluate(fold_config, str(folder), weights=_common_weights(folders))
        if not is_first_process():
            return {}
        return _report_on_folds(directory, folders, config_of_fold(config, None).to_dict())


def _common_weights(folders: list[Path]) -> str:
    """What the folds that have begun started from on the Hub; '' if it cannot change.

    A name there may mean other weights by the time that the next fold begins.
    """
    for folder in folders:
        if Workdir(folder).has_begun:
            meta = Checkpoints(Workdir(folder).checkpoints, read_only=True).read_meta()
            source = str(meta.get("network", {}).get("source", ""))
            return source if source.startswith(PREFIX) else ""
    return ""


def count_folds(config: ConfigDict) -> int:
    """The number of folds; an InputError if the policy has none, or fewer than two."""
    policy, folds = config.split.policy, config.split.folds
    if policy == "official":
        return len(FOLDS)
    if policy not in ("kfold", "patient", "auto", "given"):
        raise InputError(
            f"config.split.policy={policy!r}: has no folds; cross-validation takes 'kfold', "
            "'patient', 'given' or 'official'"
        )
    if not isinstance(folds, int) or folds < 2:
        raise InputError(f"config.split.folds={folds}: expected at least 2")
    return folds


def config_of_fold(config: ConfigDict, fold: int | None) -> ConfigDict:
    """The configuration of one fold, from 1; of None what all folds have in common."""
    changed = config.copy_and_resolve_references()
    with changed.unlocked():
        # 'patient' and 'auto' are a single split by the same rule.
        if changed.split.policy in ("patient", "auto"):
            changed.split.policy = "kfold"
        if fold is None:
            del changed.split.fold
        else:
            changed.split.fold = fold
    return changed


def _report_on_folds(directory: Workdir, folders: list[Path], config: JsonDict) -> JsonDict:
    # Here, because matplotlib would delay the first step.
    from densenet_flax.evaluation.predictions_csv import read_csv
    from densenet_flax.evaluation.report.folds_report import folds_verdict, write_folds_report

    reports = [_read_metrics(folder) for folder in folders]
    tables = [
        read_csv(folder / "report" / "predictions.csv", tuple(report["class_names"]))
        for folder, report in zip(folders, reports, strict=True)
    ]
    names = [f"fold {number}" for number in range(1, len(folders) + 1)]
    warnings = _common_warnings(reports)
    info = {"title": directory.path.name, "warnings": warnings, "config": config}
    # Relative, so that the directory can be moved.
    links = [f"../{folder.name}/report/report.html" for folder in folders]
    metrics = write_folds_report(directory.report, tables, names, info, links=links)
    logging.info("%s", folds_verdict(metrics))
    logging.info("report: %s", directory.report / "report.html")
    return metrics


def _is_done(folder: Path, config: ConfigDict) -> bool:
    """Whether a fold was evaluated with this configuration, apart from paths."""
    report = folder / "report"
    if not (report / "report.html").is_file():
        return False
    try:
        check_files(report, REPORT_FILES)
        metrics = _read_metrics(folder)
    except InputError as error:
        logging.warning("%s; the fold is evaluated again", error)
        return False
    try:
        return _comparable(metrics["run"]["config"]) == _comparable(config)
    except InputError:  # it has keys of another version
        return False


def _comparable(config: ConfigDict | JsonDict) -> Experiment:
    """The experiment but for where data is and how it is read."""
    experiment = resolve(config)
    data = dataclasses.replace(experiment.data, path="")
    return dataclasses.replace(
        experiment, config={}, cache="auto", cache_dir="", tensorboard=False, data=data
    )


def _read_metrics(folder: Path) -> JsonDict:
    """The `metrics.json` of a fold; InputError unless it has all that is read here."""
    path = folder / "report" / "metrics.json"
    advice = f"remove {folder / 'report'} and start again"
    metrics = read_json_object(path, advice)
    names, warnings = metrics.get("class_names"), metrics.get("warnings")
    texts = (
        [*names, *warnings] if isinstance(names, list) and isinstance(warnings, list) else [None]
    )
    run = metrics.get("run")
    if not all(isinstance(text, str) for text in texts) or not isinstance(run, dict):
        raise InputError(f"{path}: not the numbers of a report; {advice}")
    return {**metrics, "run": {"config": {}, **run}}


def _common_warnings(reports: list[JsonDict]) -> list[str]:
    """The warnings that all folds share; the others are about one fold and in its report."""
    first, *others = (report.get("warnings", []) for report in reports)
    common = [line for line in first if all(line in other for other in others)]
    # Those about numbers hold for each fold and not for all folds together.
    about_numbers = cautions.warnings(reports[0])
    return [
        f"In each fold: {line[0].lower()}{line[1:]}" if line in about_numbers else line
        for line in common
    ]
