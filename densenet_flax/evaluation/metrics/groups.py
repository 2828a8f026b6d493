"""Metrics of the groups in a table: a row per magnification, per subtype and per patient."""

import numpy as np
from jaxtyping import Float

from densenet_flax.common.trees import JsonDict
from densenet_flax.evaluation.metrics.levels import level_metrics, metric_set
from densenet_flax.evaluation.metrics.sample import sample_of
from densenet_flax.evaluation.predictions import Predictions


def by_magnification(predictions: Predictions) -> list[JsonDict]:
    """Returns the image metrics, and the patient recognition rate, of each magnification."""
    rows = []
    for magnification in np.unique(predictions.magnification):
        part = predictions.select(predictions.magnification == magnification)
        image, patient = level_metrics(sample_of(part), part.class_names).values()
        row = {"magnification": int(magnification), "patients": patient["n"]}
        row["patient_recognition_rate"] = patient["patient_recognition_rate"]
        rows.append(row | image)
    return rows


def by_subtype(predictions: Predictions) -> list[JsonDict]:
    """Returns counts and accuracy of each subtype, benign ones first; empty if none is known.

    A subtype has one class, so its accuracy is its share of that class's sensitivity or
    specificity, and it has no AUC. Where the subtypes are the classes, 'by_class' says everything
    and this is empty.
    """
    if subtypes_are_classes(predictions):
        return []
    rows: list[JsonDict] = []
    for subtype in np.unique(predictions.subtype[predictions.subtype != ""]):
        part = predictions.select(predictions.subtype == subtype)
        sample, labels = sample_of(part), np.unique(part.label)
        correct = int(sample.correct.sum())
        rows.append(
            {
                "subtype": str(subtype),
                "class": _class_names(part)[labels[0] if len(labels) == 1 else -1],
                "n": len(part),
                "patients": sample.patients,
                "correct": correct,
                "accuracy": correct / len(part),
                "patient_recognition_rate": float(np.mean(sample.recognition_rate)),
                "mean_probability": float(_shown_probability(part).mean()),
            }
        )
    return sorted(rows, key=lambda row: _class_names(predictions).index(row["class"]))


def by_patient(predictions: Predictions) -> list[JsonDict]:
    """Returns counts, accuracy and mean probability of each patient."""
    sample, class_names = sample_of(predictions), _class_names(predictions)
    mean_probability = sample.image.sum_by_patient(_shown_probability(predictions)) / sample.images
    return [
        {
            "patient": str(patient),
            "class": class_names[sample.patient.label[i]],
            "subtypes": sorted(set(predictions.subtype[sample.image.patient == i].tolist()) - {""}),
            "n": int(sample.images[i]),
            "correct": int(sample.correct[i]),
            "accuracy": float(sample.recognition_rate[i]),
            "mean_probability": float(mean_probability[i]),
            "predicted_by_mean_probability": class_names[sample.patient.predicted[i]],
        }
        for i, patient in enumerate(sample.patient_names)
    ]


def subtypes_are_classes(predictions: Predictions) -> bool:
    """Whether each of more than two classes is a subtype, so that one table shows both."""
    names = np.array(predictions.class_names)[predictions.label]
    return len(predictions.class_names) > 2 and bool(np.all(predictions.subtype == names))


def _class_names(predictions: Predictions) -> tuple[str, ...]:
    """The classes, and at the end, where index -1 finds it, the name for several of them."""
    class_names = predictions.class_names
    return (*class_names, metric_set(len(class_names)).mixed)


def _shown_probability(predictions: Predictions) -> Float[np.ndarray, " N"]:
    """The probability that tables show of an image: P(positive), or P(its true class)."""
    if predictions.probability.ndim == 1:
        return predictions.probability
    return predictions.probability[np.arange(len(predictions)), predictions.label]
