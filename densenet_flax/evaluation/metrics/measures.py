"""What is measured of a table: the one place that tells two classes from more.

Intervals, comparison and cross-validation are the same for both; they ask here.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from densenet_flax.evaluation.metrics import binary, multiclass
from densenet_flax.evaluation.metrics.sample import Basis, Sample

BY_MEAN = "patient_accuracy_by_mean_probability"


@dataclass(frozen=True)
class Measures:
    """The metrics of a kind of table.

    Attributes:
        names: Of images; those of patients follow from it.
        judge: (label, probability, predicted, class names, unit) to metrics, 'confusion' and
            'undefined'.
        resample: (label, probability, predicted, patient, weights, names) to a value of each
            metric per resample; under (name, number of a class) those of one class.
        basis: (sample, name, class names[, number of a class]) to what a metric rests on.
        strata: Within which patients are drawn.
        per_class: Names of the metrics of one class.
        several: What a patient with images of several classes is called.
        gap: Under which name resamples are counted that lack a class.
    """

    names: tuple[str, ...]
    judge: Callable[..., dict[str, Any]]
    resample: Callable[..., Mapping[Any, np.ndarray]]
    basis: Callable[..., Basis]
    strata: Callable[[Sample], np.ndarray]
    per_class: tuple[str, ...] = ()
    several: str = "both"
    gap: str = "one_class_resamples"

    @property
    def patient_names(self) -> tuple[str, ...]:
        """Of patients; their accuracy has a name of its own, so that none is taken for another."""
        return ("patient_recognition_rate", BY_MEAN, *self.names[1:])

    def units(self) -> dict[str, tuple[str, ...]]:
        """Names of the metrics at both levels."""
        return {"image": self.names, "patient": self.patient_names}


_TWO = Measures(
    names=binary.METRICS,
    judge=binary.binary_metrics,
    resample=binary.binary_values,
    basis=binary.binary_basis,
    strata=lambda sample: sample.patient_label,
)
_MORE = Measures(
    names=multiclass.METRICS,
    judge=multiclass.class_metrics,
    resample=multiclass.class_values,
    basis=multiclass.class_basis,
    strata=multiclass.strata,
    per_class=tuple(multiclass.PER_CLASS),
    several="several",
    gap="resamples_without_a_class",
)


def measures_of(probability: np.ndarray) -> Measures:
    """Those of a table, by the shape of its probabilities."""
    return _TWO if np.ndim(probability) == 1 else _MORE
