"""Two classes: every metric of a set of units, and of thousands of resamples of it at once.

A unit is an image, or a patient with the mean of all images' probabilities. A metric that does not
exist (only one class present, nothing predicted positive) is None, with the reason under
'undefined': a 0 there would read as a bad result and NaN is not JSON. A resample is a row of
weights, how often each patient was drawn; its results are those of a loop that copies rows and
asks scikit-learn, to rounding.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from sklearn import metrics as sk

from densenet_flax.evaluation.metrics.sample import Basis, Sample, sums_by_patient

METRICS = (
    "accuracy",
    "balanced_accuracy",
    "sensitivity",
    "specificity",
    "precision",
    "f1",
    "mcc",
    "roc_auc",
    "pr_auc",
)

# Resamples × images handled at a time: what fits into a processor's cache is fastest.
_CHUNK = 1_000_000


def binary_metrics(
    label: np.ndarray,
    probability: np.ndarray,
    predicted: np.ndarray,
    class_names: Sequence[str],
    unit: str = "images",
) -> dict[str, Any]:
    """Every threshold and ranking metric of one set of units, which images or patients can be.

    Takes arrays and not a table, so that resampled rows (a row may occur twice) and rows called
    at different thresholds fit as well.

    Args:
        label: 0 or 1 per unit.
        probability: P(positive) per unit.
        predicted: 0 or 1 per unit.
        class_names: (negative, positive), for the reasons under 'undefined'.
        unit: What a row is, for the same.
    """
    tn, fp, fn, tp = sk.confusion_matrix(label, predicted, labels=[0, 1]).ravel().tolist()
    negative, positive = class_names
    undefined: dict[str, str] = {}
    if tp + fn == 0:
        undefined["sensitivity"] = f"no {positive} {unit}"
    if tn + fp == 0:
        undefined["specificity"] = f"no {negative} {unit}"
    if undefined:
        # Precision, F1 and average precision can still be computed from one class, but their
        # value is then forced (0 or 1) or repeats another metric's.
        (reason,) = undefined.values()
        for name in ("balanced_accuracy", "precision", "f1", "mcc", "roc_auc", "pr_auc"):
            undefined[name] = reason
    else:
        if tp + fp == 0:
            undefined["precision"] = f"no {unit} predicted {positive}"
        if tp + fp == 0 or tn + fn == 0:
            undefined["mcc"] = f"all {unit} predicted {negative if tp + fp == 0 else positive}"

    compute = {
        "accuracy": lambda: sk.accuracy_score(label, predicted),
        "balanced_accuracy": lambda: sk.balanced_accuracy_score(label, predicted),
        "sensitivity": lambda: sk.recall_score(label, predicted, pos_label=1),
        "specificity": lambda: sk.recall_score(label, predicted, pos_label=0),
        "precision": lambda: sk.precision_score(label, predicted),
        "f1": lambda: sk.f1_score(label, predicted),
        "mcc": lambda: sk.matthews_corrcoef(label, predicted),
        "roc_auc": lambda: sk.roc_auc_score(label, probability),
        "pr_auc": lambda: sk.average_precision_score(label, probability),
    }
    result: dict[str, Any] = {"n": len(label)}
    for name in METRICS:
        result[name] = None if name in undefined else float(compute[name]())
    result["confusion"] = {"tn": tn, "fp": fp, "fn": fn, "tp": tp}
    result["undefined"] = {name: undefined[name] for name in METRICS if name in undefined}
    return result


def binary_values(
    label: np.ndarray,
    probability: np.ndarray,
    predicted: np.ndarray,
    patient: np.ndarray,
    weights: np.ndarray,
    names: Sequence[str] = METRICS,
) -> dict[str, np.ndarray]:
    """Every metric of every resample; NaN where it does not exist.

    Args:
        label: 0 or 1 per unit.
        probability: P(positive) per unit.
        predicted: 0 or 1 per unit.
        patient: Number of the patient per unit.
        weights: How often each patient is drawn, `[resamples, patients]`.
        names: Which metrics; without the two areas it is faster.
    """
    cells = sums_by_patient(_cells(label, predicted), patient, weights.shape[1])
    found = _threshold_values(*(weights @ cells).T)
    wanted = [name for name in names if name in ("roc_auc", "pr_auc")]
    if wanted:
        found |= areas(label, probability, patient, weights, wanted)
    return {name: found[name] for name in names}


def binary_basis(sample: Sample, name: str, class_names: Sequence[str]) -> Basis:
    """What a metric rests on: the patients of the rarer class whose images it looks at."""
    concerned = {"sensitivity": (1, -1), "specificity": (0, -1)}.get(name, (0, 1, -1))
    counts = {label: int(np.sum(sample.patient_label == label)) for label in concerned}
    counts = {label: patients for label, patients in counts.items() if patients}
    spoken = {0: f"{class_names[0]} patient", 1: f"{class_names[1]} patient"}
    for label, patients in counts.items():
        if patients == 1:
            kind = spoken.get(label, "patient with images of both classes")
            return Basis(1, reason=f"only one {kind}, and one cannot be resampled")
    return Basis(min(counts.values(), default=0))


def _cells(label: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """1 in the column of the row's cell: true negative, false positive, false negative, true."""
    return np.eye(4)[2 * label + predicted]


def _threshold_values(
    tn: np.ndarray, fp: np.ndarray, fn: np.ndarray, tp: np.ndarray
) -> dict[str, np.ndarray]:
    """The rules of `metrics.binary_metrics` on whole columns; 0/0 is NaN."""
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
            "f1": both * 2 * tp / (2 * tp + fp + fn),
            "mcc": np.where(product > 0, (tp * tn - fp * fn) / np.sqrt(product), np.nan),
        }


def areas(
    label: np.ndarray,
    probability: np.ndarray,
    patient: np.ndarray,
    weights: np.ndarray,
    names: Sequence[str] = ("roc_auc", "pr_auc"),
) -> dict[str, np.ndarray]:
    """ROC-AUC (ties count half) and average precision of every resample."""
    found: dict[str, list[np.ndarray]] = {name: [] for name in names}
    for positive, negative in _counts_by_score(label, probability, patient, weights):
        tp, fp = positive.cumsum(axis=1), negative.cumsum(axis=1)
        positives, negatives = tp[:, -1], fp[:, -1]
        with np.errstate(invalid="ignore", divide="ignore"):
            if "roc_auc" in found:
                below = negatives[:, None] - fp + negative / 2
                pairs = np.einsum("bu,bu->b", positive, below)
                found["roc_auc"].append(pairs / (positives * negatives))
            if "pr_auc" in found:
                precision = np.divide(tp, tp + fp, out=np.zeros_like(tp), where=tp + fp > 0)
                area = np.einsum("bu,bu->b", positive, precision) / positives
                found["pr_auc"].append(np.where(negatives > 0, area, np.nan))
    return {name: np.concatenate(parts) for name, parts in found.items()}


def _counts_by_score(
    label: np.ndarray, probability: np.ndarray, patient: np.ndarray, weights: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(positives, negatives) at each distinct score, highest first, for a few resamples a time."""
    order = np.argsort(-probability, kind="stable")
    label, patient, score = label[order], patient[order], probability[order]
    starts = np.flatnonzero(np.append(True, score[1:] != score[:-1]))
    step = max(1, _CHUNK // len(order))
    for begin in range(0, len(weights), step):
        drawn = weights[begin : begin + step][:, patient]
        everyone = np.add.reduceat(drawn, starts, axis=1)
        positive = np.add.reduceat(drawn * label, starts, axis=1)
        yield positive, everyone - positive
