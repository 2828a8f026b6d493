"""All numbers of a report, from the test images and what validation decided."""

from typing import Any

import numpy as np

from densenet_flax.common.errors import InputError
from densenet_flax.evaluation.metrics.calibration import (
    BINS,
    bin_index,
    brier_per_image,
    calibration_metrics,
    main_bins,
    margin,
    nll_per_image,
)
from densenet_flax.evaluation.metrics.compute import evaluate
from densenet_flax.evaluation.metrics.intervals import Settings, intervals, mean_intervals
from densenet_flax.evaluation.metrics.measures import measures_of
from densenet_flax.evaluation.metrics.operating_point import OperatingPoint
from densenet_flax.evaluation.metrics.sample import per_patient, sample_of
from densenet_flax.evaluation.predictions import Predictions


def assess(
    predictions: Predictions,
    validation: Predictions | None = None,
    operating_point: OperatingPoint | None = None,
    settings: Settings | None = None,
) -> dict[str, Any]:
    """What metrics.json holds about the predictions themselves.

    Args:
        predictions: Of the test images, with the operating point applied if there is one.
        validation: Of the validation images, likewise; only for their own calibration.
        operating_point: Where threshold and temperature are from.
        settings: How to resample.

    Raises:
        InputError: An image is in both tables.
    """
    settings = settings or Settings()
    if validation is not None:
        both = np.intersect1d(predictions.file, validation.file)
        if len(both):
            raise InputError(
                f"{len(both)} images are in the validation and in the test predictions, such as "
                f"'{both[0]}'; the threshold must not be chosen on the images it is judged by"
            )
    point = None
    if operating_point is not None:
        two = len(predictions.class_names) == 2
        point = {
            **operating_point.to_dict(),
            "calibrated_threshold": operating_point.calibrated_threshold if two else None,
        }
    return {
        **evaluate(predictions),
        "intervals": intervals(predictions, settings.resamples, settings.seed, settings.level),
        "operating_point": point,
        "calibration": _calibration(predictions, validation, settings),
        "shared_with_validation": _shared_patients(predictions, validation),
    }


def _shared_patients(predictions: Predictions, validation: Predictions | None) -> int | None:
    if validation is None:
        return None
    return len(np.intersect1d(predictions.patient, validation.patient))


def _calibration(
    predictions: Predictions, validation: Predictions | None, settings: Settings
) -> dict[str, Any]:
    test = _before_and_after(predictions)
    columns = _errors(predictions.label, predictions.probability, "before")
    if predictions.calibrated is not None:
        columns |= _errors(predictions.label, predictions.calibrated, "after")
        for name in ("brier", "nll"):
            columns[f"{name}_change"] = columns[f"{name}_after"] - columns[f"{name}_before"]
    test["intervals"] = mean_intervals(predictions, columns, settings)
    for side, probability in (
        ("before", predictions.probability),
        ("after", predictions.calibrated),
    ):
        if probability is not None:
            name, outcome, said = main_bins(predictions.label, probability)
            _add_bin_intervals(test[side][name], predictions, outcome, said, settings)
    return {
        "bins": BINS,
        "test": test,
        "validation": None if validation is None else _before_and_after(validation),
        "undefined": {}
        if predictions.calibrated is not None
        else {"after": "no temperature: no validation predictions and no operating point"},
    }


def _before_and_after(table: Predictions) -> dict[str, Any]:
    return {
        "before": calibration_metrics(table.label, table.probability),
        "after": None
        if table.calibrated is None
        else calibration_metrics(table.label, table.calibrated),
    }


def _errors(label: np.ndarray, probability: np.ndarray, when: str) -> dict[str, np.ndarray]:
    return {
        f"brier_{when}": brier_per_image(label, probability),
        f"nll_{when}": nll_per_image(label, margin(probability)),
    }


def _add_bin_intervals(
    rows: list[dict[str, Any]],
    predictions: Predictions,
    outcome: np.ndarray,
    said: np.ndarray,
    settings: Settings,
) -> None:
    """How far the share in each bin that came true moves with other patients."""
    sample = sample_of([predictions])
    basis = measures_of(sample.probability).basis(sample, "", predictions.class_names)
    weights = settings.draw(sample)
    member = np.eye(len(rows))[bin_index(said, len(rows))]
    count = weights @ per_patient(sample, member)
    positive = weights @ per_patient(sample, member * outcome[:, None])
    with np.errstate(invalid="ignore"):
        share = positive / count
    for i, row in enumerate(rows):
        empty = basis.reason or not row["count"]
        span = None if empty else settings.interval(share[:, i], basis)
        exists = span is not None and span["low"] is not None
        row["accuracy_interval"] = [span["low"], span["high"]] if span and exists else None
