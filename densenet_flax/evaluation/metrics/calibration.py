"""Whether a probability means what it says: temperature scaling, ECE, Brier score, NLL.

The temperature divides the margin, log(P / (1 − P)), which is the difference of the two logits.
It keeps the order of images and which side of 0.5 they are on, so it changes no AUC. Of more than
two classes it divides the logits, which are log P but for a constant of the image; the order of
classes stays, so it changes no call.

Probabilities are P(positive), `[images]`, or `[images, classes]` of more than two classes.
"""

from typing import Any

import numpy as np
import scipy  # its parts are imported when they are first used

BINS = 15
# What float64 resolves near 1: a surer margin cannot be told from a probability, which is then
# exactly 1. It also keeps one sure mistake from making the NLL infinite.
_LARGEST_MARGIN = float(-np.log(2.0**-53))
_TEMPERATURES = (0.05, 20.0)


def margin(probability: np.ndarray) -> np.ndarray:
    """Log-odds of the positive class, the difference of the two logits; at most ±36.7.

    Of more than two classes log P of each, at least −36.7.
    """
    probability = np.asarray(probability, np.float64)
    if probability.ndim > 1:
        return np.log(np.maximum(probability, 2.0**-53))
    with np.errstate(divide="ignore"):
        odds = np.log(probability) - np.log1p(-probability)
    return np.clip(odds, -_LARGEST_MARGIN, _LARGEST_MARGIN)


def calibrate(probability: np.ndarray, temperature: float) -> np.ndarray:
    """The probability at a temperature; 1 returns it unchanged."""
    if temperature == 1:
        return np.asarray(probability, np.float64)
    margins = margin(probability) / temperature
    special = scipy.special
    return special.softmax(margins, axis=-1) if margins.ndim > 1 else special.expit(margins)


def nll_per_image(label: np.ndarray, margins: np.ndarray) -> np.ndarray:
    """Negative log-likelihood of each image's true class, in nats."""
    if margins.ndim > 1:
        return scipy.special.logsumexp(margins, axis=1) - margins[np.arange(len(label)), label]
    return np.logaddexp(0, np.where(label == 1, -margins, margins))


def brier_per_image(label: np.ndarray, probability: np.ndarray) -> np.ndarray:
    """(P(positive) − truth)²; of more than two classes the sum of that over all classes, 0 to 2."""
    if probability.ndim > 1:
        return ((probability - np.eye(probability.shape[1])[label]) ** 2).sum(axis=1)
    return (probability - label) ** 2


def fit_temperature(margins: np.ndarray, label: np.ndarray) -> tuple[float, str]:
    """The temperature of least mean NLL.

    Args:
        margins: Positive logit minus negative logit, per validation image; of more than two
            classes the logits.
        label: Index of the class.

    Returns:
        The temperature, and ''; or 1 and the reason why none is best. That is so where only one
        class is there, or where sharper (every image is right) or flatter (no image is better
        than chance) never stops being better.
    """
    label = np.asarray(label)
    if len(np.unique(label)) < 2:
        return 1.0, "the validation images are of one class, so there is no best temperature"
    low, high = np.log(_TEMPERATURES)
    found = scipy.optimize.minimize_scalar(
        lambda t: nll_per_image(label, margins * np.exp(-t)).mean(),
        bounds=(low, high),
        method="bounded",
        options={"xatol": 1e-6},
    )
    # In 1/t the NLL is convex, so it has one minimum; at an end it lies outside.
    if found.x < low + 0.01:
        return 1.0, (
            "every validation image is so far on its right side that sharper is always better; "
            "there is no best temperature"
        )
    if found.x > high - 0.01:
        return 1.0, (
            "the validation probabilities are no better than chance and flatter is always "
            "better; there is no best temperature"
        )
    return float(np.exp(found.x)), ""


def calibration_metrics(
    label: np.ndarray, probability: np.ndarray, bins: int = BINS
) -> dict[str, Any]:
    """Brier score, NLL, and two expected calibration errors with their bins.

    `ece` bins P(positive) and compares its mean with the share that is positive.
    `ece_top_label` bins the probability of the likelier class and compares it with the share
    that is right, as most papers on networks do. They are different numbers; of more than two
    classes there is only the second.

    Args:
        label: Index of the class per image.
        probability: Per image.
        bins: Equal-width bins from 0 to 1, closed on the left; the last holds 1 too.
    """
    label = np.asarray(label)
    found: dict[str, Any] = {
        "n": len(label),
        "brier": float(np.mean(brier_per_image(label, probability))),
        "nll": float(nll_per_image(label, margin(probability)).mean()),
    }
    for name, (outcome, said) in _calibrated(label, probability).items():
        rows = binned(outcome, said, bins)
        found |= {f"ece{name}": _expected_error(rows), f"bins{name}": rows}
    return found


def main_bins(label: np.ndarray, probability: np.ndarray) -> tuple[str, np.ndarray, np.ndarray]:
    """The bins that are drawn: under which name, and outcome and probability of each image."""
    name, (outcome, said) = next(iter(_calibrated(label, probability).items()))
    return f"bins{name}", outcome, said


def _calibrated(
    label: np.ndarray, probability: np.ndarray
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Outcome, and the probability that was said of it, of each error there is."""
    if probability.ndim > 1:
        right = probability.argmax(axis=1) == label
        return {"_top_label": (right, probability.max(axis=1))}
    right = (probability >= 0.5) == (label == 1)
    return {
        "": (label, probability),
        "_top_label": (right, np.maximum(probability, 1 - probability)),
    }


def bin_index(probability: np.ndarray, bins: int) -> np.ndarray:
    """Number of the bin of each probability."""
    edges = np.linspace(0, 1, bins + 1)
    return np.clip(np.searchsorted(edges, probability, side="right") - 1, 0, bins - 1)


def binned(outcome: np.ndarray, probability: np.ndarray, bins: int) -> list[dict[str, Any]]:
    """Per bin: its edges, how many, mean probability and share of the outcome; None if empty."""
    edges = np.linspace(0, 1, bins + 1)
    index = bin_index(probability, bins)
    count = np.bincount(index, minlength=bins)
    confidence = np.bincount(index, weights=probability, minlength=bins)
    accuracy = np.bincount(index, weights=outcome, minlength=bins)
    return [
        {
            "lower_edge": float(edges[i]),
            "upper_edge": float(edges[i + 1]),
            "count": int(count[i]),
            "confidence": float(confidence[i] / count[i]) if count[i] else None,
            "accuracy": float(accuracy[i] / count[i]) if count[i] else None,
        }
        for i in range(bins)
    ]


def _expected_error(rows: list[dict[str, Any]]) -> float:
    full = [row for row in rows if row["count"]]
    total = sum(row["count"] for row in full)
    gaps = (row["count"] * abs(row["confidence"] - row["accuracy"]) for row in full)
    return float(sum(gaps) / total)
