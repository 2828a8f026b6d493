"""Which metrics a table has: the one place that distinguishes two classes from more."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int

from densenet_flax.evaluation.metrics import binary, multiclass
from densenet_flax.evaluation.metrics.sample import Rows, Sample, Values, Weights

Level = Literal["image", "patient"]
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
    def patient_names(self) -> tuple[str, ...]:
        """Names of the metrics at the level of patients."""
        return ("patient_recognition_rate", ACCURACY_BY_MEAN, *self.names[1:])

    @property
    def levels(self) -> dict[Level, tuple[str, ...]]:
        """Names of the metrics at both levels."""
        return {"image": self.names, "patient": self.patient_names}


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


def image_values(
    sample: Sample, weights: Weights, names: Sequence[str] | None = None
) -> Mapping[str, Float[np.ndarray, "R *K"]]:
    """Computes the image-level metrics of every resample; NaN where one does not exist.

    Of more than two classes there are also metrics of one class, with a column per class. Naming
    the metrics, without the areas, is faster.
    """
    metrics = metric_set(sample.classes)
    return metrics.compute(sample.image, weights, metrics.names if names is None else names)


def patient_values(sample: Sample, weights: Weights) -> dict[str, Values]:
    """Computes the patient-level metrics of every resample; NaN where one does not exist."""
    metrics = metric_set(sample.classes)
    if np.any(sample.patient.label < 0):
        # A patient with images of several classes has no true class.
        values = dict.fromkeys(metrics.names, np.full(len(weights), np.nan))
    else:
        values = dict(metrics.compute(sample.patient, weights, metrics.names))
    values["patient_recognition_rate"] = weights @ sample.recognition_rate / weights.sum(axis=1)
    values[ACCURACY_BY_MEAN] = values["accuracy"]
    return {name: values[name] for name in metrics.patient_names}
