"""The validation result that ends stages, lowers the rate and says which epoch is best."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from densenet_flax.evaluation.metrics.binary import ranking_metrics
from densenet_flax.inference.results import to_probabilities

MONITORS = ("loss", "auc", "accuracy")


def monitored_values(history: Sequence[Mapping[str, Any]], monitor: str) -> list[float]:
    """The validation results of these epochs, with the sign by which the lowest is the best.

    A result that is not a number, of a network whose outputs are not finite, is the worst.
    """
    values = [epoch.get(f"validation_{monitor}") for epoch in history]
    sign = 1.0 if monitor == "loss" else -1.0
    return [np.inf if value is None or np.isnan(value) else sign * value for value in values]


def validation_auc(logits: Float[np.ndarray, "N K"], labels: Int[np.ndarray, " N"]) -> float:
    """The area under the ROC curve of images; of several classes the mean of each against the rest.

    It is computed as in the evaluation: the share of pairs that are in the right order, not an
    approximation by thresholds as Keras's `AUC`. NaN if a class has no images, or a logit is not
    finite.
    """
    if not np.isfinite(logits).all():
        return np.nan
    probability = to_probabilities(logits)
    classes = range(logits.shape[1]) if logits.shape[1] > 2 else (1,)
    one_resample = np.zeros(len(labels), int), np.ones((1, 1))
    areas = [
        ranking_metrics(labels == k, probability[:, k], *one_resample)["roc_auc"] for k in classes
    ]
    return float(np.mean(areas))
