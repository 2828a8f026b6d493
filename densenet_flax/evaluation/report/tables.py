"""The tables of report.html: every metric, every group of images, and the worst mistakes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from densenet_flax.common.types import JsonDict
from densenet_flax.evaluation.metrics.metric_set import ACCURACY_BY_MEAN
from densenet_flax.evaluation.predictions import Predictions
from densenet_flax.evaluation.report.views import Cell, Table, measured
from densenet_flax.evaluation.report.wording import CLASS_COLUMNS, wording_for

_MAX_MISTAKES = 10


@dataclass(frozen=True)
class MetricsSection:
    """Every metric of images and of patients.

    Attributes:
      table: a row per metric.
      confidence: of the intervals, such as '95%'.
      resamples: how many the intervals are from.
      seed: of the resampling.
      resample_gaps: how many resamples lack a class or a metric.
      undefined: which metrics do not exist, and why.
      without_interval: which metrics exist but have no interval, and why.
    """

    table: Table
    confidence: str
    resamples: int
    seed: int
    resample_gaps: str
    undefined: list[str]
    without_interval: list[str]


@dataclass(frozen=True)
class ClassSection:
    """Each class against the rest, and why some of these metrics do not exist."""

    table: Table
    undefined: list[str]


@dataclass(frozen=True)
class MistakesSection:
    """The wrong images with the highest probability, and how many wrong images there are."""

    table: Table
    total: int


def metrics_section(metrics: JsonDict) -> MetricsSection:
    """Every metric of images and of patients."""
    image, patient, intervals = metrics["image"], metrics["patient"], metrics["intervals"]
    negative, positive = metrics["class_names"][:2]
    rows: list[list[Cell]] = []
    for key, name, text in wording_for(metrics).metrics:
        patient_key = ACCURACY_BY_MEAN if key == "accuracy" else key
        rows.append(
            [
                name,
                measured(image, intervals["image"], key),
                measured(patient, intervals["patient"], patient_key),
                text.format(negative=negative, positive=positive),
            ]
        )
    rows.append(
        [
            "Patient recognition rate",
            None,
            measured(patient, intervals["patient"], "patient_recognition_rate"),
            "mean over patients of the fraction of their images classified correctly",
        ]
    )
    return MetricsSection(
        table=Table(["", "images", "patients by mean probability", "meaning"], rows),
        confidence=f"{intervals['level']:.0%}",
        resamples=intervals["resamples"],
        seed=intervals["seed"],
        resample_gaps=_resample_gaps(metrics),
        undefined=_undefined(metrics, metrics),
        without_interval=_undefined(metrics, intervals),
    )


def _resample_gaps(metrics: JsonDict) -> str:
    intervals, wording = metrics["intervals"], wording_for(metrics)
    count = intervals.get("one_class_resamples", intervals.get("resamples_without_a_class"))
    names = {key: name for key, name, _ in wording.metrics}
    gaps = [f"{count} resamples {wording.incomplete_resamples}"]
    for level in ("image", "patient"):
        for key, interval in intervals[level].items():
            if key != "undefined" and interval and interval["undefined_resamples"]:
                gaps.append(
                    f"{names.get(key, key)} of {level}s is undefined in "
                    f"{interval['undefined_resamples']}"
                )
    return "; ".join(gaps)


def _undefined(metrics: JsonDict, source: Mapping[str, Any]) -> list[str]:
    """Lists by reason the metrics that `source`, the metrics or their intervals, lacks."""
    names = {key: name for key, name, _ in wording_for(metrics).metrics}
    names[ACCURACY_BY_MEAN] = names["accuracy"]
    names["patient_recognition_rate"] = "Patient recognition rate"
    by_reason: dict[str, list[str]] = {}  # few reasons, many metrics
    for level in ("image", "patient"):
        for key, reason in source[level]["undefined"].items():
            # A metric that does not exist has no interval either; it is listed once.
            listed_already = source is not metrics and metrics[level][key] is None
            if key in names and not listed_already:
                by_reason.setdefault(f"{level}s: {reason}", []).append(names[key])
    return _by_reason(by_reason)


def _by_reason(names: Mapping[str, list[str]]) -> list[str]:
    return [f"{reason}, so no {', '.join(which)}" for reason, which in names.items()]


def class_section(metrics: JsonDict) -> ClassSection | None:
    """A row per class, each against the rest; None if there are two classes."""
    if "by_class" not in metrics:
        return None
    rows: list[list[Cell]] = []
    by_reason: dict[str, list[str]] = {}
    for row, intervals in zip(metrics["by_class"], metrics["intervals"]["by_class"], strict=True):
        name = _spaced(row["class"])
        cells = [measured(row, intervals, key) for key in CLASS_COLUMNS]
        rows.append([name, *cells, row["n"], row["called"], row["patients"]])
        for key, reason in {**intervals["undefined"], **row["undefined"]}.items():
            kind = "" if row[key] is None else "interval of "
            by_reason.setdefault(reason, []).append(f"{kind}{CLASS_COLUMNS[key]} ({name})")
    header = ["class", *CLASS_COLUMNS.values(), "images", "predicted", "patients"]
    return ClassSection(Table(header, rows), _by_reason(by_reason))


def by_magnification(metrics: JsonDict, columns: Mapping[str, str]) -> Table:
    """A row per magnification; without rows if none is known.

    Args:
      metrics: as in metrics.json.
      columns: key and title of the metrics to show.
    """
    groups = metrics["by_magnification"]
    rows = [
        [
            magnification(row["magnification"]) or "unknown",
            row["n"],
            row["patients"],
            *(measured(row, _of_group(intervals), key) for key in columns),
        ]
        for row, intervals in zip(groups, metrics["intervals"]["by_magnification"], strict=True)
    ]
    known = any(row["magnification"] for row in groups)
    header = ["magnification", "images", "patients", *columns.values()]
    return Table(header, rows if known else [])


def by_subtype(metrics: JsonDict) -> Table:
    """A row per subtype; without rows if the subtypes are the classes."""
    intervals = {group["subtype"]: group for group in metrics["intervals"]["by_subtype"]}
    rows = [
        [
            _spaced(row["subtype"]),
            measured(row, _of_group(intervals[row["subtype"]]), "accuracy"),
            measured(row, _of_group(intervals[row["subtype"]]), "patient_recognition_rate"),
            f"{row['correct']}/{row['n']}",
            row["patients"],
            row["mean_probability"],
            row["class"],
        ]
        for row in metrics["by_subtype"]
    ]
    header = ["subtype", "accuracy", "patient rec. rate", "correct images", "patients"]
    return Table([*header, wording_for(metrics).mean_probability, "class"], rows)


def _of_group(intervals: Mapping[str, Any]) -> dict[str, Any]:
    """The intervals of a group of images, with the one metric of patients that is shown."""
    rate = intervals["patient"]["patient_recognition_rate"]
    return {**intervals["image"], "patient_recognition_rate": rate}


def by_patient(metrics: JsonDict) -> Table:
    """A row per patient, the worst first."""
    rows = [
        [
            row["patient"],
            row["accuracy"],
            f"{row['correct']}/{row['n']}",
            row["mean_probability"],
            row["class"],
            _spaced(", ".join(row["subtypes"])) or None,
        ]
        for row in sorted(metrics["by_patient"], key=lambda row: row["accuracy"])
    ]
    mean_probability = wording_for(metrics).mean_probability
    header = ["patient", "accuracy", "correct images", mean_probability, "class", "subtype"]
    return Table(header, rows).without_empty_columns()


def mistakes_section(predictions: Predictions) -> MistakesSection:
    """The wrong images of which the network was most confident."""
    wrong = np.flatnonzero(predictions.prediction != predictions.label)
    binary = len(predictions.class_names) == 2
    if binary:
        # P(positive) of a negative image, 1 − P(positive) of a positive one.
        confidence = np.abs(predictions.probability - predictions.label)[wrong]
    else:
        confidence = predictions.probability.max(axis=1)[wrong]
    worst = wrong[np.argsort(-confidence, kind="stable")][:_MAX_MISTAKES].tolist()
    rows = [
        [
            str(predictions.file[i]),
            *(_binary_cells if binary else _multiclass_cells)(predictions, i),
            str(predictions.patient[i]),
            magnification(predictions.magnification[i]),
        ]
        for i in worst
    ]
    if binary:
        columns = [f"P({predictions.class_names[1]})", "true class"]
    else:
        columns = ["predicted", "P(predicted)", "true class", "P(true)"]
    table = Table(["file", *columns, "patient", "magnification"], rows)
    return MistakesSection(table.without_empty_columns(), total=len(wrong))


def _binary_cells(predictions: Predictions, i: int) -> Sequence[Cell]:
    return [
        float(predictions.probability[i]),
        predictions.class_names[predictions.label[i]],
    ]


def _multiclass_cells(predictions: Predictions, i: int) -> Sequence[Cell]:
    names, probability = predictions.class_names, predictions.probability[i]
    return [
        _spaced(names[predictions.prediction[i]]),
        float(probability.max()),
        _spaced(names[predictions.label[i]]),
        float(probability[predictions.label[i]]),
    ]


def magnification(value: int) -> str | None:
    """'40×'; None if it is not known."""
    return f"{value}×" if value else None


def _spaced(name: str) -> str:
    return name.replace("_", " ")
