"""Image-level and patient-level metrics of a predictions table.

A metric that does not exist (only one class present, nothing predicted positive) is None, with
the reason under 'undefined': a 0 there would read as a bad result and NaN is not JSON.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn import metrics as sk

from densenet_flax.evaluation.predictions import Predictions

SCHEMA = 1
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


def image_metrics(predictions: Predictions) -> dict[str, Any]:
    """Every image counts once, whoever it is from."""
    return binary_metrics(
        predictions.label,
        predictions.probability,
        predictions.prediction,
        predictions.class_names,
    )


@dataclass(frozen=True, eq=False)
class PatientTable:
    """One row per patient, in the order of their names.

    Attributes:
        patient: Names.
        label: 0 or 1; -1 for a patient with images of both classes.
        images: Number of images.
        correct: Number of images whose predicted class is right.
        probability: Mean over the patient's images.
    """

    patient: np.ndarray
    label: np.ndarray
    images: np.ndarray
    correct: np.ndarray
    probability: np.ndarray


def patient_table(predictions: Predictions) -> PatientTable:
    """Gathers the images of each patient."""
    names, index = np.unique(predictions.patient, return_inverse=True)
    images = np.bincount(index)
    positive = np.bincount(index, weights=predictions.label).astype(np.int64)
    right = predictions.prediction == predictions.label
    return PatientTable(
        patient=names,
        label=np.where(positive == images, 1, np.where(positive == 0, 0, -1)),
        images=images,
        correct=np.bincount(index, weights=right).astype(np.int64),
        probability=np.bincount(index, weights=predictions.probability) / images,
    )


def patient_metrics(predictions: Predictions) -> dict[str, Any]:
    """Every patient counts once, however many images they have.

    `patient_recognition_rate` is BreakHis's: the mean over patients of the share of their images
    that is right. `patient_accuracy_by_mean_probability` and all that follows it judge each
    patient once, by the mean probability of their images.
    """
    table = patient_table(predictions)
    called = (table.probability >= predictions.threshold).astype(np.int64)
    rate = table.correct / table.images
    return judge_patients(table.label, table.probability, called, rate, predictions.class_names)


def judge_patients(
    label: np.ndarray,
    probability: np.ndarray,
    predicted: np.ndarray,
    rate: np.ndarray,
    class_names: Sequence[str],
) -> dict[str, Any]:
    """`patient_metrics` of arrays with one entry per patient.

    Args:
        label: 0 or 1; -1 for a patient with images of both classes.
        probability: Mean over the patient's images.
        predicted: 0 or 1, by that mean.
        rate: Share of the patient's images that is right.
        class_names: (negative, positive).
    """
    mixed = int(np.sum(label < 0))
    judged = (
        None if mixed else binary_metrics(label, probability, predicted, class_names, "patients")
    )
    result: dict[str, Any] = {
        "n": len(label),
        "n_by_class": {name: int(np.sum(label == i)) for i, name in enumerate(class_names)},
        "patient_recognition_rate": float(np.mean(rate)),
    }
    names = dict(zip(METRICS, METRICS, strict=True))
    names["accuracy"] = "patient_accuracy_by_mean_probability"
    names["confusion"] = "confusion"
    if judged is None:
        reason = f"{mixed} of {len(label)} patients have images of both classes"
        result["n_by_class"]["both"] = mixed
        result.update(dict.fromkeys(names.values()))
        result["undefined"] = dict.fromkeys(names.values(), reason)
    else:
        result.update({ours: judged[plain] for plain, ours in names.items()})
        reasons = judged["undefined"]
        result["undefined"] = {names[plain]: reason for plain, reason in reasons.items()}
    return result


def by_magnification(predictions: Predictions) -> list[dict[str, Any]]:
    """The image metrics, and the patient recognition rate, of each magnification."""
    rows = []
    for magnification in np.unique(predictions.magnification):
        part = predictions.select(predictions.magnification == magnification)
        patients = patient_metrics(part)
        rows.append(
            {
                "magnification": int(magnification),
                "patients": patients["n"],
                "patient_recognition_rate": patients["patient_recognition_rate"],
                **image_metrics(part),
            }
        )
    return rows


def by_subtype(predictions: Predictions) -> list[dict[str, Any]]:
    """Counts and accuracy of each subtype, benign ones first; empty if no subtype is known.

    A subtype has one class, so its accuracy is already its share of that class's
    sensitivity or specificity, and there is no AUC to speak of.
    """
    rows = []
    for subtype in np.unique(predictions.subtype[predictions.subtype != ""]):
        part = predictions.select(predictions.subtype == subtype)
        table = patient_table(part)
        rows.append(
            {
                "subtype": str(subtype),
                "class": _class_of(part),
                "n": len(part),
                "patients": len(table.patient),
                "correct": int(table.correct.sum()),
                "accuracy": int(table.correct.sum()) / len(part),
                "patient_recognition_rate": float(np.mean(table.correct / table.images)),
                "mean_probability": float(part.probability.mean()),
            }
        )
    order = [*predictions.class_names, "both"]
    return sorted(rows, key=lambda row: order.index(row["class"]))


def by_patient(predictions: Predictions) -> list[dict[str, Any]]:
    """Counts, accuracy and mean probability of each patient."""
    table = patient_table(predictions)
    names = (*predictions.class_names, "both")  # -1, a patient of both classes, is the last
    rows = []
    for i, patient in enumerate(table.patient):
        mine = predictions.patient == patient
        called = predictions.class_names[int(table.probability[i] >= predictions.threshold)]
        rows.append(
            {
                "patient": str(patient),
                "class": names[table.label[i]],
                "subtypes": sorted(set(predictions.subtype[mine].tolist()) - {""}),
                "n": int(table.images[i]),
                "correct": int(table.correct[i]),
                "accuracy": int(table.correct[i]) / int(table.images[i]),
                "mean_probability": float(table.probability[i]),
                "predicted_by_mean_probability": called,
            }
        )
    return rows


def evaluate(predictions: Predictions) -> dict[str, Any]:
    """Everything there is to say about the predictions, ready for JSON (see docs/report.md)."""
    return {
        "schema": SCHEMA,
        "class_names": list(predictions.class_names),
        "positive_class": predictions.class_names[1],
        "threshold": predictions.threshold,
        "image": image_metrics(predictions),
        "patient": patient_metrics(predictions),
        "by_magnification": by_magnification(predictions),
        "by_subtype": by_subtype(predictions),
        "by_patient": by_patient(predictions),
    }


def _class_of(predictions: Predictions) -> str:
    labels = np.unique(predictions.label)
    return predictions.class_names[labels[0]] if len(labels) == 1 else "both"
