"""Cross-validation as one command: a run per fold, then all of them together."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from absl import logging
from ml_collections import ConfigDict

from densenet_flax.common.errors import InputError
from densenet_flax.common.sharding import is_first_process
from densenet_flax.evaluation.report import cautions
from densenet_flax.experiments.run import train_and_evaluate
from densenet_flax.storage.workdir import Workdir

OFFICIAL_FOLDS = 5


def cross_validate(config: ConfigDict, workdir: str) -> dict[str, Any]:
    """Trains and evaluates every fold in a work directory of its own, then pools them.

    Folds that are done are left alone, and one that was interrupted goes on, so the same command
    can be given again at any time.

    Args:
      config: as for `train_and_evaluate`. `split.policy` 'official' takes BreakHis's five folds;
        'kfold', and 'patient', which becomes it, `split.folds` folds of patients.
      workdir: gets `fold1`, `fold2`, … and `report`.

    Returns:
      The content of `report/metrics.json`.

    Raises:
      InputError: as `train_and_evaluate`; or the policy has no folds.
      Stopped: as `train_and_evaluate`.
    """
    # Here, because scikit-learn and matplotlib would delay the first step.
    from densenet_flax.evaluation import read_csv
    from densenet_flax.evaluation.report.folds_report import folds_verdict, write_folds_report

    place = Workdir(workdir)
    if place.has_begun:
        raise InputError(
            f"{place.path}: holds a run of its own; choose another --workdir for the folds"
        )
    count = count_folds(config)
    folds = [place.path / f"fold{number}" for number in range(1, count + 1)]
    with place.lock():
        for number, folder in enumerate(folds, start=1):
            wanted = of_fold(config, number)
            if _is_done(folder, wanted):
                logging.info("fold %d of %d: done already", number, count)
                continue
            logging.info("fold %d of %d: %s", number, count, folder)
            train_and_evaluate(wanted, str(folder))
        if not is_first_process():
            return {}
        reports = [_report(folder) for folder in folds]
        tables = [
            read_csv(folder / "report" / "predictions.csv", tuple(report["class_names"]))
            for folder, report in zip(folds, reports, strict=True)
        ]
        metrics = write_folds_report(
            place.report,
            tables,
            [f"fold {number}" for number in range(1, count + 1)],
            {
                "title": place.path.name,
                "warnings": _common_warnings(reports),
                "config": of_fold(config, 0).to_dict(),
            },
            links=[
                os.path.relpath(folder / "report" / "report.html", place.report) for folder in folds
            ],
        )
        logging.info("%s", folds_verdict(metrics))
        logging.info("report: %s", place.report / "report.html")
        return metrics


def count_folds(config: ConfigDict) -> int:
    """How many folds the split of a configuration has.

    Raises:
      InputError: its policy has none, or their number makes no sense.
    """
    policy = config.split.policy
    if policy == "official":
        return OFFICIAL_FOLDS
    if policy not in ("kfold", "patient"):
        raise InputError(
            f"split.policy={policy!r} has no folds; cross-validation takes 'kfold' or 'official'"
        )
    folds = config.split.folds
    if not isinstance(folds, int) or folds < 2:
        raise InputError(f"split.folds={folds}: expected at least 2")
    return folds


def of_fold(config: ConfigDict, number: int) -> ConfigDict:
    """The configuration of one fold, from 1; with 0 what all have in common."""
    other = config.copy_and_resolve_references()
    with other.unlocked():
        if other.split.policy != "official":
            other.split.policy = "kfold"
        other.split.fold = number
        if not number:
            del other.split.fold
    return other


def _is_done(folder: Path, config: ConfigDict) -> bool:
    """Whether a fold was evaluated with this configuration, all its keys."""
    report = _report(folder) if (folder / "report" / "report.html").is_file() else {}
    mine = json.loads(json.dumps(config.to_dict()))
    theirs = report.get("run", {}).get("config")
    return bool(report) and _without_places(theirs) == _without_places(mine)


def _without_places(config: Any) -> Any:
    """A configuration but for where things lie and how they are read."""
    if not isinstance(config, Mapping):
        return config
    rest = {k: v for k, v in config.items() if k not in ("cache", "cache_dir", "tensorboard")}
    return {**rest, "data": {k: v for k, v in rest.get("data", {}).items() if k != "path"}}


def _report(folder: Path) -> dict[str, Any]:
    path = folder / "report" / "metrics.json"
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path}: cannot be read ({error}); remove {folder / 'report'} and start again"
        ) from error


def _common_warnings(reports: list[dict[str, Any]]) -> list[str]:
    """What every fold warns of; the rest is about one fold and stands in its report."""
    first, *others = (report.get("warnings", []) for report in reports)
    common = [line for line in first if all(line in other for other in others)]
    of_numbers = cautions.warnings(reports[0])  # of one fold's, which all folds together are not
    return [
        f"In each fold: {line[0].lower()}{line[1:]}" if line in of_numbers else line
        for line in common
    ]
