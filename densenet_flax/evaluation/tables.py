"""The tables of report.html: every metric, every group, and the worst mistakes."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from densenet_flax.evaluation import page
from densenet_flax.evaluation.page import Measured
from densenet_flax.evaluation.predictions import Predictions

_MISTAKES = 10
# Longer tables start folded.
_OPEN_ROWS = 20

METRIC_NAMES = (
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
_BY_MEAN = "patient_accuracy_by_mean_probability"


def measured(points: Mapping[str, Any], intervals: Mapping[str, Any] | None, name: str) -> Measured:
    """A metric with its interval, where both exist."""
    span = (intervals or {}).get(name) or {}
    return Measured(points[name], span.get("low"), span.get("high"))


def all_metrics(metrics: Mapping[str, Any]) -> Iterator[str]:
    """Every metric at both levels, and why some do not exist."""
    image, patient, drawn = metrics["image"], metrics["patient"], metrics["intervals"]
    negative, positive = metrics["class_names"]
    rows: list[list[Any]] = []
    for key, name, text in METRIC_NAMES:
        ours = _BY_MEAN if key == "accuracy" else key
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
        f"{_resamples_without(drawn)} The intervals do not cover what another training run, "
        "another laboratory or another share of the classes would change.",
        "soft",
    )
    yield from _missing(metrics)


def _resamples_without(drawn: Mapping[str, Any]) -> str:
    """In how many resamples something does not exist."""
    gaps = [f"{drawn['one_class_resamples']} resamples had one class only"]
    names = {key: name for key, name, _ in METRIC_NAMES}
    for unit in ("image", "patient"):
        for key, span in drawn[unit].items():
            if key != "undefined" and span and span["undefined_resamples"]:
                gaps.append(
                    f"{names.get(key, key)} of {unit}s does not exist in "
                    f"{span['undefined_resamples']}"
                )
    return "; ".join(gaps) + "."


def _missing(metrics: Mapping[str, Any]) -> Iterator[str]:
    names = {key: name for key, name, _ in METRIC_NAMES}
    names[_BY_MEAN] = names["accuracy"]
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
    columns = {
        "accuracy": "accuracy",
        "patient_recognition_rate": "patient rec. rate",
        "sensitivity": "sensitivity",
        "specificity": "specificity",
        "f1": "F1",
        "roc_auc": "ROC-AUC",
    }
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
    return page.table([*header, "mean probability", "class"], rows) if rows else ""


def _rate(span: Mapping[str, Any]) -> Any:
    return span["patient"]["patient_recognition_rate"]


def by_patient(metrics: Mapping[str, Any]) -> str:
    """A row per patient, the worst first."""
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


def mistakes(predictions: Predictions) -> str:
    """The wrong images that the network was surest of."""
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


def calibration(metrics: Mapping[str, Any]) -> Iterator[str]:
    """The operating point, and how well the probabilities mean what they say."""
    point, found = metrics["operating_point"], metrics["calibration"]
    positive = metrics["positive_class"]
    if point is None:
        yield page.paragraph(
            f"The threshold {metrics['threshold']:.3g} was given, not chosen on validation images, "
            "and the probabilities are as the network says them."
        )
    else:
        yield page.key_values(
            {
                "threshold": f"{point['threshold']:.4g} on the network's own P({positive}), which "
                f"is {point['calibrated_threshold']:.4g} calibrated",
                "rule": point["rule"],
                "temperature": f"{point['temperature']:.4g}",
                "chosen on": point["chosen_on"] or "nothing: defaults",
            }
        )
    sides = [("test", found["test"])]
    if found["validation"]:
        sides.append(("validation, where it was fitted", found["validation"]))
    spans = found["test"]["intervals"]
    rows = []
    for name, side in sides:
        for when, said in (("before", "as the network says"), ("after", "calibrated")):
            values = side[when]
            if values:
                own = {key: spans.get(f"{key}_{when}") for key in ("brier", "nll")}
                drawn = own if name == "test" else None
                rows.append(
                    [
                        name,
                        said,
                        *(measured(values, drawn, key) for key in ("brier", "nll")),
                        values["ece"],
                        values["ece_top_label"],
                    ]
                )
    header = ["images", "probability", "Brier score", "NLL", "ECE", "ECE, likelier class"]
    yield page.table(header, rows)
    yield page.paragraph(
        f"Brier score of P({positive}), negative log-likelihood in nats, and expected calibration "
        f"error over {found['bins']} bins of equal width: of P({positive}), and of the likelier "
        "class's probability, as many papers count it. Lower is better. An ECE has no interval "
        "here: it is biased upwards, and in a resample even more so.",
        "soft",
    )
    yield page.folded(f"The {found['bins']} bins of the test images", _bins(found["test"]))


def _bins(test: Mapping[str, Any]) -> str:
    parts = []
    for when, said in (("before", "as the network says"), ("after", "calibrated")):
        if test[when]:
            rows: Sequence[Any] = [
                [
                    f"{row['lower_edge']:.3f} to {row['upper_edge']:.3f}",
                    row["count"],
                    row["confidence"],
                    Measured(row["accuracy"], *(row["accuracy_interval"] or ())),
                ]
                for row in test[when]["bins"]
            ]
            header = ["bin", "images", "mean probability", "share that is positive"]
            parts.append(page.table(header, rows, said))
    return "".join(parts)
