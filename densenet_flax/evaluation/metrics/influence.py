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

from densenet_flax.evaluation.metrics.binary import Positive, Scores
from densenet_flax.evaluation.metrics.bootstrap import Strata
from densenet_flax.evaluation.metrics.levels import level_values
from densenet_flax.evaluation.metrics.sample import Rows, Sample, Values

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


def standard_error(
    influence: Float[np.ndarray, " P"], strata: Strata, carried: bool = False
) -> StandardError | None:
    """Returns the standard error of a metric; None if a stratum has one patient only.

    Args:
      influence: Of each patient.
      strata: Within which patients differ.
      carried: No more degrees of freedom than the patients who carry the variance, (Σd²)² / Σd⁴ of
        their deviations d, less two. Satterthwaite's formula is for normal deviations; where two
        networks differ in a few patients only, it made p < 0.05 in up to 9 % of comparisons of
        networks that are equally good; less one, in 6.1 %, less two, in 2.2 % (of the precision of
        patients, which had most).
    """
    if np.any(strata.sizes == 1):
        return None
    deviation = influence - strata.mean(influence)[strata.index]
    squares = np.bincount(strata.index, deviation**2, len(strata.sizes))
    variance = strata.sizes / (strata.sizes - 1) * squares
    total = variance.sum()
    if total <= 1e-20:  # rounding
        return StandardError(0.0, 1.0)
    freedom = total**2 / np.sum(variance**2 / (strata.sizes - 1))
    if carried:
        patients = np.sum(deviation**2) ** 2 / np.sum(deviation**4)
        freedom = max(1.0, min(freedom, patients - 2))
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
    result = {}
    for name, (value, d_positive, d_negative) in _area_derivatives(positive, score).items():
        pseudo = np.zeros(len(strata.sizes))
        for kind, derivative in ((True, d_positive), (False, d_negative)):
            other = positive != kind
            if other.any():
                count = rows.sum_by_patient(positive == kind)
                pseudo += strata.mean(count) * derivative[other].mean()
        own = rows.sum_by_patient(np.where(positive, d_positive, d_negative))
        result[name] = Influence(value, own, pseudo).centered(strata)
    return result


def _area_derivatives(
    positive: Positive, score: Scores
) -> dict[str, tuple[float, Float[np.ndarray, " N"], Float[np.ndarray, " N"]]]:
    """Each area, and its derivatives by the weight of a row more at the score of each row.

    The first is that of a positive row, the second that of a negative one.
    """
    distinct, index = np.unique(-score, return_inverse=True)  # highest score first
    positives = np.bincount(index, positive, len(distinct))
    negatives = np.bincount(index, ~positive, len(distinct))
    tp, fp = positives.cumsum(), negatives.cumsum()
    # Negatives below each score and positives above it, and half of those at it.
    below, above = fp[-1] - fp + negatives / 2, tp - positives / 2
    with np.errstate(invalid="ignore", divide="ignore"):
        pairs = tp[-1] * fp[-1]
        area = positives @ below / pairs
        precision = tp / (tp + fp)
        average = positives @ precision / tp[-1]

        # A row counts in the precision at its own score and at all lower ones.
        def from_here(values: Values) -> Values:
            return (positives * values / (tp + fp))[::-1].cumsum()[::-1] / tp[-1]

        positive_by_precision = (precision - average) / tp[-1] + from_here(1 - precision)
        return {
            "roc_auc": (
                float(area),
                (below / pairs - area / tp[-1])[index],
                (above / pairs - area / fp[-1])[index],
            ),
            "pr_auc": (
                float(average),
                positive_by_precision[index],
                -from_here(precision)[index],
            ),
        }


def _steps(patients: int) -> Float[np.ndarray, "P+1 P"]:
    """The table itself, and one resample for each patient with a little more of the patient."""
    return np.vstack([np.ones(patients), 1 + _STEP * np.eye(patients)])
