"""Image-level and patient-level metrics of a predictions table, and of the groups in it."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from densenet_flax.evaluation.metrics.measures import BY_MEAN, measures_of
from densenet_flax.evaluation.metrics.multiclass import each_class
from densenet_flax.evaluation.metrics.sample import Sample, patient_table, sample_of
from densenet_flax.evaluation.predictions import Predictions

SCHEMA = 1


def image_metrics(predictions: Predictions) -> dict[str, Any]:
    """Every image counts once, whoever it is from."""
    return measures_of(predictions.probability).judge(
        predictions.label,
        predictions.probability,
        predictions.prediction,
        predictions.class_names,
        "images",
    )


def patient_metrics(predictions: Predictions) -> dict[str, Any]:
    """Every patient counts once, however many images they have.

    `patient_recognition_rate` is BreakHis's: the mean over patients of the share of their images
    that is right. `patient_accuracy_by_mean_probability` and all that follows it judge each
    patient once, by the mean probability of their images.
    """
    table = patient_table(predictions)
    called = predictions.decide(table.probability)
    rate = table.correct / table.images
    return judge_patients(table.label, table.probability, called, rate, predictions.class_names)


def points(sample: Sample, class_names: Sequence[str]) -> dict[str, Any]:
    """The metrics of a sample at both levels, each call as its own table decides."""
    measures = measures_of(sample.probability)
    found: dict[str, Any] = {
        "image": measures.judge(
            sample.label, sample.probability, sample.predicted, class_names, "images"
        ),
        "patient": judge_patients(
            sample.patient_label,
            sample.patient_probability,
            sample.patient_predicted,
            sample.patient_rate,
            class_names,
        ),
    }
    return found | ({"by_class": each_class(sample, class_names)} if measures.per_class else {})


def judge_patients(
    label: np.ndarray,
    probability: np.ndarray,
    predicted: np.ndarray,
    rate: np.ndarray,
    class_names: Sequence[str],
) -> dict[str, Any]:
    """`patient_metrics` of arrays with one entry per patient.

    Args:
        label: Index of the class; -1 for a patient with images of several.
        probability: Mean over the patient's images.
        predicted: Index of the class called, by that mean.
        rate: Share of the patient's images that is right.
        class_names: Of all classes.
    """
    measures = measures_of(probability)
    mixed = int(np.sum(label < 0))
    judged = (
        None if mixed else measures.judge(label, probability, predicted, class_names, "patients")
    )
    result: dict[str, Any] = {
        "n": len(label),
        "n_by_class": {name: int(np.sum(label == i)) for i, name in enumerate(class_names)},
        "patient_recognition_rate": float(np.mean(rate)),
    }
    names = {name: name for name in measures.names}
    names["accuracy"] = BY_MEAN
    names["confusion"] = "confusion"
    if judged is None:
        classes = "both classes" if len(class_names) == 2 else "several classes"
        reason = f"{mixed} of {len(label)} patients have images of {classes}"
        result["n_by_class"][measures.several] = mixed
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
    sensitivity or specificity, and there is no AUC to speak of. Where the subtypes are the classes,
    `by_class` says it all and this is empty.
    """
    if subtypes_are_classes(predictions):
        return []
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
                "mean_probability": float(_told(part).mean()),
            }
        )
    order = [*predictions.class_names, measures_of(predictions.probability).several]
    return sorted(rows, key=lambda row: order.index(row["class"]))


def by_patient(predictions: Predictions) -> list[dict[str, Any]]:
    """Counts, accuracy and mean probability of each patient."""
    table = patient_table(predictions)
    several = measures_of(predictions.probability).several
    names = (*predictions.class_names, several)  # -1, a patient of several classes, is the last
    called = predictions.decide(table.probability)
    rows = []
    for i, patient in enumerate(table.patient):
        mine = predictions.patient == patient
        rows.append(
            {
                "patient": str(patient),
                "class": names[table.label[i]],
                "subtypes": sorted(set(predictions.subtype[mine].tolist()) - {""}),
                "n": int(table.images[i]),
                "correct": int(table.correct[i]),
                "accuracy": int(table.correct[i]) / int(table.images[i]),
                "mean_probability": _mean_of(predictions, mine, table.probability[i]),
                "predicted_by_mean_probability": predictions.class_names[called[i]],
            }
        )
    return rows


def evaluate(predictions: Predictions) -> dict[str, Any]:
    """Everything there is to say about the predictions, ready for JSON (see docs/report.md)."""
    two = len(predictions.class_names) == 2
    return {
        "schema": SCHEMA,
        "class_names": list(predictions.class_names),
        "positive_class": predictions.class_names[1] if two else None,
        "threshold": predictions.threshold if two else None,
        **points(sample_of([predictions]), predictions.class_names),
        "by_magnification": by_magnification(predictions),
        "by_subtype": by_subtype(predictions),
        "by_patient": by_patient(predictions),
    }


def subtypes_are_classes(predictions: Predictions) -> bool:
    """Whether each of more than two classes is a subtype, so that one table tells of both."""
    names = np.array(predictions.class_names)[predictions.label]
    return len(predictions.class_names) > 2 and bool(np.all(predictions.subtype == names))


def _told(predictions: Predictions) -> np.ndarray:
    """The probability that tables show of an image: P(positive), or P(its true class)."""
    if predictions.probability.ndim == 1:
        return predictions.probability
    return predictions.probability[np.arange(len(predictions)), predictions.label]


def _mean_of(predictions: Predictions, mine: np.ndarray, mean: np.ndarray) -> float:
    """The same of a patient whose mean probability is known."""
    return float(mean if mean.ndim == 0 else _told(predictions.select(mine)).mean())


def _class_of(predictions: Predictions) -> str:
    labels = np.unique(predictions.label)
    several = measures_of(predictions.probability).several
    return predictions.class_names[labels[0]] if len(labels) == 1 else several
