"""What report.html says, in the order a reader asks.

How good, how far to trust it, how it came about, where it fails, and what exactly was run.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from densenet_flax.evaluation import page
from densenet_flax.evaluation.predictions import Predictions

FOOTER = "Research use only, not for diagnosis."
_MISTAKES = 10
# Longer tables start folded.
_OPEN_ROWS = 20

_METRICS = (
    ("accuracy", "Accuracy", "share that is right"),
    ("balanced_accuracy", "Balanced accuracy", "mean of sensitivity and specificity"),
    ("sensitivity", "Sensitivity", "share of {positive} that is found"),
    ("specificity", "Specificity", "share of {negative} that is left alone"),
    ("precision", "Precision", "share of {positive} calls that are right"),
    ("f1", "F1", "harmonic mean of precision and sensitivity"),
    ("mcc", "Matthews correlation", "−1 to 1; 0 is chance"),
    ("roc_auc", "ROC-AUC", "over all thresholds; 0.5 is chance"),
    ("pr_auc", "PR-AUC", "average precision; the share of {positive} is chance"),
)


def report_page(
    verdict: str,
    metrics: Mapping[str, Any],
    predictions: Predictions,
    history: Sequence[Mapping[str, Any]],
    pngs: Mapping[str, bytes],
) -> str:
    """The whole page.

    Args:
        verdict: The sentence at the top.
        metrics: As `evaluate` returns them, with 'warnings' and 'run'.
        predictions: For the list of mistakes.
        history: One mapping per epoch; may be empty.
        pngs: Pictures by file name.
    """
    run = metrics["run"]
    title = str(run.get("title") or "Evaluation report")
    parts = [
        page.heading(title, verdict),
        page.paragraph(_second_sentence(metrics), "soft"),
        page.tiles(_tiles(metrics)),
        page.warnings(metrics["warnings"]),
        page.section("In pictures", _pictures(metrics, history, pngs)),
        page.section("All metrics", *_all_metrics(metrics)),
        page.section("By magnification", _by_magnification(metrics["by_magnification"])),
        page.section("By subtype", _by_subtype(metrics["by_subtype"])),
        page.section("By patient", _by_patient(metrics)),
        page.section("Most confident mistakes", _mistakes(predictions)),
        page.section("Training and test data", *_split(run.get("split") or {})),
        page.section("How it was made", *_run(run)),
    ]
    return page.document(title, "".join(parts), FOOTER)


def _second_sentence(metrics: Mapping[str, Any]) -> str:
    cells, n = metrics["image"]["confusion"], metrics["image"]["n"]
    totals = (cells["tn"] + cells["fp"], cells["fn"] + cells["tp"])
    common = metrics["class_names"][totals.index(max(totals))]
    return (
        f"Calling every image {common} would score {max(totals) / n:.2f}. An image is called "
        f"{metrics['positive_class']} where P({metrics['positive_class']}) is at least "
        f"{metrics['threshold']:.3g}."
    )


def _tiles(metrics: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    image, patient = metrics["image"], metrics["patient"]
    for value, name in (
        (image["accuracy"], "accuracy, images"),
        (image["sensitivity"], "sensitivity, images"),
        (image["specificity"], "specificity, images"),
        (image["roc_auc"], "ROC-AUC, images"),
        (patient["patient_recognition_rate"], "patient recognition rate"),
        (patient["patient_accuracy_by_mean_probability"], "patient accuracy by mean probability"),
    ):
        yield page.number(value), name


def _pictures(
    metrics: Mapping[str, Any],
    history: Sequence[Mapping[str, Any]],
    pngs: Mapping[str, bytes],
) -> str:
    captions = {
        "curves.png": (
            "Training curves",
            "Loss and accuracy after each epoch; a vertical line is where a stage begins.",
        ),
        "confusion_matrix.png": (
            "Confusion matrix",
            "Images: counts, and shares of each true class.",
        ),
        "roc.png": (
            "ROC curves",
            "Images, and patients by their mean probability; the marks are the threshold in use.",
        ),
        "patients.png": (
            "Probability of every image, by patient",
            "A line per patient, a dot per image, a diamond for the patient's mean; × before a "
            "name is a patient whose mean is on the wrong side.",
        ),
    }
    shown = page.pictures(
        page.picture(pngs[name], alt, f"{alt}. {text}")
        for name, (alt, text) in captions.items()
        if name in pngs
    )
    if history:
        return shown
    return page.paragraph("No training history was given, so there are no curves.", "soft") + shown


def _all_metrics(metrics: Mapping[str, Any]) -> Iterator[str]:
    image, patient = metrics["image"], metrics["patient"]
    negative, positive = metrics["class_names"]
    mean = {**patient, "accuracy": patient["patient_accuracy_by_mean_probability"]}
    yield page.table(
        ["", "images", "patients by mean probability", "what it is"],
        [
            [name, image[key], mean.get(key), text.format(negative=negative, positive=positive)]
            for key, name, text in _METRICS
        ],
    )
    yield page.paragraph(
        f"Patient recognition rate {page.number(patient['patient_recognition_rate'])}: the mean "
        "over patients of the share of their images that is right, as the BreakHis protocol "
        "defines it. It is not the patient accuracy by mean probability, which calls each patient "
        "once."
    )
    names = {key: name for key, name, _ in _METRICS}
    names["patient_accuracy_by_mean_probability"] = names["accuracy"]
    missing: dict[str, list[str]] = {}  # few reasons, many metrics
    for unit, result in (("images", image), ("patients", patient)):
        for key, reason in result["undefined"].items():
            if key in names:
                missing.setdefault(f"{unit}: {reason}", []).append(names[key])
    if missing:
        yield page.paragraph("What does not exist, and why:", "soft") + page.bullets(
            f"{reason}, so no {', '.join(which)}" for reason, which in missing.items()
        )


def _by_magnification(rows: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        return ""
    columns = {
        "n": "images",
        "patients": "patients",
        "accuracy": "accuracy",
        "patient_recognition_rate": "patient rec. rate",
        "sensitivity": "sensitivity",
        "specificity": "specificity",
        "f1": "F1",
        "roc_auc": "ROC-AUC",
    }
    return page.table(
        ["magnification", *columns.values()],
        [
            [f"{row['magnification']}×" if row["magnification"] else "unknown"]
            + [row[key] for key in columns]
            for row in rows
        ],
    )


def _by_subtype(rows: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        return ""
    return page.table(
        ["subtype", "accuracy", "images right", "patients", "mean probability", "class"],
        [
            [
                row["subtype"].replace("_", " "),
                row["accuracy"],
                f"{row['correct']}/{row['n']}",
                row["patients"],
                row["mean_probability"],
                row["class"],
            ]
            for row in rows
        ],
    )


def _by_patient(metrics: Mapping[str, Any]) -> str:
    rows = sorted(metrics["by_patient"], key=lambda row: row["accuracy"])
    table = page.table(
        ["patient", "accuracy", "images right", "mean probability", "class", "subtype"],
        [
            [
                row["patient"],
                row["accuracy"],
                f"{row['correct']}/{row['n']}",
                row["mean_probability"],
                row["class"],
                ", ".join(row["subtypes"]).replace("_", " ") or None,
            ]
            for row in rows
        ],
    )
    return page.folded(f"{len(rows)} patients, worst first", table, len(rows) <= _OPEN_ROWS)


def _mistakes(predictions: Predictions) -> str:
    wrong = np.flatnonzero(predictions.prediction != predictions.label)
    if not len(wrong):
        return page.paragraph("None: every image is right.")
    # How sure of the wrong class: P(positive) of a negative image, 1 - P of a positive one.
    surety = np.abs(predictions.probability - predictions.label)[wrong]
    worst = wrong[np.argsort(-surety, kind="stable")][:_MISTAKES]
    positive = predictions.class_names[1]
    return page.paragraph(
        f"{len(worst)} of {len(wrong)} wrong images; all are in predictions.csv.", "soft"
    ) + page.table(
        ["file", f"P({positive})", "true class", "patient", "magnification"],
        [
            [
                str(predictions.file[i]),
                float(predictions.probability[i]),
                predictions.class_names[predictions.label[i]],
                str(predictions.patient[i]),
                f"{predictions.magnification[i]}×" if predictions.magnification[i] else None,
            ]
            for i in worst
        ],
    )


def _split(split: Mapping[str, Any]) -> Iterator[str]:
    counts = split.get("counts") or {}
    rows = [
        [side, name, count.get("images"), count.get("patients")]
        for side, classes in counts.items()
        for name, count in classes.items()
    ]
    if rows:
        yield page.table(["side", "class", "images", "patients"], rows)
    spoken = {True: "yes", False: "no"}
    rest = {
        key.replace("_", " "): spoken[value] if isinstance(value, bool) else value
        for key, value in split.items()
        if key != "counts" and value is not None
    }
    if rest:
        yield page.key_values(rest)


def _run(run: Mapping[str, Any]) -> Iterator[str]:
    lines = {key: run[key] for key in ("weights", "device") if run.get(key)}
    if lines:
        yield page.key_values(lines)
    if run.get("stages"):
        yield page.subheading("Stages") + page.bullets(map(str, run["stages"]))
    if run.get("seconds"):
        rows = [[name, page.number(value, 1)] for name, value in run["seconds"].items()]
        yield page.subheading("Seconds") + page.key_values(dict(rows))
    if run.get("config"):
        yield page.folded("Configuration", page.key_values(run["config"]))
    if run.get("versions"):
        yield page.folded("Versions", page.key_values(run["versions"]))
