"""The oracle: metrics by scikit-learn, one at a time, NaN where this package says there is none."""

import numpy as np
from sklearn import metrics as sk

NAN = float("nan")


def drawn_rows(patient, times):
    """Indices of the rows of every drawn patient, as often as the patient was drawn."""
    return np.repeat(np.arange(len(patient)), np.asarray(times, int)[patient])


def binary(y, p, predicted):
    metrics = {"accuracy": sk.accuracy_score(y, predicted)}
    positives, both = np.sum(y == 1), len(np.unique(y)) == 2
    metrics["sensitivity"] = sk.recall_score(y, predicted) if positives else NAN
    metrics["specificity"] = (
        sk.recall_score(y, predicted, pos_label=0) if positives < len(y) else NAN
    )
    if not both:
        names = ("balanced_accuracy", "precision", "npv", "f1", "mcc", "roc_auc", "pr_auc")
        return metrics | dict.fromkeys(names, NAN)
    return metrics | {
        "balanced_accuracy": sk.balanced_accuracy_score(y, predicted),
        "precision": sk.precision_score(y, predicted) if np.any(predicted) else NAN,
        "npv": NAN if np.all(predicted) else sk.precision_score(y, predicted, pos_label=0),
        "f1": sk.f1_score(y, predicted),
        "mcc": sk.matthews_corrcoef(y, predicted) if len(np.unique(predicted)) == 2 else NAN,
        "roc_auc": sk.roc_auc_score(y, p),
        "pr_auc": sk.average_precision_score(y, p),
    }


def multiclass(y, p, predicted):
    classes = np.arange(p.shape[1])
    metrics = {"accuracy": sk.accuracy_score(y, predicted), "top2_accuracy": np.mean(top2(y, p))}
    one_class = len(np.unique(y)) == 1
    metrics["kappa"] = NAN if one_class else sk.cohen_kappa_score(y, predicted)
    constant = one_class or len(np.unique(predicted)) == 1
    metrics["mcc"] = NAN if constant else sk.matthews_corrcoef(y, predicted)
    if len(np.unique(y)) < len(classes):
        return metrics | dict.fromkeys(("balanced_accuracy", "macro_f1", "macro_roc_auc"), NAN)
    return metrics | {
        "balanced_accuracy": sk.balanced_accuracy_score(y, predicted),
        "macro_f1": sk.f1_score(y, predicted, average="macro", labels=classes),
        "macro_roc_auc": np.mean([sk.roc_auc_score(y == k, p[:, k]) for k in classes]),
    }


def top2(y, p):
    """Rows with less than two classes before the true one: likelier, or as likely and earlier."""
    return [
        sum((-q, j) < (-row[k], k) for j, q in enumerate(row)) < 2
        for row, k in zip(p, y, strict=True)
    ]


def one_class(y, p, predicted, k):
    """Class k against the rest, by the names of `multiclass.PER_CLASS`."""
    metrics = binary((y == k).astype(int), p[:, k], predicted == k)
    names = {"recall": "sensitivity"} | {n: n for n in ("precision", "f1", "roc_auc", "pr_auc")}
    return {name: metrics[binary_name] for name, binary_name in names.items()}
