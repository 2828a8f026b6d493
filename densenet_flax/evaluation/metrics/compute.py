"""From a predictions table to the numbers of metrics.json: start reading here.

`sample` gathers the images of each patient. `binary` and `multiclass` define the metrics; `levels`
and `groups` are their values in a table. `bootstrap` resamples patients, `pseudo_patients` and
`influence` compute what follows for a metric, and `intervals` decides which has which. `clinic`
has predictive values and sensitivity at a specificity. `calibration` measures the probabilities.
`operating_point` and `temperature` choose on validation images what is then applied to test images;
`comparison` and `folds` are for several tables.
"""

import numpy as np

from densenet_flax.common.errors import InputError
from densenet_flax.common.trees import JsonDict
from densenet_flax.evaluation.metrics import groups
from densenet_flax.evaluation.metrics.bootstrap import Bootstrap
from densenet_flax.evaluation.metrics.calibration import calibration_report
from densenet_flax.evaluation.metrics.clinic import clinic_metrics
from densenet_flax.evaluation.metrics.intervals import intervals
from densenet_flax.evaluation.metrics.levels import point_metrics
from densenet_flax.evaluation.metrics.operating_point import OperatingPoint
from densenet_flax.evaluation.metrics.sample import sample_of
from densenet_flax.evaluation.predictions import Predictions

SCHEMA = 1  # of metrics.json; its keys are in docs/report.md


def evaluate(predictions: Predictions) -> JsonDict:
    """Returns all point estimates of a table, as metrics.json has them."""
    class_names = predictions.class_names
    binary = len(class_names) == 2
    return {
        "schema": SCHEMA,
        "class_names": list(class_names),
        "positive_class": class_names[1] if binary else None,
        "threshold": predictions.threshold if binary else None,
        **point_metrics(sample_of(predictions), class_names),
        "by_magnification": groups.by_magnification(predictions),
        "by_subtype": groups.by_subtype(predictions),
        "by_patient": groups.by_patient(predictions),
    }


def assess(
    predictions: Predictions,
    validation: Predictions | None = None,
    operating_point: OperatingPoint | None = None,
    bootstrap: Bootstrap | None = None,
) -> JsonDict:
    """Returns what metrics.json holds about the predictions themselves.

    Args:
      predictions: Of the test images, with the operating point applied if there is one.
      validation: Of the validation images, likewise; only for their own calibration.
      operating_point: Where threshold and temperature are from.
      bootstrap: How to resample.

    Raises:
      InputError: An image is in both tables.
    """
    bootstrap = bootstrap or Bootstrap()
    shared_patients = None
    if validation is not None:
        shared = np.intersect1d(predictions.file, validation.file)
        if len(shared):
            raise InputError(
                f"{len(shared)} images are in the validation and in the test predictions, such as "
                f"'{shared[0]}'; the threshold must not be chosen on test images"
            )
        shared_patients = len(np.intersect1d(predictions.patient, validation.patient))
    point = None
    if operating_point is not None:
        binary = len(predictions.class_names) == 2
        calibrated_threshold = operating_point.calibrated_threshold if binary else None
        point = {**operating_point.to_dict(), "calibrated_threshold": calibrated_threshold}
    return {
        **evaluate(predictions),
        "intervals": intervals(predictions, bootstrap),
        "clinic": clinic_metrics(predictions, bootstrap),
        "operating_point": point,
        "calibration": calibration_report(predictions, validation, bootstrap),
        "shared_with_validation": shared_patients,
    }
