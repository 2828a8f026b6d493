"""Whether probabilities mean what they say: Brier score, NLL, ECE, before and after scaling.

Probabilities are P(positive) `[N]`, or `[N, K]` of more than two classes.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from densenet_flax.common.trees import JsonDict
from densenet_flax.evaluation.metrics.bootstrap import Bootstrap
from densenet_flax.evaluation.metrics.intervals import mean_intervals
from densenet_flax.evaluation.metrics.temperature import margin, nll_per_image
from densenet_flax.evaluation.predictions import Predictions, Probability

BINS = 15


class _Binary(NamedTuple):
    """A yes-or-no outcome per image, and the probability that was predicted for it."""

    outcome: Bool[np.ndarray, " N"]
    probability: Float[np.ndarray, " N"]


def calibration_report(
    predictions: Predictions, validation: Predictions | None, bootstrap: Bootstrap
) -> JsonDict:
    """Returns 'calibration' of metrics.json: of the test images with intervals, and of validation.

    On the validation images the temperature was fitted, so theirs is too good.
    """
    stages = {"before": predictions.probability}
    if predictions.calibrated is not None:
        stages["after"] = predictions.calibrated
    errors = {}
    for stage, probability in stages.items():
        errors[f"brier_{stage}"] = brier_per_image(predictions.label, probability)
        errors[f"nll_{stage}"] = nll_per_image(predictions.label, margin(probability))
    # Image by image, so that the interval of a change knows that both are of the same images.
    if "after" in stages:
        for name in ("brier", "nll"):
            errors[f"{name}_change"] = errors[f"{name}_after"] - errors[f"{name}_before"]
    test = _before_and_after(predictions)
    test["intervals"] = mean_intervals(predictions, errors, bootstrap)
    for stage, probability in stages.items():
        name, binned = next(iter(_outcomes(predictions.label, probability).items()))
        _add_bin_intervals(test[stage][f"bins{name}"], predictions, binned, bootstrap)
    reason = "no temperature: no validation predictions and no operating point"
    return {
        "bins": BINS,
        "test": test,
        "validation": None if validation is None else _before_and_after(validation),
        "undefined": {} if "after" in stages else {"after": reason},
    }


def _before_and_after(table: Predictions) -> JsonDict:
    after = table.calibrated
    return {
        "before": calibration_metrics(table.label, table.probability),
        "after": None if after is None else calibration_metrics(table.label, after),
    }


def calibration_metrics(
    label: Int[np.ndarray, " N"], probability: Probability, bins: int = BINS
) -> JsonDict:
    """Returns Brier score, NLL, and two expected calibration errors with their bins.

    `ece` bins P(positive) and compares its mean with the share that is positive. `ece_top_label`
    bins the probability of the predicted class and compares it with the share that is right, as
    most papers on networks do (Guo et al., ICML 2017). They are different numbers; of more than two
    classes there is only the second.

    The bins have equal width from 0 to 1 and are closed on the left; the last holds 1 too.
    """
    label = np.asarray(label)
    metrics: JsonDict = {
        "n": len(label),
        "brier": float(np.mean(brier_per_image(label, probability))),
        "nll": float(nll_per_image(label, margin(probability)).mean()),
    }
    for name, binary in _outcomes(label, probability).items():
        metrics[f"ece{name}"], metrics[f"bins{name}"] = _binned(binary, bins)
    return metrics


def brier_per_image(
    label: Int[np.ndarray, " N"], probability: Probability
) -> Float[np.ndarray, " N"]:
    """Returns (P(positive) − truth)²; of more than two classes its sum over all classes, 0 to 2."""
    if probability.ndim > 1:
        return ((probability - np.eye(probability.shape[1])[label]) ** 2).sum(axis=1)
    return (probability - label) ** 2


def _outcomes(label: Int[np.ndarray, " N"], probability: Probability) -> dict[str, _Binary]:
    """What each error bins, by the end of its name; the first is the one that is drawn."""
    if probability.ndim > 1:
        right = probability.argmax(axis=1) == label
        return {"_top_label": _Binary(right, probability.max(axis=1))}
    # By 0.5 and not by the threshold: the class whose probability is higher, as of several classes.
    right = (probability >= 0.5) == (label == 1)
    return {
        "": _Binary(label == 1, probability),
        "_top_label": _Binary(right, np.maximum(probability, 1 - probability)),
    }


def _binned(binary: _Binary, bins: int) -> tuple[float, list[JsonDict]]:
    """The expected calibration error and its bins; an empty bin has no confidence and accuracy."""
    edges = np.linspace(0, 1, bins + 1).tolist()
    index = _bin_index(binary.probability, bins)
    count = np.bincount(index, minlength=bins)
    confidence = np.bincount(index, weights=binary.probability, minlength=bins)
    accuracy = np.bincount(index, weights=binary.outcome, minlength=bins)
    # Naeini et al., AAAI 2015: Σ count · |mean confidence − accuracy| ÷ n. The counts cancel.
    error = float(np.abs(confidence - accuracy).sum() / count.sum())
    rows: list[JsonDict] = [
        {
            "lower_edge": edges[i],
            "upper_edge": edges[i + 1],
            "count": int(count[i]),
            "confidence": float(confidence[i] / count[i]) if count[i] else None,
            "accuracy": float(accuracy[i] / count[i]) if count[i] else None,
        }
        for i in range(bins)
    ]
    return error, rows


def _bin_index(probability: Float[np.ndarray, " N"], bins: int) -> Int[np.ndarray, " N"]:
    # By the edges and not `int(probability * bins)`, which rounding may put into the next bin.
    edges = np.linspace(0, 1, bins + 1)
    return np.clip(np.searchsorted(edges, probability, side="right") - 1, 0, bins - 1)


def _add_bin_intervals(
    rows: list[JsonDict], predictions: Predictions, binary: _Binary, bootstrap: Bootstrap
) -> None:
    """Adds to each bin how far its share of the outcome varies with other patients."""
    index = _bin_index(binary.probability, len(rows))
    # Its accuracy is the mean of the outcome over the images in it.
    columns = {str(i): np.where(index == i, binary.outcome, np.nan) for i in range(len(rows))}
    intervals = mean_intervals(predictions, columns, bootstrap)
    for i, row in enumerate(rows):
        interval = intervals[str(i)]
        defined = interval is not None and interval["low"] is not None
        row["accuracy_interval"] = [interval["low"], interval["high"]] if defined else None
