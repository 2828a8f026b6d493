"""Metrics of two classes, of many resamples at once.

The rows are images, or patients with the mean of their images' probabilities. A metric that does
not exist is NaN here (nothing predicted positive, only one class present), and None with a reason
in metrics.json: a 0 there would read as a bad result, and NaN is not JSON.
"""

from collections.abc import Iterator, Sequence
from typing import TypeAlias

import numpy as np
from jaxtyping import Bool, Float, Int

from densenet_flax.evaluation.metrics.sample import Rows, Values, Weights

Positive: TypeAlias = Bool[np.ndarray, " N"]  # whether a row is of the positive class
Scores: TypeAlias = Float[np.ndarray, " N"]
# Both coordinates of its points: one per distinct score, and one beyond them.
Curve: TypeAlias = tuple[Float[np.ndarray, " U+1"], Float[np.ndarray, " U+1"]]

# In the order of metrics.json; the areas are last, as they take longest.
METRICS = (
    *("accuracy", "balanced_accuracy", "sensitivity", "specificity", "precision", "npv"),
    *("f1", "mcc", "roc_auc", "pr_auc"),
)

# Resamples × rows per step: what fits into a processor's cache is fastest.
_CHUNK = 1_000_000


def binary_metrics(
    rows: Rows, weights: Weights, names: Sequence[str] = METRICS
) -> dict[str, Values]:
    """Computes metrics of images or patients in each resample; without the areas it is faster."""
    values = threshold_metrics(rows.confusion(weights))
    if not set(names) <= values.keys():
        values |= ranking_metrics(rows.label == 1, rows.probability, rows.patient, weights)
    return {name: values[name] for name in names}


def threshold_metrics(confusion: Float[np.ndarray, "R 2 2"]) -> dict[str, Values]:
    """Computes what follows from the confusion matrix (true class, predicted class)."""
    (tn, fp), (fn, tp) = np.moveaxis(confusion, 0, -1)
    # With one class only, precision, F1 and average precision could still be computed, but their
    # values would be forced (0 or 1) or repeat another metric's.
    both = np.where((tn + fp > 0) & (fn + tp > 0), 1.0, np.nan)
    with np.errstate(invalid="ignore", divide="ignore"):
        sensitivity, specificity = tp / (tp + fn), tn / (tn + fp)
        product = (tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)
        return {
            "accuracy": (tn + tp) / (tn + fp + fn + tp),
            "balanced_accuracy": (sensitivity + specificity) / 2,
            "sensitivity": sensitivity,
            "specificity": specificity,
            "precision": both * tp / (tp + fp),
            "npv": both * tn / (tn + fn),
            "f1": both * 2 * tp / (2 * tp + fp + fn),
            "mcc": np.where(product > 0, (tp * tn - fp * fn) / np.sqrt(product), np.nan),
        }


def ranking_metrics(
    positive: Positive,
    score: Scores,
    patient: Int[np.ndarray, " N"],
    weights: Weights,
) -> dict[str, Values]:
    """Computes ROC-AUC and average precision of each resample.

    ROC-AUC is the share of pairs of a positive and a negative row in which the positive has the
    higher score; ties count half (the Mann-Whitney statistic, equal to the trapezoid rule's area).
    Average precision is the mean precision at the score of each positive row, a step function: the
    trapezoid rule is too optimistic between the points of a precision-recall curve (Davis and
    Goadrich, ICML 2006).
    """
    roc_auc, pr_auc = [], []
    for positives, negatives in counts_by_score(positive, score, patient, weights):
        tp, fp = positives.cumsum(axis=1), negatives.cumsum(axis=1)
        all_positives, all_negatives = tp[:, -1], fp[:, -1]
        with np.errstate(invalid="ignore", divide="ignore"):
            # Negatives below each score, and half of those at it.
            lower = all_negatives[:, None] - fp + negatives / 2
            pairs = np.einsum("ru,ru->r", positives, lower)
            roc_auc.append(pairs / (all_positives * all_negatives))
            # 0/0 above the highest score drawn; nothing positive is there to weigh it.
            precision = np.divide(tp, tp + fp, out=np.zeros_like(tp), where=tp + fp > 0)
            area = np.einsum("ru,ru->r", positives, precision) / all_positives
            pr_auc.append(np.where(all_negatives > 0, area, np.nan))
    return {"roc_auc": np.concatenate(roc_auc), "pr_auc": np.concatenate(pr_auc)}


def counts_by_score(
    positive: Positive,
    score: Scores,
    patient: Int[np.ndarray, " N"],
    weights: Weights,
    size: Float[np.ndarray, " N"] | None = None,
) -> Iterator[tuple[Float[np.ndarray, "r U"], Float[np.ndarray, "r U"]]]:
    """Yields (positives, negatives) at each of U distinct scores, highest first, of r resamples.

    `size` is how much a row counts beside the weight of its patient, by default 1.
    """
    # The order is the same in all resamples: sorted once, and tied rows are added up.
    order = np.argsort(-score, kind="stable")
    positive, score, patient = positive[order], score[order], patient[order]
    starts = np.flatnonzero(np.append(True, score[1:] != score[:-1]))
    step = max(1, _CHUNK // len(order))
    for begin in range(0, len(weights), step):
        times = weights[begin : begin + step][:, patient]
        if size is not None:
            times = times * size[order]
        everyone = np.add.reduceat(times, starts, axis=1)
        positives = np.add.reduceat(times * positive, starts, axis=1)
        yield positives, everyone - positives


def counts_by_threshold(
    positive: Positive, score: Scores
) -> tuple[Float[np.ndarray, " U"], Int[np.ndarray, " U"], Int[np.ndarray, " U"]]:
    """Returns the distinct scores, highest first, and true and false positives at each."""
    order = np.argsort(-score, kind="stable")
    positive, score = positive[order], score[order]
    last = np.append(score[1:] != score[:-1], True)  # tied rows are positive together
    return score[last], positive.cumsum()[last], (~positive).cumsum()[last]


def roc_curve(positive: Positive, score: Scores) -> Curve:
    """Returns the points of the ROC curve, false and true positive rate, from (0, 0) to (1, 1)."""
    _, tp, fp = counts_by_threshold(positive, score)
    return np.append(0, fp) / fp[-1], np.append(0, tp) / tp[-1]


def precision_recall_curve(positive: Positive, score: Scores) -> Curve:
    """Returns the points of the curve, precision and recall, from recall 1 to (1, 0)."""
    _, tp, fp = counts_by_threshold(positive, score)
    # The last point, of no row at all, has no precision; it is 1 by convention.
    return np.append((tp / (tp + fp))[::-1], 1.0), np.append((tp / tp[-1])[::-1], 0.0)


def binary_undefined(
    confusion: Int[np.ndarray, "2 2"], class_names: Sequence[str], noun: str
) -> dict[str, str]:
    """Returns the reason for each metric that a table with this confusion matrix does not have.

    The noun is what a row is, 'images' or 'patients'.
    """
    true, predicted = confusion.sum(axis=1), confusion.sum(axis=0)
    for missing, defined in ((0, "sensitivity"), (1, "specificity")):
        if not true[missing]:
            reason = f"no {class_names[missing]} {noun}"
            return {name: reason for name in METRICS if name not in ("accuracy", defined)}
    undefined = {}
    if not predicted[1]:
        undefined["precision"] = f"no {noun} predicted {class_names[1]}"
    if not predicted[0]:
        undefined["npv"] = f"no {noun} predicted {class_names[0]}"
    if not predicted.all():
        undefined["mcc"] = f"all {noun} predicted {class_names[int(predicted.argmax())]}"
    return undefined


def binary_confusion(confusion: Int[np.ndarray, "2 2"]) -> dict[str, int]:
    """Returns the confusion matrix as metrics.json has it."""
    return dict(zip(("tn", "fp", "fn", "tp"), confusion.ravel().tolist(), strict=True))
