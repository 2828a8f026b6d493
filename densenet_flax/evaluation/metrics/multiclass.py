"""More than two classes: every metric of a set of units, and of thousands of resamples of it.

The likeliest class is called, so there is no threshold. Each class against the rest is two classes
again, and those numbers are made as there; a mean over classes ('macro') gives each class the same
weight and exists only if every class is there, since a mean over seven of eight is another number.
"""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from sklearn import metrics as sk

from densenet_flax.evaluation.metrics.binary import areas, binary_metrics
from densenet_flax.evaluation.metrics.sample import Basis, Sample, per_patient, sums_by_patient

METRICS = (
    "accuracy",
    "balanced_accuracy",
    "macro_f1",
    "mcc",
    "kappa",
    "macro_roc_auc",
    "top2_accuracy",
)
MACRO = ("balanced_accuracy", "macro_f1", "macro_roc_auc")
# Of each class against the rest, by the names that two classes have for them.
PER_CLASS = {
    "recall": "sensitivity",
    "precision": "precision",
    "f1": "f1",
    "roc_auc": "roc_auc",
    "pr_auc": "pr_auc",
}


def class_metrics(
    label: np.ndarray,
    probability: np.ndarray,
    predicted: np.ndarray,
    class_names: Sequence[str],
    unit: str = "images",
) -> dict[str, Any]:
    """Every metric over all classes of one set of units, which images or patients can be.

    Args:
        label: Index of the class per unit.
        probability: `[units, classes]`.
        predicted: Index of the class called per unit.
        class_names: For the reasons under 'undefined'.
        unit: What a row is, for the same.
    """
    classes = np.arange(len(class_names))
    confusion = sk.confusion_matrix(label, predicted, labels=classes)
    there, called = confusion.sum(axis=1) > 0, confusion.sum(axis=0) > 0
    undefined: dict[str, str] = {}
    if not there.all():
        absent = ", ".join(name for name, one in zip(class_names, there, strict=True) if not one)
        undefined |= dict.fromkeys(MACRO, f"no {absent} {unit}")
    if there.sum() == 1:  # the value of both is then forced
        reason = f"all {unit} are {class_names[int(there.argmax())]}"
        undefined |= {"mcc": reason, "kappa": reason}
    elif called.sum() == 1:
        undefined["mcc"] = f"all {unit} predicted {class_names[int(called.argmax())]}"

    compute = {
        "accuracy": lambda: sk.accuracy_score(label, predicted),
        "balanced_accuracy": lambda: sk.balanced_accuracy_score(label, predicted),
        "macro_f1": lambda: sk.f1_score(label, predicted, average="macro", labels=classes),
        "mcc": lambda: sk.matthews_corrcoef(label, predicted),
        "kappa": lambda: sk.cohen_kappa_score(label, predicted, labels=classes),
        "macro_roc_auc": lambda: np.mean(
            [sk.roc_auc_score(label == k, probability[:, k]) for k in classes]
        ),
        "top2_accuracy": lambda: np.mean(in_top_two(label, probability)),
    }
    result: dict[str, Any] = {"n": len(label)}
    for name in METRICS:
        result[name] = None if name in undefined else float(compute[name]())
    result["confusion"] = confusion.tolist()
    result["undefined"] = {name: undefined[name] for name in METRICS if name in undefined}
    return result


def in_top_two(label: np.ndarray, probability: np.ndarray) -> np.ndarray:
    """Whether the true class is one of the two likeliest; of equally likely ones the first are."""
    likeliest = np.argsort(-probability, axis=1, kind="stable")[:, :2]
    return (likeliest == label[:, None]).any(axis=1)


def each_class(sample: Sample, class_names: Sequence[str]) -> list[dict[str, Any]]:
    """Each class against the rest, on images: a row per class."""
    rows = []
    patients = (images_by_class(sample) > 0).sum(axis=0).tolist()
    for k, name in enumerate(class_names):
        mine, called = sample.label == k, sample.predicted == k
        found = binary_metrics(
            mine.astype(int), sample.probability[:, k], called.astype(int), ("other", name)
        )
        rows.append(
            {
                "class": name,
                "n": int(mine.sum()),
                "patients": patients[k],
                "called": int(called.sum()),
                **{ours: found[theirs] for ours, theirs in PER_CLASS.items()},
                "undefined": {
                    ours: found["undefined"][theirs]
                    for ours, theirs in PER_CLASS.items()
                    if theirs in found["undefined"]
                },
            }
        )
    return rows


def images_by_class(sample: Sample) -> np.ndarray:
    """Number of images of each class of each patient, `[patients, classes]`."""
    return per_patient(sample, np.eye(sample.probability.shape[1])[sample.label])


def class_values(
    label: np.ndarray,
    probability: np.ndarray,
    predicted: np.ndarray,
    patient: np.ndarray,
    weights: np.ndarray,
    names: Sequence[str] = METRICS,
) -> dict[Any, np.ndarray]:
    """Every metric of every resample; NaN where it does not exist.

    Arguments as for `binary_values`. With the macro AUC come those of each class against the rest
    that it is made of, under (name, number of the class).
    """
    classes, patients = probability.shape[1], weights.shape[1]
    cells = sums_by_patient(np.eye(classes**2)[classes * label + predicted], patient, patients)
    confusion = (weights @ cells).reshape(-1, classes, classes)
    top = sums_by_patient(in_top_two(label, probability).astype(float), patient, patients)
    found: dict[Any, np.ndarray] = _from_confusion(confusion)
    found["top2_accuracy"] = weights @ top / confusion.sum(axis=(1, 2))
    if "macro_roc_auc" in names:

        def against_the_rest(k: int) -> dict[str, np.ndarray]:
            return areas((label == k).astype(int), probability[:, k], patient, weights)

        # NumPy lets other threads run while it adds.
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for k, own in enumerate(pool.map(against_the_rest, range(classes))):
                found |= {(name, k): values for name, values in own.items()}
        found["macro_roc_auc"] = np.mean([found["roc_auc", k] for k in range(classes)], axis=0)
    return {key: values for key, values in found.items() if key in names or isinstance(key, tuple)}


def _from_confusion(confusion: np.ndarray) -> dict[Any, np.ndarray]:
    """The rules of `class_metrics` on `[resamples, true, predicted]`; 0/0 is NaN."""
    right = np.einsum("rkk->rk", confusion)
    true, called = confusion.sum(axis=2), confusion.sum(axis=1)
    total = true.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        recall = right / true
        exists = np.where((true > 0) & (true < total[:, None]), 1.0, np.nan)
        precision, f1 = exists * right / called, exists * 2 * right / (true + called)
        # Of what the numbers of calls and of images of each class would give by chance.
        by_chance = (true * called).sum(axis=1)
        hits = total * right.sum(axis=1) - by_chance
        spread_true = total**2 - (true**2).sum(axis=1)
        spread = spread_true * (total**2 - (called**2).sum(axis=1))
        found: dict[Any, np.ndarray] = {
            "accuracy": right.sum(axis=1) / total,
            "balanced_accuracy": recall.mean(axis=1),
            "macro_f1": f1.mean(axis=1),
            "mcc": np.where(spread > 0, hits / np.sqrt(spread), np.nan),
            "kappa": np.where(spread_true > 0, hits / (total**2 - by_chance), np.nan),
        }
    for name, values in (("recall", recall), ("precision", precision), ("f1", f1)):
        found |= {(name, k): values[:, k] for k in range(values.shape[1])}
    return found


def class_basis(
    sample: Sample, name: str, class_names: Sequence[str], k: int | None = None
) -> Basis:
    """What a metric rests on.

    A mean over classes rests on the patients of each class, a metric of class k on those of that
    class and, but for the recall, on the rest; the others on everyone.

    Args:
        sample: The rows.
        name: The metric.
        class_names: For the reason.
        k: Number of the class, of a metric of one class.
    """
    has = images_by_class(sample) > 0
    everyone = len(has)
    if everyone == 1:
        return Basis(1, reason="only one patient, and one cannot be resampled")
    if k is None and name not in MACRO:
        sizes = np.unique(strata(sample), return_counts=True)[1]
        return _together(sizes, sizes)
    counts = has.sum(axis=0)
    single = [class_names[int(i)] for i in np.flatnonzero(counts == 1) if k in (None, i)]
    if single:
        return Basis(1, reason=f"only one {single[0]} patient, and one cannot be resampled")
    if k is None:
        counts = counts[counts > 0]
        return _together(counts, np.ones(len(counts)))
    others = int(np.sum(np.delete(has, k, axis=1).any(axis=1)))
    concerned = [int(counts[k]), *([] if name == "recall" else [others])]
    if others == 1 and name != "recall":
        return Basis(1, reason="only one patient of the other classes, and one cannot be resampled")
    return Basis(min(concerned))


def _together(sizes: np.ndarray, share: np.ndarray) -> Basis:
    """Groups of patients that are resampled each for itself, taken together.

    If the spread is the same in all groups, resampling shows too little of it by Σ v/n ÷ Σ v, with
    v = share²/n, and Satterthwaite's degrees of freedom are (Σ v)² ÷ Σ v²/(n − 1).
    """
    sizes = sizes.astype(float)
    spread = share**2 / sizes
    lost = spread @ (1 / sizes) / spread.sum()
    freedom = spread.sum() ** 2 / (spread**2 @ (1 / np.maximum(sizes - 1, 0.5)))
    return Basis(float(1 / lost), float(freedom))


def strata(sample: Sample) -> np.ndarray:
    """Within which patients are drawn: their class; those with several classes are one more.

    A patient who is the only one of a class would be in every resample just once, and nothing
    would be seen of how that class varies. Such patients are drawn together, and with the smallest
    other class if there is one of them only.
    """
    names, sizes = np.unique(sample.patient_label, return_counts=True)
    alone = list(names[sizes == 1])
    others = sorted((size, name) for size, name in zip(sizes, names, strict=True) if size > 1)
    if len(alone) == 1 and others:
        alone.append(others[0][1])
    return np.where(np.isin(sample.patient_label, alone), -2, sample.patient_label)
