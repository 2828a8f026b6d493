"""Intervals of every metric, at both levels and of each group in the table.

Which method a figure has was decided by simulations (`benchmarks/interval_coverage.py`), with hard
patients, few patients and perfect scores among them.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

from densenet_flax.common.trees import JsonDict
from densenet_flax.evaluation.metrics.bootstrap import (
    Bootstrap,
    Interval,
    Strata,
    make_interval,
    merged_strata,
    strata_of,
)
from densenet_flax.evaluation.metrics.groups import subtypes_are_classes
from densenet_flax.evaluation.metrics.influence import (
    Influence,
    area_influence,
    level_influence,
    standard_error,
    t_limits,
)
from densenet_flax.evaluation.metrics.levels import (
    ACCURACY_BY_MEAN,
    by_class,
    level_metrics,
    metric_set,
)
from densenet_flax.evaluation.metrics.multiclass import PER_CLASS
from densenet_flax.evaluation.metrics.pseudo_patients import (
    FROM_MINUS_ONE,
    METHOD,
    clopper_pearson,
    ratio_values,
    threshold_ends,
)
from densenet_flax.evaluation.metrics.sample import Rows, Sample, sample_of
from densenet_flax.evaluation.predictions import Predictions

AREA_METHOD = "pseudo-patients and logit-t"
WITH_T = "pseudo-patients and t"
T_METHOD = "t"
_AREAS = ("roc_auc", "pr_auc")
# Metrics that rest on patients of one class, each of which has a whole pseudo-patient.
_ONE_CLASS = ("sensitivity", "specificity")


def intervals(predictions: Predictions, bootstrap: Bootstrap) -> JsonDict:
    """Returns 'intervals' of metrics.json: of the table, and of each magnification and subtype.

    The threshold is taken as given, not chosen again in each resample.
    """
    class_names = predictions.class_names
    groups: dict[str, list[JsonDict]] = {"by_magnification": [], "by_subtype": []}
    for key in ("magnification", "subtype"):
        column = getattr(predictions, key)
        if key == "subtype" and subtypes_are_classes(predictions):
            continue
        for value in np.unique(column):
            if value == "":  # an unknown subtype; an unknown magnification, 0, is a group
                continue
            part = sample_of(predictions.select(column == value))
            spans = sample_intervals(part, class_names, bootstrap)
            groups[f"by_{key}"].append({key: value.item(), **spans})
    whole = sample_intervals(sample_of(predictions), class_names, bootstrap)
    return {**bootstrap.describe(), **whole, **groups}


def sample_intervals(sample: Sample, class_names: Sequence[str], bootstrap: Bootstrap) -> JsonDict:
    """Computes intervals at both levels and, of more than two classes, of each class.

    Each metric that exists has an interval; of the others 'undefined' has the reason.
    """
    metrics, points = metric_set(sample.classes), level_metrics(sample, class_names)
    # Each class is in every resample.
    result: JsonDict = {metrics.gap_key: 0}
    strata = strata_of(sample)
    for level, rows in (("image", sample.image), ("patient", sample.patient)):
        spans: dict[str, Interval] = {}
        if not np.any(rows.label < 0):  # a patient with images of several classes has no true class
            spans = _level_intervals(rows, points[level], strata, bootstrap)
        if level == "patient":
            spans |= _patient_intervals(sample, points[level], strata, bootstrap)
        if sample.classes > 2:
            _widen_by_t(spans, sample, level, points[level], bootstrap)
        undefined = points[level]["undefined"]
        names = metrics.levels[level]
        rows_of_level = {name: None if name in undefined else spans[name] for name in names}
        result[level] = {**rows_of_level, "undefined": undefined}
    classes = by_class(sample, class_names)
    if classes:
        result["by_class"] = _class_intervals(sample, classes, strata, bootstrap)
    return result


def _level_intervals(
    rows: Rows, points: JsonDict, strata: Strata, bootstrap: Bootstrap
) -> dict[str, Interval]:
    """Intervals of what is computed from rows, images or patients; of the accuracy as well."""
    shared = threshold_ends(rows, strata, bootstrap.draw(strata))
    whole = threshold_ends(rows, strata, bootstrap.draw(strata, one_class=True))
    spans = {}
    for name, ends in shared.items():
        worst, best = whole[name] if name in _ONE_CLASS else ends
        if worst.ndim == 1 and points.get(name) is not None:
            spans[name] = bootstrap.interval(worst, best, points[name], METHOD)
    if rows.classes == 2:
        areas = area_influence(rows, rows.label == 1, rows.probability, strata)
        for name in _AREAS:
            if points[name] is not None:
                spans[name] = _area_interval(areas[name], strata, bootstrap)
    elif points["macro_roc_auc"] is not None:
        by_label = [
            area_influence(rows, rows.label == k, rows.probability[:, k], strata)["roc_auc"]
            for k in range(rows.classes)
        ]
        values, patients, pseudo = zip(*by_label, strict=True)
        mean = Influence(float(np.mean(values)), np.mean(patients, axis=0), np.mean(pseudo, axis=0))
        spans["macro_roc_auc"] = _area_interval(mean, strata, bootstrap)
    return spans


def _patient_intervals(
    sample: Sample, points: JsonDict, strata: Strata, bootstrap: Bootstrap
) -> dict[str, Interval]:
    """Intervals of the rate, and exact ones of the proportions of patients."""
    draws, once = bootstrap.draw(strata), np.ones(sample.patients)
    rate = sample.recognition_rate
    worst, best = (ratio_values(rate, once, strata, draws, end) for end in (0.0, 1.0))
    name = "patient_recognition_rate"
    spans = {name: bootstrap.interval(worst, best, points[name], METHOD)}
    patient = sample.patient
    right = patient.predicted == patient.label
    subsets = {ACCURACY_BY_MEAN: right}
    if sample.classes == 2:
        subsets |= {
            "sensitivity": right[patient.label == 1],
            "specificity": right[patient.label == 0],
        }
    for name, subset in subsets.items():
        if points[name] is not None:
            spans[name] = clopper_pearson(int(subset.sum()), len(subset), bootstrap)
    return spans


def _area_interval(influence: Influence, strata: Strata, bootstrap: Bootstrap) -> Interval:
    """The wider of two intervals at either end.

    Student's, on the logit scale, is too narrow near 1, where no patient may happen to be hard, and
    does not exist at 1. The one with pseudo-patients is linear in their weights, as an AUC
    is: each patient replaces a little of an average one.
    """
    draws, value = bootstrap.draw(strata), influence.value
    linear = value + draws.patients @ influence.patients
    worst = linear + draws.pseudo @ np.minimum(influence.pseudo, 0)
    # At best it is separated from all others: an area of 1 for its share of a class.
    best = linear + (1 - value) * (draws.pseudo / strata.sizes).sum(axis=1)
    span = bootstrap.interval(worst, best, value, AREA_METHOD)
    error = standard_error(influence.patients, strata)
    return union(span, t_limits(value, error, bootstrap.tail, "logit") if error else None)


def union(
    span: Interval, limits: tuple[float, float] | None, low: float = 0, high: float = 1
) -> Interval:
    """Widens an interval to `limits`, if any, and keeps it between `low` and `high`."""
    if limits:
        span = {**span, "low": min(span["low"], limits[0]), "high": max(span["high"], limits[1])}
    return {**span, "low": float(max(low, span["low"])), "high": float(min(high, span["high"]))}


def _widen_by_t(
    spans: dict[str, Interval],
    sample: Sample,
    level: str,
    points: JsonDict,
    bootstrap: Bootstrap,
) -> None:
    """Widens the intervals of metrics over more than two classes.

    Their classes share one pseudo-patient, which is little for a class of few patients.
    """
    strata = merged_strata(sample)
    influence = level_influence(sample, strata)[level]
    for name, span in spans.items():
        if span["method"] != METHOD:
            continue
        scale, low = ("fisher", -1) if name in FROM_MINUS_ONE else ("logit", 0)
        error = standard_error(influence[name], strata)
        if error:
            limits = t_limits(points[name], error, bootstrap.tail, scale)
            spans[name] = {**union(span, limits, low), "method": WITH_T}


def _class_intervals(
    sample: Sample, classes: list[JsonDict], strata: Strata, bootstrap: Bootstrap
) -> list[JsonDict]:
    """Intervals of each class against the rest, of images."""
    rows, result = sample.image, []
    ends = threshold_ends(rows, strata, bootstrap.draw(strata, one_class=True))
    for k, row in enumerate(classes):
        spans: dict[str, Interval] = {}
        for name in ("recall", "precision", "f1"):
            if row[name] is not None:
                worst, best = (end[:, k] for end in ends[name])
                spans[name] = bootstrap.interval(worst, best, row[name], METHOD)
        if row["roc_auc"] is not None:
            areas = area_influence(rows, rows.label == k, rows.probability[:, k], strata)
            spans |= {name: _area_interval(areas[name], strata, bootstrap) for name in _AREAS}
        by_name = {name: spans.get(name) for name in PER_CLASS}
        result.append({"class": row["class"], **by_name, "undefined": row["undefined"]})
    return result


def mean_intervals(
    predictions: Predictions,
    columns: Mapping[str, Float[np.ndarray, " N"]],
    bootstrap: Bootstrap,
    worst: Mapping[str, Float[np.ndarray, " K"]] | None = None,
) -> JsonDict:
    """Computes intervals of means over images, such as the Brier score, by name of the column.

    Images that are NaN in a column do not count in its mean.

    Args:
      predictions: The table.
      columns: A value per image.
      bootstrap: How to resample.
      worst: Of columns that are errors, their mean in a pseudo-patient of each class, one who
        looks like the other classes; at best it is 0. Columns that are shares, and not in
        `worst`, go from 0 to 1. None: of differences, for which Student's t alone is used.
    """
    sample = sample_of(predictions)
    strata, merged = strata_of(sample), merged_strata(sample)
    draws = bootstrap.draw(strata)
    spans: JsonDict = {}
    undefined: dict[str, str] = {}
    for name, values in columns.items():
        counted = ~np.isnan(values)
        total = sample.image.sum_by_patient(np.where(counted, values, 0))
        size = sample.image.sum_by_patient(counted)
        spans[name] = None
        if not size.sum():
            undefined[name] = "no images"
            continue
        mean = float(total.sum() / size.sum())
        influence = (total - mean * size) / size.sum()
        error = standard_error(influence, merged, carried=worst is None)
        if worst is None:
            if error:
                spans[name] = make_interval(*t_limits(mean, error, bootstrap.tail), T_METHOD)
            else:
                undefined[name] = "a class has one patient only"
            continue
        share = strata.mean(sample.images_by_class / sample.images[:, None])
        high = share @ worst[name] if name in worst else 1.0
        lowest = ratio_values(total, size, strata, draws, 0.0)
        highest = ratio_values(total, size, strata, draws, high)
        if name not in worst:
            spans[name] = bootstrap.interval(lowest, highest, mean, METHOD)
            continue
        span = bootstrap.interval(lowest, highest, mean, WITH_T)
        limits = t_limits(mean, error, bootstrap.tail) if error else None
        spans[name] = union(span, limits, high=float("inf"))
    return {**spans, "undefined": undefined}
