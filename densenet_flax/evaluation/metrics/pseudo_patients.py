"""Metrics of resamples with pseudo-patients: at their worst, and at their best.

At the worst every row of a pseudo-patient is classified wrong, at the best every row is right. It
has an average number of rows of its stratum. So both predictions occur in every resample, and a
metric that rests on a rare one, such as the precision, exists in all of them.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy import stats

from densenet_flax.evaluation.metrics import binary, multiclass
from densenet_flax.evaluation.metrics.bootstrap import (
    Bootstrap,
    Draws,
    Interval,
    Strata,
    make_interval,
)
from densenet_flax.evaluation.metrics.sample import Rows, Values

FROM_MINUS_ONE = ("mcc", "kappa")
METHOD = "pseudo-patients"
CLOPPER_PEARSON = "clopper-pearson"


class Ends(NamedTuple):
    """The values of a metric in each resample, for the lower and for the upper end."""

    worst: Float[np.ndarray, "R *K"]
    best: Float[np.ndarray, "R *K"]


def threshold_ends(rows: Rows, strata: Strata, draws: Draws) -> dict[str, Ends]:
    """Computes everything that follows from decisions, of images or of patients."""
    ends = [_threshold_values(rows, strata, draws, best) for best in (False, True)]
    return {
        name: Ends(
            # 0/0 in a table of one class, or where numbers are too small for a product of four.
            np.nan_to_num(ends[0][name], nan=-1.0 if name in FROM_MINUS_ONE else 0.0),
            np.nan_to_num(ends[1][name], nan=1.0),
        )
        for name in ends[0]
    }


def _threshold_values(
    rows: Rows, strata: Strata, draws: Draws, best: bool
) -> Mapping[str, Float[np.ndarray, "R *K"]]:
    confusion = combined_confusion(rows, strata, draws, best)
    if rows.classes == 2:
        return binary.threshold_metrics(confusion)
    overall, per_class = multiclass.threshold_metrics(confusion)
    top2 = multiclass.in_top_two(rows.label, rows.probability)
    overall["top2_accuracy"] = ratio_values(
        rows.sum_by_patient(top2),
        rows.sum_by_patient(np.ones(len(rows.label))),
        strata,
        draws,
        float(best),
    )
    return overall | per_class


def combined_confusion(
    rows: Rows, strata: Strata, draws: Draws, best: bool
) -> Float[np.ndarray, "R K K"]:
    """Returns the confusion matrix of each resample with its pseudo-patients."""
    k = rows.classes
    own = rows.confusion_by_patient
    # [S, K]: how many rows of each class a pseudo-patient has, and what they are taken for.
    true = strata.mean(own.sum(axis=2))
    decided = np.eye(k) if best else (1 - np.eye(k)) / (k - 1)
    pseudo = true[:, :, None] * decided
    total = draws.patients @ own.reshape(-1, k * k) + draws.pseudo @ pseudo.reshape(-1, k * k)
    return total.reshape(-1, k, k)


def ratio_values(
    total: Float[np.ndarray, " P"],
    size: Float[np.ndarray, " P"],
    strata: Strata,
    draws: Draws,
    pseudo: float | Float[np.ndarray, " S"],
) -> Values:
    """Returns the mean over rows in each resample, from each patient's sum and number of rows.

    `pseudo` is the mean of a pseudo-patient's rows.
    """
    average = strata.mean(size)
    above = draws.patients @ total + draws.pseudo @ (average * pseudo)
    below = draws.patients @ size + draws.pseudo @ average
    return np.divide(above, below, out=np.zeros_like(above), where=below > 0)


def clopper_pearson(right: int, total: int, bootstrap: Bootstrap) -> Interval:
    """Returns the exact interval of a proportion of patients (Biometrika 26(4), 1934)."""
    exact = stats.binomtest(right, total).proportion_ci(bootstrap.level)
    return make_interval(exact.low, exact.high, CLOPPER_PEARSON)
