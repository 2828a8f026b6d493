"""The tables of report.html: every metric, every group, and the worst mistakes."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from densenet_flax.evaluation.metrics.measures import BY_MEAN
from densenet_flax.evaluation.predictions import Predictions
from densenet_flax.evaluation.report import page
from densenet_flax.evaluation.report.page import Measured
from densenet_flax.evaluation.report.wording import wording_of

MISTAKES = 10
# Longer tables start folded.
_OPEN_ROWS = 20


def measured(points: Mapping[str, Any], intervals: Mapping[str, Any] | None, name: str) -> Measured:
    """A metric with its interval, where both exist."""
    span = (intervals or {}).get(name) or {}
    return Measured(points[name], span.get("low"), span.get("high"))


def all_metrics(metrics: Mapping[str, Any]) -> Iterator[str]:
    """Every metric at both levels, and why some do not exist."""
    image, patient, drawn = metrics["image"], metrics["patient"], metrics["intervals"]
    negative, positive = metrics["class_names"][:2]
    words = wording_of(metrics)
    rows: list[list[Any]] = []
    for key, name, text in words.metrics:
        ours = BY_MEAN if key == "accuracy" else key
        rows.append(
            [
                name,
                measured(image, drawn["image"], key),
                measured(patient, drawn["patient"], ours),
                text.format(negative=negative, positive=positive),
            ]
        )
    rows.append(
        [
            "Patient recognition rate",
            None,
            measured(patient, drawn["patient"], "patient_recognition_rate"),
            "mean over patients of the share of their images that is right",
        ]
    )
    yield page.table(["", "images", "patients by mean probability", "what it is"], rows)
    yield page.paragraph(
        "The patient recognition rate is the BreakHis protocol's. It is not the accuracy of "
        "patients by mean probability, which calls each patient once."
    )
    yield page.paragraph(
        f"Below each number: {drawn['level']:.0%} interval from {drawn['resamples']} resamples of "
        f"patients (not of images), drawn within their class, seed {drawn['seed']}. "
        f"{_resamples_without(metrics)} The intervals do not cover what another training run, "
        "another laboratory or another share of the classes would change.",
        "soft",
    )
    yield from _missing(metrics)


def _resamples_without(metrics: Mapping[str, Any]) -> str:
    """In how many resamples something does not exist."""
    drawn, words = metrics["intervals"], wording_of(metrics)
    count = drawn.get("one_class_resamples", drawn.get("resamples_without_a_class"))
    gaps = [f"{count} resamples {words.gap}"]
    names = {key: name for key, name, _ in words.metrics}
    for unit in ("image", "patient"):
        for key, span in drawn[unit].items():
            if key != "undefined" and span and span["undefined_resamples"]:
                gaps.append(
                    f"{names.get(key, key)} of {unit}s does not exist in "
                    f"{span['undefined_resamples']}"
                )
    return "; ".join(gaps) + "."


def _missing(metrics: Mapping[str, Any]) -> Iterator[str]:
    names = {key: name for key, name, _ in wording_of(metrics).metrics}
    names[BY_MEAN] = names["accuracy"]
    names["patient_recognition_rate"] = "Patient recognition rate"
    for title, source in (
        ("What does not exist, and why:", metrics),
        ("What has no interval, and why:", metrics["intervals"]),
    ):
        missing: dict[str, list[str]] = {}  # few reasons, many metrics
        for unit in ("image", "patient"):
            for key, reason in source[unit]["undefined"].items():
                known = source is metrics or metrics[unit][key] is not None
                if key in names and known:
                    missing.setdefault(f"{unit}s: {reason}", []).append(names[key])
        if missing:
            yield page.paragraph(title, "soft") + page.bullets(
                f"{reason}, so no {', '.join(which)}" for reason, which in missing.items()
            )


def by_magnification(metrics: Mapping[str, Any]) -> str:
    """A row per magnification."""
    columns = wording_of(metrics).magnification
    drawn = metrics["intervals"]["by_magnification"]
    rows = []
    for row, span in zip(metrics["by_magnification"], drawn, strict=True):
        spans = {**span["image"], "patient_recognition_rate": _rate(span)}
        name = f"{row['magnification']}×" if row["magnification"] else "unknown"
        cells = [measured(row, spans, key) for key in columns]
        rows.append([name, row["n"], row["patients"], *cells])
    return page.table(["magnification", "images", "patients", *columns.values()], rows)


def by_subtype(metrics: Mapping[str, Any]) -> str:
    """A row per subtype."""
    rows = []
    drawn = {span["subtype"]: span for span in metrics["intervals"]["by_subtype"]}
    for row in metrics["by_subtype"]:
        span = drawn[row["subtype"]]
        spans = {**span["image"], "patient_recognition_rate": _rate(span)}
        rows.append(
            [
                row["subtype"].replace("_", " "),
                measured(row, spans, "accuracy"),
                measured(row, spans, "patient_recognition_rate"),
                f"{row['correct']}/{row['n']}",
                row["patients"],
                row["mean_probability"],
                row["class"],
            ]
        )
    header = ["subtype", "accuracy", "patient rec. rate", "images right", "patients"]
    header.append(wording_of(metrics).mean_probability)
    return page.table([*header, "class"], rows) if rows else ""


def _rate(span: Mapping[str, Any]) -> Any:
    return span["patient"]["patient_recognition_rate"]


def by_patient(metrics: Mapping[str, Any]) -> str:
    """A row per patient, the worst first."""
    rows = sorted(metrics["by_patient"], key=lambda row: row["accuracy"])
    said = wording_of(metrics).mean_probability
    table = page.table(
        ["patient", "accuracy", "images right", said, "class", "subtype"],
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


def mistakes(predictions: Predictions) -> str:
    """The wrong images that the network was surest of."""
    wrong = np.flatnonzero(predictions.prediction != predictions.label)
    if not len(wrong):
        return page.paragraph("None: every image is right.")
    # How sure of the wrong class: P(positive) of a negative image, 1 - P of a positive one.
    surety = np.abs(predictions.probability - predictions.label)[wrong]
    worst = wrong[np.argsort(-surety, kind="stable")][:MISTAKES]
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
