"""One directory that says how good the network is: numbers, table, pictures, page and card."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from densenet_flax.evaluation.metrics.assessment import assess
from densenet_flax.evaluation.metrics.intervals import RESAMPLES, Settings
from densenet_flax.evaluation.metrics.operating_point import OperatingPoint, choose_operating_point
from densenet_flax.evaluation.predictions import Predictions
from densenet_flax.evaluation.report import cautions, class_figures, figures, sections
from densenet_flax.evaluation.report.cautions import verdict
from densenet_flax.evaluation.report.gallery import read_gallery
from densenet_flax.evaluation.report.model_card import model_card
from densenet_flax.evaluation.report.wording import PICTURES
from densenet_flax.storage.atomic import replace_files


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
) -> dict[str, Any]:
    """Writes metrics.json, predictions.csv, the pictures, report.html and MODEL_CARD.md.

    Everything is made in memory and written under temporary names first, so that an error or an
    interruption leaves an earlier report as it was.

    Args:
        directory: Made if it does not exist; other files in it are left alone.
        predictions: Of images that the network was not trained on.
        history: One mapping per epoch, see docs/report.md; may be empty.
        info: What the page says about the run, see docs/report.md; every key may be missing.
        validation: Predictions of the validation images. Without an operating point, threshold
            and temperature are chosen on them; they are also the report's comparison.
        operating_point: Threshold and temperature that were chosen before, and win.
        rule: How to choose the threshold if it is chosen here: 'fixed', 'youden' or
            'sensitivity>=s'.
        resamples: For the intervals.
        seed: For the same.

    Returns:
        What metrics.json holds: `assess(...)`, and 'warnings' and 'run' (the info).

    Raises:
        InputError: The directory cannot be written to, a rule or a gallery picture is none, or
            an image is in both tables.
    """
    settings = Settings(resamples, seed)
    given_info = dict((info or {}).items())
    gallery = read_gallery(given_info.pop("gallery", None) or ())
    run = _jsonable(given_info)
    if gallery:
        run["gallery"] = [picture.caption for picture in gallery]
    epochs = _jsonable(list(history))
    if operating_point is None and validation is not None:
        operating_point = choose_operating_point(validation, rule)
    if operating_point is not None:
        predictions = operating_point.apply(predictions)
        validation = validation and operating_point.apply(validation)

    metrics = assess(predictions, validation, operating_point, settings)
    given = run.pop("warnings", None) or []
    metrics["run"] = run
    metrics["warnings"] = [*map(str, given), *cautions.warnings(metrics)]
    files, pngs = _draw(predictions, metrics, epochs)
    text = json.dumps(metrics, indent=2, allow_nan=False) + "\n"
    said = verdict(metrics)
    html = sections.report_page(said, metrics, predictions, epochs, pngs, gallery)
    replace_files(
        directory,
        {
            "predictions.csv": predictions.to_csv(),
            **files,
            "metrics.json": text.encode(),
            # An odd byte in a file name is no UTF-8; a page can only show its code.
            "MODEL_CARD.md": model_card(said, metrics).encode("utf-8", "backslashreplace"),
            "report.html": html.encode("utf-8", "backslashreplace"),
        },
    )
    left = {f"{name}.{kind}" for name in PICTURES for kind in ("png", "pdf")} - set(files)
    for name in left:  # by an earlier report
        (Path(directory) / name).unlink(missing_ok=True)
    return metrics


def _draw(
    predictions: Predictions, metrics: Mapping[str, Any], epochs: Sequence[Mapping[str, Any]]
) -> tuple[dict[str, bytes], dict[str, bytes]]:
    """All picture files, and those for the page."""
    drawn = {"reliability": figures.reliability(metrics["calibration"], metrics["positive_class"])}
    if len(predictions.class_names) == 2:
        drawn |= {
            "confusion_matrix": figures.confusion_matrix(predictions),
            "roc": figures.roc(predictions, metrics["intervals"]),
            "precision_recall": figures.precision_recall(predictions, metrics["intervals"]),
            "patients": figures.patient_dots(predictions),
        }
    else:
        drawn["roc"] = class_figures.roc(predictions, metrics["by_class"])
        for unit, end in (("image", ""), ("patient", "_patients")):
            counts = metrics[unit]["confusion"]
            if counts:
                drawn[f"confusion_matrix{end}"] = class_figures.confusion_matrix(
                    counts, predictions.class_names, f"{unit}s"
                )
    if epochs:
        drawn["curves"] = figures.training_curves(epochs)
    pngs = {f"{name}.png": figures.png(figure) for name, figure in drawn.items()}
    pdfs = {f"{name}.pdf": figures.pdf(figure) for name, figure in drawn.items()}
    return {**pngs, **pdfs}, pngs


def _jsonable(value: Any) -> Any:
    """The same value in JSON's types; nothing that a config may hold makes it fail."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping) or hasattr(value, "items"):  # ConfigDict is no Mapping
        return {str(key): _jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset | np.ndarray):
        return [_jsonable(item) for item in value]
    return str(value)
