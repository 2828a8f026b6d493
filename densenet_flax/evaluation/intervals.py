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

from densenet_flax.errors import InputError
from densenet_flax.evaluation.metrics import METRICS, image_metrics, patient_metrics
from densenet_flax.evaluation.predictions import Predictions
from densenet_flax.evaluation.resampling import (
    PATIENT_METRICS,
    Sample,
    draw_patients,
    image_values,
    patient_values,
    per_patient,
    sample_of,
)

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
    everyone = sample_of([predictions])
    points = {"image": image_metrics(predictions), "patient": patient_metrics(predictions)}
    settings = Settings(resamples, seed, level)
    result: dict[str, Any] = {
        **settings.describe(),
        **sample_intervals(everyone, points, predictions.class_names, settings),
        "by_magnification": [],
        "by_subtype": [],
    }
    for key, column in (
        ("magnification", predictions.magnification),
        ("subtype", predictions.subtype),
    ):
        for value in np.unique(column):
            if value == "":
                continue
            part = predictions.select(column == value)
            points = {"image": image_metrics(part), "patient": patient_metrics(part)}
            found = sample_intervals(sample_of([part]), points, predictions.class_names, settings)
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

    def tail(self, patients: int) -> float:
        """Share of the resamples to leave out at either end.

        (1 − level) / 2 if there were many patients. The spread of a mean's resamples is too small
        by sqrt((n − 1) / n), and the normal's tails are where Student's should be; these are the
        percentiles that make up for both (Hesterberg, The American Statistician 69(4), 2015).
        """
        plain = (1 - self.level) / 2
        if patients < 2:
            return plain
        widening = np.sqrt(patients / (patients - 1))
        return float(stats.norm.cdf(widening * stats.t.ppf(plain, patients - 1)))

    def interval(self, values: np.ndarray, patients: int) -> dict[str, Any]:
        """The middle of the values that exist, for as many patients as the metric rests on."""
        exist = values[np.isfinite(values)]
        missing = len(values) - len(exist)
        if missing > _MOST_UNDEFINED * len(values):
            return {"low": None, "high": None, "undefined_resamples": missing}
        tail = self.tail(patients)
        low, high = np.quantile(exist, [tail, 1 - tail])
        return {"low": float(low), "high": float(high), "undefined_resamples": missing}


def sample_intervals(
    sample: Sample,
    points: Mapping[str, Mapping[str, Any]],
    class_names: Sequence[str],
    settings: Settings,
) -> dict[str, Any]:
    """Intervals at both levels, of every metric that exists, with the reason where none does.

    Args:
        sample: The rows.
        points: 'image' and 'patient': the metrics themselves, with 'undefined'.
        class_names: (negative, positive), for the reasons.
        settings: How to resample.
    """
    weights = draw_patients(sample.patient_label, settings.resamples, settings.seed)
    found = {
        "image": (METRICS, image_values(sample, weights)),
        "patient": (PATIENT_METRICS, patient_values(sample, weights)),
    }
    # Both classes are drawn from in every resample if each has a patient of its own; a count
    # above 0 means that one class is only in patients who have images of both.
    cells = weights @ per_patient(sample, np.eye(2)[sample.label])
    result: dict[str, Any] = {
        "one_class_resamples": int(np.sum((cells == 0).any(axis=1))),
    }
    for unit, (names, values) in found.items():
        rows: dict[str, Any] = {}
        undefined: dict[str, str] = {}
        for name in names:
            reason = points[unit]["undefined"].get(name) or too_few(sample, name, class_names)
            patients = fewest_patients(sample, name)
            interval = None if reason else settings.interval(values[name], patients)
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
        result[unit] = {**rows, "undefined": undefined}
    return result


def too_few(sample: Sample, name: str, class_names: Sequence[str]) -> str:
    """Why resampling can say nothing about a metric, or ''.

    Drawing one patient of one gives that patient every time: an interval without width where
    there is the most doubt.
    """
    spoken = {0: f"{class_names[0]} patient", 1: f"{class_names[1]} patient"}
    for label, patients in _patients_behind(sample, name).items():
        if patients == 1:
            kind = spoken.get(label, "patient with images of both classes")
            return f"only one {kind}, and one cannot be resampled"
    return ""


def fewest_patients(sample: Sample, name: str) -> int:
    """How many patients of the rarer class a metric rests on."""
    return min(_patients_behind(sample, name).values(), default=0)


def _patients_behind(sample: Sample, name: str) -> dict[int, int]:
    """Number of patients of each class (-1: of both) whose images the metric looks at."""
    concerned = {"sensitivity": (1, -1), "specificity": (0, -1)}.get(name, (0, 1, -1))
    counts = {label: int(np.sum(sample.patient_label == label)) for label in concerned}
    return {label: patients for label, patients in counts.items() if patients}


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
    reason = too_few(sample, "", predictions.class_names)
    weights = draw_patients(sample.patient_label, settings.resamples, settings.seed)
    images = weights @ np.bincount(sample.patient)
    patients = fewest_patients(sample, "")
    return {
        name: None
        if reason
        else settings.interval(weights @ per_patient(sample, values) / images, patients)
        for name, values in columns.items()
    } | {"undefined": dict.fromkeys(columns, reason) if reason else {}}
