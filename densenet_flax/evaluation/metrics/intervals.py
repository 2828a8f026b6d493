"""How far every metric could move with other patients: patient-clustered bootstrap intervals.

Images of one patient resemble each other, so 1,600 images of 28 patients are not 1,600
observations. Patients are resampled, within their class, and an interval is what the middle 95 %
of the resamples say, or a little more than 95 % where patients are few: plain percentiles are then
too narrow. What an interval does not cover is in docs/evaluation.md.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from densenet_flax.common.errors import InputError
from densenet_flax.evaluation.metrics.compute import points, subtypes_are_classes
from densenet_flax.evaluation.metrics.measures import measures_of
from densenet_flax.evaluation.metrics.resampling import image_values, patient_values
from densenet_flax.evaluation.metrics.sample import (
    Basis,
    Sample,
    draw_patients,
    per_patient,
    sample_of,
)
from densenet_flax.evaluation.predictions import Predictions

RESAMPLES = 2000
LEVEL = 0.95
METHOD = "patient-clustered bootstrap, stratified by class, percentiles widened for few patients"
# Of what is left when this share of the resamples has no value, a percentile means little.
_MOST_UNDEFINED = 0.5


def intervals(
    predictions: Predictions, resamples: int = RESAMPLES, seed: int = 0, level: float = LEVEL
) -> dict[str, Any]:
    """Intervals of every metric of the table, and of each magnification and subtype in it.

    Args:
        predictions: The table; its threshold is taken as given, not chosen anew in a resample.
        resamples: How many.
        seed: The same seed gives the same intervals.
        level: Share of the resamples inside an interval.

    Returns:
        As 'intervals' in metrics.json, see docs/report.md.

    Raises:
        InputError: Fewer than one resample, or a level outside 0 to 1.
    """
    settings = Settings(resamples, seed, level)
    result: dict[str, Any] = {
        **settings.describe(),
        **sample_intervals(sample_of([predictions]), predictions.class_names, settings),
        "by_magnification": [],
        "by_subtype": [],
    }
    for key, column in (
        ("magnification", predictions.magnification),
        ("subtype", predictions.subtype),
    ):
        if key == "subtype" and subtypes_are_classes(predictions):
            continue
        for value in np.unique(column):
            if value == "":
                continue
            part = sample_of([predictions.select(column == value)])
            found = sample_intervals(part, predictions.class_names, settings)
            found.pop("by_class", None)
            result[f"by_{key}"].append({key: value.item(), **found})
    return result


class Settings:
    """How to resample: checked once, said in every result."""

    def __init__(self, resamples: int = RESAMPLES, seed: int = 0, level: float = LEVEL):
        if resamples < 1:
            raise InputError(f"resamples is {resamples}; expected 1 or more, 2000 as a rule")
        if not 0 < level < 1:
            raise InputError(f"level is {level}; expected between 0 and 1, such as 0.95")
        self.resamples, self.seed, self.level = resamples, seed, level

    def describe(self) -> dict[str, Any]:
        """For metrics.json."""
        return {
            "method": METHOD,
            "level": self.level,
            "resamples": self.resamples,
            "seed": self.seed,
        }

    def draw(self, sample: Sample) -> np.ndarray:
        """How often each patient is in each resample, `[resamples, patients]`."""
        stratum = measures_of(sample.probability).strata(sample)
        return draw_patients(stratum, self.resamples, self.seed)

    def tail(self, patients: float, freedom: float | None = None) -> float:
        """Share of the resamples to leave out at either end.

        (1 − level) / 2 if there were many patients. The spread of a mean's resamples is too small
        by sqrt((n − 1) / n), and the normal's tails are where Student's should be; these are the
        percentiles that make up for both (Hesterberg, The American Statistician 69(4), 2015).

        Args:
            patients: As `Basis.patients`.
            freedom: As `Basis.freedom`.
        """
        plain = (1 - self.level) / 2
        if patients <= 1:
            return plain
        widening = np.sqrt(patients / (patients - 1))
        freedom = patients - 1 if freedom is None else freedom
        return float(stats.norm.cdf(widening * stats.t.ppf(plain, freedom)))

    def interval(self, values: np.ndarray, basis: Basis) -> dict[str, Any]:
        """The middle of the values that exist, for as many patients as the metric rests on."""
        exist = values[np.isfinite(values)]
        missing = len(values) - len(exist)
        if missing > _MOST_UNDEFINED * len(values):
            return {"low": None, "high": None, "undefined_resamples": missing}
        tail = self.tail(basis.patients, basis.freedom)
        low, high = np.quantile(exist, [tail, 1 - tail])
        return {"low": float(low), "high": float(high), "undefined_resamples": missing}


def sample_intervals(
    sample: Sample, class_names: Sequence[str], settings: Settings
) -> dict[str, Any]:
    """Intervals at both levels, of every metric that exists, with the reason where none does.

    Args:
        sample: The rows.
        class_names: Of all classes, for the reasons.
        settings: How to resample.
    """
    measures, found = measures_of(sample.probability), points(sample, class_names)
    weights = settings.draw(sample)
    values = {"image": image_values(sample, weights), "patient": patient_values(sample, weights)}
    result: dict[str, Any] = {measures.gap: _gaps(sample, weights, len(class_names))}
    for unit, names in measures.units().items():
        bases = {name: measures.basis(sample, name, class_names) for name in names}
        result[unit] = _rows(settings, found[unit], {n: values[unit][n] for n in names}, bases)
    for k, row in enumerate(found.get("by_class", ())):
        bases = {name: measures.basis(sample, name, class_names, k) for name in measures.per_class}
        own = {name: values["image"][name, k] for name in bases}
        rows = result.setdefault("by_class", [])
        rows.append({"class": row["class"], **_rows(settings, row, own, bases)})
    return result


def _gaps(sample: Sample, weights: np.ndarray, classes: int) -> int:
    """Resamples without a class. Each is drawn from in all if it has patients of its own.

    A count above 0 means that a class is only in patients who have images of several.
    """
    cells = weights @ per_patient(sample, np.eye(classes)[sample.label])
    if classes > 2:  # a class that is nowhere is told of as such
        cells = cells[:, np.isin(np.arange(classes), sample.label)]
    return int(np.sum((cells == 0).any(axis=1)))


def _rows(
    settings: Settings,
    found: Mapping[str, Any],
    values: Mapping[str, np.ndarray],
    bases: Mapping[str, Basis],
) -> dict[str, Any]:
    """An interval of each metric, or None and the reason under 'undefined'."""
    rows: dict[str, Any] = {}
    undefined: dict[str, str] = {}
    for name, basis in bases.items():
        reason = found["undefined"].get(name) or basis.reason
        interval = None if reason else settings.interval(values[name], basis)
        if interval and interval["low"] is None:
            reason = (
                f"it does not exist in {interval['undefined_resamples']} of "
                f"{settings.resamples} resamples"
            )
        elif interval and interval["low"] == interval["high"]:
            # All patients agree. An interval without width would read as certainty.
            reason = f"it is {interval['low']:.3g} in every resample, which is no certainty"
        if reason:
            undefined[name] = reason
        rows[name] = None if reason else interval
    return {**rows, "undefined": undefined}


def mean_intervals(
    predictions: Predictions, columns: Mapping[str, np.ndarray], settings: Settings
) -> dict[str, Any]:
    """Intervals of plain means over images, such as the Brier score.

    Args:
        predictions: Whose patients are resampled.
        columns: A value per image each.
        settings: How to resample.
    """
    sample = sample_of([predictions])
    basis = measures_of(sample.probability).basis(sample, "", predictions.class_names)
    weights = settings.draw(sample)
    images = weights @ np.bincount(sample.patient)
    return {
        name: None
        if basis.reason
        else settings.interval(weights @ per_patient(sample, values) / images, basis)
        for name, values in columns.items()
    } | {"undefined": dict.fromkeys(columns, basis.reason) if basis.reason else {}}
