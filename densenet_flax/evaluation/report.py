"""One directory that says how good the network is: numbers, table, pictures and a page."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from densenet_flax.evaluation import figures, sections
from densenet_flax.evaluation.files import replace_files
from densenet_flax.evaluation.metrics import evaluate
from densenet_flax.evaluation.predictions import Predictions

# Below this many patients of a class, one patient moves its recall by more than ten points.
FEW_PATIENTS = 10
_PICTURES = ("curves.png", "confusion_matrix.png", "roc.png", "patients.png")


def write_report(
    directory: str | os.PathLike[str],
    predictions: Predictions,
    history: Sequence[Mapping[str, Any]] = (),
    info: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Writes metrics.json, predictions.csv, the pictures and report.html.

    Everything is made in memory and written under temporary names first, so that an error or an
    interruption leaves an earlier report as it was.

    Args:
        directory: Made if it does not exist; other files in it are left alone.
        predictions: Of images that the network was not trained on.
        history: One mapping per epoch, see docs/report.md; may be empty.
        info: What the page says about the run, see docs/report.md; every key may be missing.

    Returns:
        What metrics.json holds: `evaluate(predictions)`, and 'warnings' and 'run' (the info).

    Raises:
        InputError: The directory cannot be written to.
    """
    run = _jsonable(info or {})
    epochs = _jsonable(list(history))
    metrics = evaluate(predictions)
    given = run.pop("warnings", None) or []
    metrics["run"] = run
    metrics["warnings"] = [*map(str, given), *_warnings(metrics)]

    drawn = {
        "confusion_matrix.png": figures.confusion_matrix(predictions),
        "roc.png": figures.roc(predictions),
        "patients.png": figures.patient_dots(predictions),
    }
    if epochs:
        drawn["curves.png"] = figures.training_curves(epochs)
    pngs = {name: figures.png(figure) for name, figure in drawn.items()}
    text = json.dumps(metrics, indent=2, allow_nan=False) + "\n"
    html = sections.report_page(verdict(metrics), metrics, predictions, epochs, pngs)
    replace_files(
        directory,
        {
            "predictions.csv": predictions.to_csv(),
            **pngs,
            "metrics.json": text.encode(),
            # An odd byte in a file name is no UTF-8; a page can only show its code.
            "report.html": html.encode("utf-8", "backslashreplace"),
        },
    )
    for name in set(_PICTURES) - set(pngs):  # left by an earlier report
        (Path(directory) / name).unlink(missing_ok=True)
    return metrics


def verdict(metrics: Mapping[str, Any]) -> str:
    """The one sentence; "never seen in training" only if `run.split` vouches for it."""
    image, patient = metrics["image"], metrics["patient"]
    split = metrics.get("run", {}).get("split") or {}
    unseen = " never seen in training" if split.get("patient_disjoint") is True else ""
    return (
        f"Accuracy {image['accuracy']:.2f} on {_count(image['n'], 'image')} "
        f"of {_count(patient['n'], 'patient')}{unseen}"
    )


def _warnings(metrics: Mapping[str, Any]) -> list[str]:
    """What the numbers themselves say against being believed."""
    lines = []
    image, patient = metrics["image"], metrics["patient"]
    names = metrics["class_names"]
    cells = image["confusion"]
    totals = (cells["tn"] + cells["fp"], cells["fn"] + cells["tp"])
    if (metrics["run"].get("split") or {}).get("patient_disjoint") is False:
        lines.append(
            "Patients on both sides of the split: the network has seen other images of the same "
            "tissue, so these figures are too good for a new patient."
        )
    for name, total in zip(names, totals, strict=True):
        if total == 0:
            lines.append(f"There is not one {name} image here, so most metrics do not exist.")
    few = {name: patient["n_by_class"][name] for name in names}
    few = {name: n for name, n in few.items() if 0 < n < FEW_PATIENTS}
    if few:
        counted = " and ".join(_count(n, f"{name} patient") for name, n in few.items())
        lines.append(
            f"Only {counted}: another choice of patients could change every figure by much."
        )
    mixed = patient["n_by_class"].get("both", 0)
    if mixed:
        lines.append(
            f"{_count(mixed, 'patient')} with images of both classes: they have no single true "
            "class, so of the patient-level metrics only the recognition rate exists."
        )
    always = max(totals) / image["n"]
    if min(totals) and image["accuracy"] <= always:
        common = names[totals.index(max(totals))]
        lines.append(
            f"Accuracy {image['accuracy']:.3f} is no better than calling every image {common} "
            f"({always:.3f})."
        )
    return lines


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


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
