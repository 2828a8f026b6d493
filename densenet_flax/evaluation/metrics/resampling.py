"""Metrics of thousands of resamples at once, of images and of patients."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from densenet_flax.evaluation.metrics.measures import BY_MEAN, measures_of
from densenet_flax.evaluation.metrics.sample import Sample


def image_values(
    sample: Sample, weights: np.ndarray, names: Sequence[str] | None = None
) -> Mapping[Any, np.ndarray]:
    """Every image-level metric of every resample; NaN where it does not exist.

    Args:
        sample: The rows.
        weights: As `draw_patients` returns them.
        names: Which; without the areas it is faster. None is all.
    """
    measures = measures_of(sample.probability)
    return measures.resample(
        sample.label,
        sample.probability,
        sample.predicted,
        sample.patient,
        weights,
        measures.names if names is None else names,
    )


def patient_values(sample: Sample, weights: np.ndarray) -> dict[str, np.ndarray]:
    """Every patient-level metric of every resample; NaN where it does not exist."""
    measures = measures_of(sample.probability)
    found: dict[Any, np.ndarray] = {}
    if np.any(sample.patient_label < 0):
        found |= dict.fromkeys(measures.names, np.full(len(weights), np.nan))
    else:
        found |= measures.resample(
            sample.patient_label,
            sample.patient_probability,
            sample.patient_predicted,
            np.arange(len(sample.patient_label)),
            weights,
        )
    found["patient_recognition_rate"] = weights @ sample.patient_rate / weights.sum(axis=1)
    found[BY_MEAN] = found["accuracy"]
    return {name: found[name] for name in measures.patient_names}
