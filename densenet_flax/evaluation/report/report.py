"""Writes the directory that says how good a network is: numbers, table, figures, page and card."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from matplotlib.figure import Figure

from densenet_flax.common.trees import JsonDict
from densenet_flax.evaluation.metrics.bootstrap import RESAMPLES, Bootstrap
from densenet_flax.evaluation.metrics.compute import assess
from densenet_flax.evaluation.metrics.feature_space import FeatureSpace
from densenet_flax.evaluation.metrics.operating_point import OperatingPoint, choose_operating_point
from densenet_flax.evaluation.predictions import Predictions
from densenet_flax.evaluation.report import (
    cautions,
    feature_figures,
    figures,
    multiclass_figures,
    plotting,
    tables,
)
from densenet_flax.evaluation.report.gallery import GalleryImage, read_gallery
from densenet_flax.evaluation.report.model_card import model_card
from densenet_flax.evaluation.report.rendering import render
from densenet_flax.evaluation.report.run_info import to_json
from densenet_flax.evaluation.report.wording import (
    RECOGNITION_RATE,
    confusion_counts,
    majority_class,
    wording_for,
    wrong_images,
)
from densenet_flax.storage.atomic import replace_files

# Every figure that a report may have; their captions are in templates/figures.html.
FIGURES = (
    "curves",
    "confusion_matrix",
    "confusion_matrix_patients",
    "roc",
    "precision_recall",
    "decision_curve",
    "reliability",
    "patients",
    "features_by_class",
    "features_by_patient",
)

# The keys of `info` that hold pictures.
_PICTURES = ("gallery", "neighbors")
_Pictures: TypeAlias = Mapping[str, Mapping[str, list[GalleryImage]]]


def write_report(
    directory: str | os.PathLike[str],
    predictions: Predictions,
    history: Sequence[Mapping[str, Any]] = (),
    info: Mapping[str, Any] | None = None,
    *,
    validation: Predictions | None = None,
    operating_point: OperatingPoint | None = None,
    rule: str = "fixed",
    resamples: int = RESAMPLES,
    seed: int = 0,
    features: FeatureSpace | None = None,
) -> JsonDict:
    """Writes metrics.json, predictions.csv, the figures, report.html and MODEL_CARD.md.

    Everything is made in memory and written under temporary names first, so that an error or an
    interruption leaves an earlier report as it was.

    Args:
      directory: made if it does not exist; other files in it are left alone.
      predictions: of images that the network was not trained on.
      history: one mapping per epoch, see docs/report.md; may be empty.
      info: what the page says about the run, see docs/report.md; every key may be missing.
      validation: predictions of the validation images. Without an operating point, threshold and
        temperature are chosen on them; their calibration is reported beside that of the test
        images.
      operating_point: threshold and temperature that were chosen before; takes precedence over
        `validation` and `rule`.
      rule: how to choose the threshold on `validation`: 'fixed', 'youden', 'f1',
        'sensitivity>=s' or 'cost=c'.
      resamples: number of bootstrap resamples for the intervals.
      seed: of the resampling.
      features: of the images of `predictions`, for the section about them.

    Returns:
      The content of metrics.json: what `assess` returns, 'warnings', 'run' (the info) and, if
      there are some, 'features'.

    Raises:
      InputError: the directory cannot be written to, the rule or a gallery image is invalid, or
        an image is in both tables.
    """
    run, warnings, pictures = _read_info(info or {})
    if operating_point is None and validation is not None:
        operating_point = choose_operating_point(validation, rule)
    if operating_point is not None:
        predictions = operating_point.apply(predictions)
        validation = validation and operating_point.apply(validation)
    bootstrap = Bootstrap(resamples, seed)
    metrics: JsonDict = {**assess(predictions, validation, operating_point, bootstrap)}
    metrics["run"] = run
    # The run's own come first: what only the run knows, such as random weights, outweighs the rest.
    metrics["warnings"] = [*warnings, *cautions.warnings(metrics)]
    if features:
        metrics["features"] = features.summary

    # Everything is made before the first file is written, so that an error keeps the old report.
    drawn = _draw(predictions, metrics, to_json(list(history)), features)
    pngs = {name: plotting.png(figure) for name, figure in drawn.items()}
    pdfs = {name: plotting.pdf(figure) for name, figure in drawn.items()}
    # The files are replaced in this order: when report.html is new, so is everything beside it.
    replace_files(
        directory,
        {
            "predictions.csv": predictions.to_csv(),
            **{f"{name}.png": data for name, data in pngs.items()},
            **{f"{name}.pdf": data for name, data in pdfs.items()},
            "metrics.json": (json.dumps(metrics, indent=2, allow_nan=False) + "\n").encode(),
            "MODEL_CARD.md": model_card(metrics),
            "report.html": _page(metrics, predictions, pngs, pictures),
        },
    )
    # An earlier report may have had figures that this one lacks; they would contradict it.
    for name in set(FIGURES) - drawn.keys():
        for kind in ("png", "pdf"):
            (Path(directory) / f"{name}.{kind}").unlink(missing_ok=True)
    return metrics


def _read_info(info: Mapping[str, Any]) -> tuple[JsonDict, list[str], _Pictures]:
    """What metrics.json holds of the run, the run's own warnings, and its pictures."""
    run = to_json({key: value for key, value in info.items() if key not in _PICTURES})
    pictures = {key: read_gallery(info.get(key) or ()) for key in _PICTURES}
    for key in _PICTURES:
        if pictures[key]:
            # The images are in the page; metrics.json is for programs, and stays small.
            run[key] = [str(item.get("caption", "")) for item in info[key]]
    warnings = [str(line) for line in run.pop("warnings", None) or ()]
    return run, warnings, pictures


def _draw(
    predictions: Predictions,
    metrics: JsonDict,
    history: Sequence[Mapping[str, Any]],
    features: FeatureSpace | None,
) -> dict[str, Figure]:
    """Draws every figure that exists for these classes, by file name."""
    drawn = {"reliability": figures.reliability(metrics["calibration"], metrics["positive_class"])}
    if len(predictions.class_names) == 2:
        drawn |= {
            "confusion_matrix": figures.confusion_matrix(predictions),
            "roc": figures.roc(predictions, metrics["intervals"]),
            "precision_recall": figures.precision_recall(predictions, metrics["intervals"]),
            "patients": figures.patient_dots(predictions),
        }
        if clinic := metrics["clinic"]:
            drawn["decision_curve"] = figures.decision_curve(clinic["decision_curve"])
    else:
        drawn["roc"] = multiclass_figures.roc(predictions, metrics["by_class"])
        for level, suffix in (("image", ""), ("patient", "_patients")):
            if metrics[level]["confusion"]:
                drawn[f"confusion_matrix{suffix}"] = multiclass_figures.confusion_matrix(
                    confusion_counts(metrics[level]), predictions.class_names, f"{level}s"
                )
    if history:
        drawn["curves"] = figures.training_curves(history)
    if features:
        drawn["features_by_class"] = feature_figures.features_by_class(features, predictions)
        drawn["features_by_patient"] = feature_figures.features_by_patient(features, predictions)
    return drawn


def _page(
    metrics: JsonDict,
    predictions: Predictions,
    pngs: Mapping[str, bytes],
    pictures: _Pictures,
) -> bytes:
    run, wording = metrics["run"], wording_for(metrics)
    split = run.get("split") or {}
    facts, overlap = tables.split_facts(split)
    constant_class, constant_accuracy = majority_class(metrics)
    point = metrics["operating_point"]
    # A rule that could not be applied leaves 0.5, and a note is the only trace of it.
    chosen = point and point["rule"] != "fixed"
    chosen = chosen and not any(note.startswith("threshold left") for note in point["notes"])
    return render(
        "report.html",
        metrics=metrics,
        run=run,
        title=str(run.get("title") or "Evaluation report"),
        verdict=cautions.verdict(metrics),
        constant_class=constant_class,
        constant_accuracy=constant_accuracy,
        threshold_was_chosen=chosen,
        key_figures=tables.key_figures(metrics),
        pngs=pngs,
        all_metrics=tables.all_metrics(metrics),
        undefined=tables.undefined_metrics(metrics),
        by_class=tables.by_class(metrics),
        undefined_by_class=tables.undefined_by_class(metrics),
        clinic=tables.clinic(metrics),
        calibration_scores=tables.calibration_scores(metrics),
        calibration_bins=tables.calibration_bins(metrics),
        by_magnification=tables.by_magnification(
            metrics, ("accuracy", RECOGNITION_RATE, *wording.group_metrics)
        ),
        by_subtype=tables.by_subtype(metrics),
        by_patient=tables.by_patient(metrics),
        mistakes=tables.mistakes(predictions),
        wrong_images=wrong_images(metrics),
        gallery=pictures["gallery"],
        neighbors=pictures["neighbors"],
        features=tables.features(metrics),
        flow=tables.flow_of_cases(run),
        overlap=overlap,
        split_facts=facts,
        details={key: run[key] for key in ("weights", "device", "computation") if run.get(key)},
    )
