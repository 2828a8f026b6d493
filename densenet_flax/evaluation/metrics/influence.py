"""How much a metric changes with each patient: its variance, intervals and p-values from that.

A metric is a function of the patients' weights. Its derivatives are the patients' influence, and
the sum of their squares within strata is the variance of the metric over patients (the
infinitesimal jackknife; of an AUC it is the clustered variance of Obuchowski, Biometrics 53(2),
1997). Student's t has Satterthwaite's degrees of freedom (Biometrics Bulletin 2(6), 1946).
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy import special, stats

from densenet_flax.evaluation.metrics.binary import Positive, Scores, ranking_metrics
from densenet_flax.evaluation.metrics.bootstrap import Strata
from densenet_flax.evaluation.metrics.levels import level_values
from densenet_flax.evaluation.metrics.sample import Rows, Sample

# Of a patient's weight: small enough for a derivative, large enough for its digits.
_STEP = 1e-4


class Influence(NamedTuple):
    """The derivative of a metric by the weight of each patient, and of each pseudo-patient."""

    value: float
    patients: Float[np.ndarray, " P"]
    pseudo: Float[np.ndarray, " S"]

    def centered(self, strata: Strata) -> "Influence":
        """The effect of a patient in place of an average one of the stratum."""
        mean = strata.mean(self.patients)
        return Influence(self.value, self.patients - mean[strata.index], self.pseudo - mean)


class StandardError(NamedTuple):
    """A standard error over patients, and its degrees of freedom."""

    value: float
    freedom: float

    def half_width(self, tail: float) -> float:
        """How far an interval reaches to either side."""
        return float(-stats.t.ppf(tail, self.freedom) * self.value)


def standard_error(influence: Float[np.ndarray, " P"], strata: Strata) -> StandardError | None:
    """Returns the standard error of a metric; None if a stratum has one patient only."""
    if np.any(strata.sizes == 1):
        return None
    deviation = influence - strata.mean(influence)[strata.index]
    squares = np.bincount(strata.index, deviation**2, len(strata.sizes))
    variance = strata.sizes / (strata.sizes - 1) * squares
    total = variance.sum()
    if total <= 1e-20:  # rounding
        return StandardError(0.0, 1.0)
    freedom = total**2 / np.sum(variance**2 / (strata.sizes - 1))
    return StandardError(float(np.sqrt(total)), float(freedom))


def p_value(difference: float, error: StandardError) -> float:
    """Returns the two-sided p-value of a difference: below 1 − level where its interval omits 0."""
    if error.value == 0:
        return float(abs(difference) < 1e-12)
    return float(2 * stats.t.sf(abs(difference) / error.value, error.freedom))


def t_limits(
    value: float, error: StandardError, tail: float, scale: str = ""
) -> tuple[float, float]:
    """Returns the ends of Student's interval.

    Args:
      value: The metric.
      error: Its standard error.
      tail: Probability beyond either end.
      scale: 'logit' for 0 to 1, 'fisher' for −1 to 1, on which the interval is symmetric; at the
        end of its scale a value has no interval and both ends are the value.
    """
    half = error.half_width(tail)
    if scale:
        unit = (value + 1) / 2 if scale == "fisher" else value
        if not 1e-12 < unit < 1 - 1e-12:
            return value, value
        step = half * (0.5 if scale == "fisher" else 1) / (unit * (1 - unit))
        low, high = special.expit(special.logit(unit) + np.array([-step, step]))
        return (2 * low - 1, 2 * high - 1) if scale == "fisher" else (low, high)
    return value - half, value + half


def level_influence(
    sample: Sample, strata: Strata
) -> dict[str, Mapping[str, Float[np.ndarray, "P *K"]]]:
    """Returns the influence of each patient on every metric of both levels, by the jackknife.

    Each patient is left out once, and the others of the stratum count more. For few patients with
    unequal numbers of images this is wider than a derivative, which holds too rarely there. Where
    a metric does not exist without a patient, the derivative takes its place.
    """
    size = strata.sizes[strata.index]
    left = np.maximum(size - 1, 1)
    own = strata.index == strata.index[:, None]
    weights = np.where(own, (size / left)[:, None], 1.0) * (1 - np.eye(sample.patients))
    without = level_values(sample, weights)
    values = level_values(sample, _steps(sample.patients))
    result: dict[str, Mapping[str, np.ndarray]] = {}
    for level, metrics in values.items():
        influence = {}
        for name, v in metrics.items():
            derivative = (v[1:] - v[:1]) / _STEP
            missing = without[level][name]
            change = ((v[:1] - missing).T * (left / size)).T
            influence[name] = np.where(np.isfinite(missing), change, derivative)
        result[level] = influence
    return result


def area_influence(
    rows: Rows, positive: Positive, score: Scores, strata: Strata
) -> dict[str, Influence]:
    """Returns the influence on ROC-AUC and average precision.

    The pseudo-patient of a stratum has an average number of rows of its classes, and their scores
    are those of all rows of the other class: a patient about whom the scores say nothing. (One
    below all others would make every interval useless.)
    """
    index, size = [rows.patient], [np.ones(len(score))]
    labels, scores = [positive], [score]
    for kind in (True, False):
        # Rows of the other class, as rows of this one.
        other = positive != kind
        if not other.any():
            continue
        average = strata.mean(np.bincount(rows.patient, positive == kind, rows.patients))
        for s in np.flatnonzero(average):
            index.append(np.full(other.sum(), rows.patients + s))
            size.append(np.full(other.sum(), average[s] / other.sum()))
            labels.append(np.full(other.sum(), kind))
            scores.append(score[other])
    weights = np.pad(_steps(rows.patients), ((0, len(strata.sizes)), (0, len(strata.sizes))))
    extra = np.arange(len(strata.sizes))
    weights[rows.patients + 1 :, : rows.patients] = 1
    weights[rows.patients + 1 + extra, rows.patients + extra] = _STEP
    values = ranking_metrics(
        np.concatenate(labels),
        np.concatenate(scores),
        np.concatenate(index),
        weights,
        np.concatenate(size),
    )
    result = {}
    for name, value in values.items():
        slope = (value[1:] - value[0]) / _STEP
        influence = Influence(float(value[0]), slope[: rows.patients], slope[rows.patients :])
        result[name] = influence.centered(strata)
    return result


def _steps(patients: int) -> Float[np.ndarray, "P+1 P"]:
    """The table itself, and one resample for each patient with a little more of the patient."""
    return np.vstack([np.ones(patients), 1 + _STEP * np.eye(patients)])
