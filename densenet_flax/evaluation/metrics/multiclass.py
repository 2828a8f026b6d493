"""Metrics of more than two classes, of many resamples at once.

The likeliest class is predicted, so there is no threshold. Each class against the rest is two
classes again, with the same definitions as in `binary`. A mean over classes ('macro') gives each
class the same weight and exists only if every class is present: a mean over seven of eight classes
is another number.
"""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from jaxtyping import Bool, Float, Int

from densenet_flax.evaluation.metrics.binary import ranking_metrics
from densenet_flax.evaluation.metrics.sample import Rows, Values, Weights

METRICS = (
    *("accuracy", "balanced_accuracy", "macro_f1", "mcc", "kappa"),
    *("macro_roc_auc", "top2_accuracy"),
)
MACRO = ("balanced_accuracy", "macro_f1", "macro_roc_auc")
# Metrics of one class against the rest, and what they are called with two classes.
PER_CLASS = {
    "recall": "sensitivity",
    "precision": "precision",
    "f1": "f1",
    "roc_auc": "roc_auc",
    "pr_auc": "pr_auc",
}


def multiclass_metrics(
    rows: Rows, weights: Weights, names: Sequence[str] = METRICS
) -> dict[str, Values | Float[np.ndarray, "R K"]]:
    """Computes metrics of images or patients in each resample; NaN where one does not exist.

    Returns:
      A value per resample of each of `names`, and under the names of `PER_CLASS` a column per
      class; the two areas, which take longest, only if the macro ROC-AUC is one of `names`.
    """
    confusion = rows.confusion(weights)
    overall, per_class = threshold_metrics(confusion)
    in_top2 = rows.sum_by_patient(in_top_two(rows.label, rows.probability))
    overall["top2_accuracy"] = weights @ in_top2 / confusion.sum(axis=(1, 2))
    if "macro_roc_auc" in names:

        def areas(k: int) -> dict[str, Values]:
            return ranking_metrics(rows.label == k, rows.probability[:, k], rows.patient, weights)

        # Threads, because NumPy releases the interpreter's lock while it adds.
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            by_class = list(pool.map(areas, range(rows.classes)))
        for name in ("roc_auc", "pr_auc"):
            per_class[name] = np.stack([class_areas[name] for class_areas in by_class], axis=1)
        overall["macro_roc_auc"] = per_class["roc_auc"].mean(axis=1)
    return {name: overall[name] for name in names} | per_class


def threshold_metrics(
    confusion: Float[np.ndarray, "R K K"],
) -> tuple[dict[str, Values], dict[str, Float[np.ndarray, "R K"]]]:
    """Computes what follows from the confusion matrix: over all classes, and of each class."""
    right = np.einsum("rkk->rk", confusion)
    true, predicted = confusion.sum(axis=2), confusion.sum(axis=1)
    total = true.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        recall = right / true
        # As with two classes, precision and F1 need rows of the class and of others.
        both = np.where((true > 0) & (true < total[:, None]), 1.0, np.nan)
        precision, f1 = both * right / predicted, both * 2 * right / (true + predicted)
        # The Matthews coefficient of several classes (Gorodkin, Computational Biology and
        # Chemistry 28, 2004) and Cohen's kappa: the correct rows beyond those that
        # chance would give with as many true and predicted rows, as a share of two maxima.
        by_chance = (true * predicted).sum(axis=1)
        beyond_chance = total * right.sum(axis=1) - by_chance
        variance_true = total**2 - (true**2).sum(axis=1)
        variances = variance_true * (total**2 - (predicted**2).sum(axis=1))
        overall = {
            "accuracy": right.sum(axis=1) / total,
            "balanced_accuracy": recall.mean(axis=1),
            "macro_f1": f1.mean(axis=1),
            "mcc": np.where(variances > 0, beyond_chance / np.sqrt(variances), np.nan),
            "kappa": np.where(variance_true > 0, beyond_chance / (total**2 - by_chance), np.nan),
        }
    return overall, {"recall": recall, "precision": precision, "f1": f1}


def in_top_two(
    label: Int[np.ndarray, " N"], probability: Float[np.ndarray, "N K"]
) -> Bool[np.ndarray, " N"]:
    """Whether the true class is one of the two likeliest; of equally likely ones the first are."""
    top = np.argsort(-probability, axis=1, kind="stable")[:, :2]
    return (top == label[:, None]).any(axis=1)


def multiclass_undefined(
    confusion: Int[np.ndarray, "K K"], class_names: Sequence[str], noun: str
) -> dict[str, str]:
    """Returns the reason for each metric that does not exist; arguments as `binary_undefined`."""
    true, predicted = confusion.sum(axis=1), confusion.sum(axis=0)
    undefined: dict[str, str] = {}
    if not true.all():
        absent = ", ".join(name for name, n in zip(class_names, true, strict=True) if not n)
        undefined |= dict.fromkeys(MACRO, f"no {absent} {noun}")
    if np.count_nonzero(true) == 1:  # the values of both would be forced
        reason = f"all {noun} are {class_names[int(true.argmax())]}"
        undefined |= {"mcc": reason, "kappa": reason}
    elif np.count_nonzero(predicted) == 1:
        undefined["mcc"] = f"all {noun} predicted {class_names[int(predicted.argmax())]}"
    return undefined


def one_against_rest(confusion: Int[np.ndarray, "K K"], k: int) -> Int[np.ndarray, "2 2"]:
    """Returns the confusion matrix of class k as the positive one of two classes."""
    tp = confusion[k, k]
    fn, fp = confusion[k].sum() - tp, confusion[:, k].sum() - tp
    return np.array([[confusion.sum() - tp - fn - fp, fp], [fn, tp]])
