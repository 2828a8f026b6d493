"""The tables of report.html: every metric, every group of images, and the worst mistakes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from densenet_flax.common.types import JsonDict
from densenet_flax.evaluation.metrics.levels import ACCURACY_BY_MEAN
from densenet_flax.evaluation.predictions import Predictions
from densenet_flax.evaluation.report.views import Cell, Measured, Table, measured
from densenet_flax.evaluation.report.wording import (
    CLASS_COLUMNS,
    RECOGNITION_RATE,
    metric_name,
    metric_title,
    wording_for,
)

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
    intervals, wording = metrics["intervals"], wording_for(metrics)
    negative, positive = metrics["class_names"][:2]
    rows: list[list[Cell]] = [
        [
            metric_title(key),
            level_metric(metrics, "image", key),
            level_metric(metrics, "patient", ACCURACY_BY_MEAN if key == "accuracy" else key),
            meaning.format(negative=negative, positive=positive),
        ]
        for key, meaning in wording.metrics.items()
    ]
    rows.append(
        [
            metric_title(RECOGNITION_RATE),
            Measured(None),
            level_metric(metrics, "patient", RECOGNITION_RATE),
            "mean over patients of the fraction of their images classified correctly",
        ]
    )
    return MetricsSection(
        table=Table(["metric", "images", "patients by mean probability", "meaning"], rows),
        confidence=f"{intervals['level']:.0%}",
        resamples=intervals["resamples"],
        seed=intervals["seed"],
        resample_gaps=_resample_gaps(metrics),
        undefined=_undefined(metrics, metrics),
        without_interval=_undefined(metrics, intervals),
    )


def level_metric(metrics: JsonDict, level: str, key: str) -> Measured:
    """A metric of all images (level 'image') or patients ('patient'), with its interval."""
    return measured(metrics[level], metrics["intervals"][level], key)


def _resample_gaps(metrics: JsonDict) -> str:
    intervals = metrics["intervals"]
    count = intervals.get("one_class_resamples", intervals.get("resamples_without_a_class"))
    gaps = [f"{count} resamples {wording_for(metrics).incomplete_resamples}"]
    for level in ("image", "patient"):
        for key, interval in intervals[level].items():
            if key != "undefined" and interval and interval["undefined_resamples"]:
                undefined = interval["undefined_resamples"]
                gaps.append(f"{metric_title(key)} of {level}s is undefined in {undefined}")
    return "; ".join(gaps)


def _undefined(metrics: JsonDict, source: JsonDict) -> list[str]:
    """Lists by reason the metrics that `source`, the metrics or their intervals, lacks."""
    reasons: dict[str, list[str]] = {}  # few reasons, many metrics
    for level in ("image", "patient"):
        for key, reason in source[level]["undefined"].items():
            # A metric that does not exist has no interval either; it is listed once.
            if source is metrics or metrics[level][key] is not None:
                name = "accuracy" if key == ACCURACY_BY_MEAN else metric_name(key)
                reasons.setdefault(f"{level}s: {reason}", []).append(name)
    return _sentences(reasons)


def _sentences(reasons: Mapping[str, list[str]]) -> list[str]:
    return [f"{reason}, so no {', '.join(names)}" for reason, names in reasons.items()]


def class_section(metrics: JsonDict) -> ClassSection | None:
    """A row per class, each against the rest; None if there are two classes."""
    if "by_class" not in metrics:
        return None
    rows: list[list[Cell]] = []
    reasons: dict[str, list[str]] = {}
    for row, intervals in zip(metrics["by_class"], metrics["intervals"]["by_class"], strict=True):
        name = _spaced(row["class"])
        cells = [measured(row, intervals, key) for key in CLASS_COLUMNS]
        rows.append([name, row["n"], row["called"], row["patients"], *cells])
        for key, reason in {**intervals["undefined"], **row["undefined"]}.items():
            kind = "" if row[key] is None else "interval of "
            reasons.setdefault(reason, []).append(f"{kind}{metric_name(key)} ({name})")
    header = ["class", "images", "predicted", "patients", *map(metric_name, CLASS_COLUMNS)]
    return ClassSection(Table(header, rows), _sentences(reasons))


def by_magnification(metrics: JsonDict, columns: Sequence[str]) -> Table:
    """A row per magnification; without rows if none is known.

    Args:
      metrics: as in metrics.json.
      columns: keys of the metrics to show.
    """
    groups = metrics["by_magnification"]
    rows = [
        [
            magnification(row["magnification"]) or "unknown",
            row["n"],
            row["patients"],
            *(measured(row, _group_intervals(intervals), key) for key in columns),
        ]
        for row, intervals in zip(groups, metrics["intervals"]["by_magnification"], strict=True)
    ]
    known = any(row["magnification"] for row in groups)
    header = ["magnification", "images", "patients", *map(metric_name, columns)]
    return Table(header, rows if known else [])


def by_subtype(metrics: JsonDict) -> Table:
    """A row per subtype; without rows if the subtypes are the classes."""
    columns = ("accuracy", RECOGNITION_RATE)
    intervals = {row["subtype"]: row for row in metrics["intervals"]["by_subtype"]}
    rows = [
        [
            _spaced(row["subtype"]),
            *(measured(row, _group_intervals(intervals[row["subtype"]]), key) for key in columns),
            f"{row['correct']}/{row['n']}",
            row["patients"],
            row["mean_probability"],
            row["class"],
        ]
        for row in metrics["by_subtype"]
    ]
    header = ["subtype", *map(metric_name, columns), "correct images", "patients"]
    return Table([*header, wording_for(metrics).mean_probability, "class"], rows)


def _group_intervals(intervals: JsonDict) -> JsonDict:
    """The intervals of a group of images, with the one metric of patients that is shown."""
    return {**intervals["image"], RECOGNITION_RATE: intervals["patient"][RECOGNITION_RATE]}


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
    label, probability = predictions.label, predictions.probability
    names = np.array([_spaced(name) for name in predictions.class_names])
    columns: dict[str, np.ndarray] = {"file": predictions.file}
    if len(names) == 2:
        # P(positive) of a negative image, 1 − P(positive) of a positive one.
        confidence = np.abs(probability - label)
        columns |= {f"P({predictions.class_names[1]})": probability}
    else:
        confidence = probability.max(axis=1)
        columns |= {"predicted": names[predictions.prediction], "P(predicted)": confidence}
    columns["true class"] = names[label]
    if len(names) > 2:
        columns["P(true class)"] = probability[np.arange(len(label)), label]
    columns["patient"] = predictions.patient
    columns["magnification"] = np.array([magnification(m) for m in predictions.magnification])
    wrong = np.flatnonzero(predictions.prediction != label)
    worst = wrong[np.argsort(-confidence[wrong], kind="stable")][:_MAX_MISTAKES]
    rows = list(zip(*(values[worst].tolist() for values in columns.values()), strict=True))
    return MistakesSection(Table(list(columns), rows).without_empty_columns(), total=len(wrong))


def magnification(value: int) -> str | None:
    """'40×'; None if it is not known."""
    return f"{value}×" if value else None


def _spaced(name: str) -> str:
    return name.replace("_", " ")
