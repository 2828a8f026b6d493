"""Metrics at two levels, of images and of patients: point estimates, and values of each resample.

This is the one module that distinguishes two classes from more.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from densenet_flax.common.trees import JsonDict
from densenet_flax.evaluation.metrics import binary, multiclass
from densenet_flax.evaluation.metrics.multiclass import PER_CLASS
from densenet_flax.evaluation.metrics.sample import Rows, Sample, Weights

# The accuracy of patients has a name of its own, so that it is not taken for the recognition rate.
ACCURACY_BY_MEAN = "patient_accuracy_by_mean_probability"


@dataclass(frozen=True)
class MetricSet:
    """The metrics of two classes, or of more.

    Attributes:
      names: At the level of images; those of patients follow from them.
      compute: Metrics of each resample; NaN where one does not exist.
      undefined: From the table's confusion matrix, the reason for each metric that does not exist.
      confusion_json: The confusion matrix as metrics.json has it.
      mixed: What a patient with images of more than one class is called in metrics.json.
      gap_key: Under which key metrics.json counts resamples that lack a class.
    """

    names: tuple[str, ...]
    compute: Callable[[Rows, Weights, Sequence[str]], Mapping[str, Float[np.ndarray, "R *K"]]]
    undefined: Callable[[Int[np.ndarray, "K K"], Sequence[str], str], dict[str, str]]
    confusion_json: Callable[[Int[np.ndarray, "K K"]], Any]
    mixed: str
    gap_key: str

    @property
    def levels(self) -> dict[str, tuple[str, ...]]:
        """Names of the metrics at both levels."""
        patient = ("patient_recognition_rate", ACCURACY_BY_MEAN, *self.names[1:])
        return {"image": self.names, "patient": patient}


_BINARY = MetricSet(
    names=binary.METRICS,
    compute=binary.binary_metrics,
    undefined=binary.binary_undefined,
    confusion_json=binary.binary_confusion,
    mixed="both",
    gap_key="one_class_resamples",
)
_MULTICLASS = MetricSet(
    names=multiclass.METRICS,
    compute=multiclass.multiclass_metrics,
    undefined=multiclass.multiclass_undefined,
    confusion_json=np.ndarray.tolist,
    mixed="several",
    gap_key="resamples_without_a_class",
)


def metric_set(classes: int) -> MetricSet:
    """Returns the metrics of tables with that many classes."""
    return _BINARY if classes == 2 else _MULTICLASS


def level_values(
    sample: Sample, weights: Weights
) -> dict[str, Mapping[str, Float[np.ndarray, "R *K"]]]:
    """Computes the metrics of every resample at both levels; NaN where one does not exist.

    Of more than two classes 'image' also has the metrics of one class, with a column per class.
    """
    metrics = metric_set(sample.classes)
    if np.any(sample.patient.label < 0):
        # A patient with images of several classes has no true class.
        patient = dict.fromkeys(metrics.names, np.full(len(weights), np.nan))
    else:
        patient = dict(metrics.compute(sample.patient, weights, metrics.names))
    patient["patient_recognition_rate"] = weights @ sample.recognition_rate / weights.sum(axis=1)
    # At this level 'accuracy' alone would not say which of the two it is.
    patient[ACCURACY_BY_MEAN] = patient["accuracy"]
    return {
        "image": metrics.compute(sample.image, weights, metrics.names),
        "patient": {name: patient[name] for name in metrics.levels["patient"]},
    }


def level_metrics(sample: Sample, class_names: Sequence[str]) -> JsonDict:
    """Returns the metrics of a sample under 'image' and 'patient'.

    A metric that does not exist is None, with the reason under 'undefined'.
    """
    image = _row_metrics(sample.image, class_names, "images")
    return {"image": image, "patient": _patient_metrics(sample, class_names)}


def point_metrics(sample: Sample, class_names: Sequence[str]) -> JsonDict:
    """Returns the metrics of both levels and, of more than two classes, of each class."""
    rows = by_class(sample, class_names)
    return level_metrics(sample, class_names) | ({"by_class": rows} if rows else {})


def by_class(sample: Sample, class_names: Sequence[str]) -> list[JsonDict]:
    """Returns a row per class against the rest, of images; empty if there are two classes."""
    if sample.classes == 2:
        return []
    image = sample.image
    confusion = image.confusion(image.once)[0].astype(np.int64)
    values = multiclass.multiclass_metrics(image, image.once)
    patients = (sample.images_by_class > 0).sum(axis=0).tolist()
    rows = []
    for k, class_name in enumerate(class_names):
        against_rest = multiclass.one_against_rest(confusion, k)
        reasons = binary.binary_undefined(against_rest, ("other", class_name), "images")
        undefined = {name: reasons[key] for name, key in PER_CLASS.items() if key in reasons}
        row = {
            "class": class_name,
            "n": int(confusion[k].sum()),
            "patients": patients[k],
            "called": int(confusion[:, k].sum()),
        }
        for name in PER_CLASS:
            row[name] = None if name in undefined else float(values[name][0, k])
        rows.append({**row, "undefined": undefined})
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
        values, undefined = dict.fromkeys(names), dict.fromkeys(names, reason)
    else:
        values = _row_metrics(sample.patient, class_names, "patients")
        undefined = values["undefined"]
    result |= {name: values[row_name] for row_name, name in names.items()}
    result["undefined"] = {names[row_name]: reason for row_name, reason in undefined.items()}
    return result
