"""Point estimates: the metrics of the table itself, of images and of patients."""

from collections.abc import Sequence
from typing import NotRequired, TypedDict

import numpy as np

from densenet_flax.common.types import JsonDict
from densenet_flax.evaluation.metrics.binary import binary_undefined
from densenet_flax.evaluation.metrics.metric_set import ACCURACY_BY_MEAN, metric_set
from densenet_flax.evaluation.metrics.multiclass import (
    PER_CLASS,
    multiclass_metrics,
    one_against_rest,
)
from densenet_flax.evaluation.metrics.sample import Rows, Sample


class LevelMetrics(TypedDict):
    """Metrics under their names, None where one does not exist, with reasons under 'undefined'."""

    image: JsonDict
    patient: JsonDict


class PointMetrics(LevelMetrics):
    """Metrics at both levels and, of more than two classes, of each class."""

    by_class: NotRequired[list[JsonDict]]


def point_metrics(sample: Sample, class_names: Sequence[str]) -> PointMetrics:
    """Returns all metrics of a sample."""
    result: PointMetrics = {**level_metrics(sample, class_names)}
    if sample.classes > 2:
        result["by_class"] = by_class(sample, class_names)
    return result


def level_metrics(sample: Sample, class_names: Sequence[str]) -> LevelMetrics:
    """Returns the metrics of a sample at both levels, each row decided by its own table."""
    return {
        "image": _row_metrics(sample.image, class_names, "images"),
        "patient": _patient_metrics(sample, class_names),
    }


def by_class(sample: Sample, class_names: Sequence[str]) -> list[JsonDict]:
    """Returns a row per class against the rest, of images; empty if there are two classes."""
    if sample.classes == 2:
        return []
    image = sample.image
    confusion = image.confusion(image.once)[0].astype(np.int64)
    values = multiclass_metrics(image, image.once)
    patients = (sample.images_by_class > 0).sum(axis=0).tolist()
    rows = []
    for k, class_name in enumerate(class_names):
        reasons = binary_undefined(one_against_rest(confusion, k), ("other", class_name), "images")
        undefined = {
            name: reasons[binary_name]
            for name, binary_name in PER_CLASS.items()
            if binary_name in reasons
        }
        rows.append(
            {
                "class": class_name,
                "n": int(confusion[k].sum()),
                "patients": patients[k],
                "called": int(confusion[:, k].sum()),
                **{
                    name: None if name in undefined else float(values[name][0, k])
                    for name in PER_CLASS
                },
                "undefined": undefined,
            }
        )
    return rows


def _row_metrics(rows: Rows, class_names: Sequence[str], noun: str) -> JsonDict:
    """Every metric of images or of patients; None where one does not exist."""
    metrics = metric_set(rows.classes)
    confusion = rows.confusion(rows.once)[0].astype(np.int64)
    undefined = metrics.undefined(confusion, class_names, noun)
    values = metrics.compute(rows, rows.once, metrics.names)
    return {
        "n": len(rows.label),
        **{n: None if n in undefined else float(values[n][0]) for n in metrics.names},
        "confusion": metrics.confusion_json(confusion),
        "undefined": {name: undefined[name] for name in metrics.names if name in undefined},
    }


def _patient_metrics(sample: Sample, class_names: Sequence[str]) -> JsonDict:
    """The metrics of patients: each counts once, however many images they have.

    `patient_recognition_rate` is BreakHis's (Spanhol et al., IEEE Transactions on Biomedical
    Engineering 63(7), 2016): the mean over patients of the share of their images that is right.
    All others decide once per patient, by the mean probability of the patient's images.
    """
    metrics, label = metric_set(sample.classes), sample.patient.label
    result: JsonDict = {
        "n": sample.patients,
        "n_by_class": {name: int(np.sum(label == k)) for k, name in enumerate(class_names)},
        "patient_recognition_rate": float(np.mean(sample.recognition_rate)),
    }
    names = {name: name for name in (*metrics.names, "confusion")} | {"accuracy": ACCURACY_BY_MEAN}
    mixed = int(np.sum(label < 0))
    if mixed:
        # Such patients have no true class to compare a decision with.
        classes = "both classes" if sample.classes == 2 else "several classes"
        reason = f"{mixed} of {sample.patients} patients have images of {classes}"
        result["n_by_class"][metrics.mixed] = mixed
        undefined = dict.fromkeys(names, reason)
        values = dict.fromkeys(names)
    else:
        values = _row_metrics(sample.patient, class_names, "patients")
        undefined = values["undefined"]
    result |= {name: values[row_name] for row_name, name in names.items()}
    result["undefined"] = {names[row_name]: reason for row_name, reason in undefined.items()}
    return result
