"""Bootstrap intervals of every metric, at both levels and of each group in the table."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

from densenet_flax.common.trees import JsonDict
from densenet_flax.evaluation.metrics.bootstrap import (
    Basis,
    Bootstrap,
    Interval,
    basis_of,
    one_class_basis,
)
from densenet_flax.evaluation.metrics.groups import subtypes_are_classes
from densenet_flax.evaluation.metrics.levels import (
    by_class,
    level_metrics,
    level_values,
    metric_set,
)
from densenet_flax.evaluation.metrics.multiclass import PER_CLASS
from densenet_flax.evaluation.metrics.sample import Sample, Values, Weights, sample_of
from densenet_flax.evaluation.predictions import Predictions


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
            # Too few images for a row per class, and the report shows none.
            spans.pop("by_class", None)
            groups[f"by_{key}"].append({key: value.item(), **spans})
    whole = sample_intervals(sample_of(predictions), class_names, bootstrap)
    return {**bootstrap.describe(), **whole, **groups}


def sample_intervals(sample: Sample, class_names: Sequence[str], bootstrap: Bootstrap) -> JsonDict:
    """Computes intervals at both levels and, of more than two classes, of each class.

    Each metric has an interval, or None and the reason under 'undefined'.
    """
    metrics, points = metric_set(sample.classes), level_metrics(sample, class_names)
    weights = bootstrap.draw(sample)
    values = level_values(sample, weights)
    result: JsonDict = {metrics.gap_key: _resamples_without_a_class(sample, weights)}
    for level, names in metrics.levels.items():
        bases = {name: basis_of(sample, name, class_names) for name in names}
        result[level] = _intervals(bootstrap, points[level]["undefined"], values[level], bases)
    class_rows = []
    for k, row in enumerate(by_class(sample, class_names)):
        bases = {name: one_class_basis(sample, name, class_names, k) for name in PER_CLASS}
        class_values = {name: values["image"][name][:, k] for name in PER_CLASS}
        spans = _intervals(bootstrap, row["undefined"], class_values, bases)
        class_rows.append({"class": row["class"], **spans})
    return result | ({"by_class": class_rows} if class_rows else {})


def _resamples_without_a_class(sample: Sample, weights: Weights) -> int:
    """Counts resamples that lack a class of the table.

    There are none as long as each class has two patients of its own, since patients are drawn
    within their class.
    """
    images = weights @ sample.images_by_class
    if sample.classes > 2:
        # A class that the whole table lacks is reported as absent, not in every resample.
        images = images[:, sample.images_by_class.any(axis=0)]
    return int(np.sum((images == 0).any(axis=1)))


def _intervals(
    bootstrap: Bootstrap,
    undefined: Mapping[str, str],
    values: Mapping[str, Values],
    bases: Mapping[str, Basis],
) -> JsonDict:
    rows: dict[str, Interval | None] = {}
    reasons: dict[str, str] = {}
    for name, basis in bases.items():
        reason = undefined.get(name) or basis.reason
        if not reason:
            rows[name] = interval = bootstrap.interval(values[name], basis)
            if interval["low"] is None:
                missing = interval["undefined_resamples"]
                reason = f"it does not exist in {missing} of {bootstrap.resamples} resamples"
            elif interval["low"] == interval["high"]:
                # All patients are equal. An interval without width would read as certainty.
                reason = f"it is {interval['low']:.3g} in every resample, which is no certainty"
        if reason:
            rows[name], reasons[name] = None, reason
    return {**rows, "undefined": reasons}


def mean_intervals(
    predictions: Predictions, columns: Mapping[str, Float[np.ndarray, " N"]], bootstrap: Bootstrap
) -> JsonDict:
    """Computes intervals of means over images, such as the Brier score, by name of the column.

    Images that are NaN in a column do not count in its mean.
    """
    sample = sample_of(predictions)
    basis = basis_of(sample, "", predictions.class_names)
    if basis.reason:
        return {**dict.fromkeys(columns), "undefined": dict.fromkeys(columns, basis.reason)}
    weights = bootstrap.draw(sample)
    spans: JsonDict = {}
    for name, values in columns.items():
        counted = ~np.isnan(values)
        total = weights @ sample.image.sum_by_patient(np.where(counted, values, 0))
        with np.errstate(invalid="ignore"):  # a resample without any of these images has no mean
            means = total / (weights @ sample.image.sum_by_patient(counted))
        spans[name] = bootstrap.interval(means, basis)
    return {**spans, "undefined": {}}
