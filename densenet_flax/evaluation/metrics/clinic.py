"""What a clinic asks of two classes: predictive values, sensitivity at a specificity, net benefit.

Precision and NPV in a test set are those of the test set's share of positive patients. At another
prevalence they follow from sensitivity and specificity by Bayes' rule.
"""

from dataclasses import replace

import numpy as np
from jaxtyping import Float

from densenet_flax.common.trees import JsonDict
from densenet_flax.evaluation.metrics.binary import counts_by_score
from densenet_flax.evaluation.metrics.bootstrap import Bootstrap, Draws, Strata, strata_of
from densenet_flax.evaluation.metrics.pseudo_patients import METHOD, combined_confusion
from densenet_flax.evaluation.metrics.sample import Rows, Values, patient_means, sample_of
from densenet_flax.evaluation.predictions import Predictions

PREVALENCES = (0.05, 0.2, 0.5)
SPECIFICITIES = (0.9, 0.95)
# At which a decision curve is computed; at 1 no false positive is worth anything.
_THRESHOLDS = np.arange(1, 100) / 100


def clinic_metrics(predictions: Predictions, bootstrap: Bootstrap) -> JsonDict | None:
    """Returns 'clinic' of metrics.json: of images and of patients, each value with its interval.

    None where a class is missing, or for more than two. Both levels are None where a patient
    has images of both classes. The prevalences are 5, 20 and 50 % and that of the data,
    `own`. The sensitivity at a specificity is read off the ROC curve of the test images, so it
    is what a threshold could reach that nobody has yet chosen.
    """
    sample = sample_of(predictions)
    if sample.classes > 2 or not np.all(sample.images_by_class.any(axis=0)):
        return None
    strata = strata_of(sample)
    mixed = np.any(sample.patient.label < 0)
    return {
        "decision_curve": decision_curve(predictions),
        "image": None if mixed else _level(sample.image, strata, bootstrap),
        "patient": None if mixed else _level(sample.patient, strata, bootstrap),
    }


def _level(rows: Rows, strata: Strata, bootstrap: Bootstrap) -> JsonDict:
    """Predictive values and sensitivities of images or of patients, with their intervals."""
    draws = bootstrap.draw(strata)
    once = Draws(rows.once, np.zeros((1, len(strata.sizes))))
    own = float(np.mean(rows.label))
    worst, best = (combined_confusion(rows, strata, draws, end) for end in (False, True))
    point = combined_confusion(rows, strata, once, best=False)
    predictive = []
    for prevalence in (*PREVALENCES, own):
        row: JsonDict = {"prevalence": prevalence, "own": prevalence is own}
        ends = [predictive_values(c, prevalence) for c in (point, worst, best)]
        for name in ("ppv", "npv"):
            value = float(ends[0][name][0])
            low, high = (np.nan_to_num(end[name], nan=i) for i, end in enumerate(ends[1:]))
            row[name] = None if np.isnan(value) else value
            row[f"{name}_interval"] = (
                None if np.isnan(value) else bootstrap.interval(low, high, value, METHOD)
            )
        predictive.append(row)
    sensitivity = []
    values = [
        _sensitivity_at(rows, strata, weights, best)
        for weights, best in ((once, False), (draws, False), (draws, True))
    ]
    for i, specificity in enumerate(SPECIFICITIES):
        value = float(values[0][i][0])
        interval = bootstrap.interval(values[1][i], values[2][i], value, METHOD)
        sensitivity.append({"specificity": specificity, "sensitivity": value, "interval": interval})
    return {"predictive_values": predictive, "sensitivity_at_specificity": sensitivity}


def predictive_values(
    confusion: Float[np.ndarray, "R 2 2"], prevalence: float
) -> dict[str, Values]:
    """Returns PPV and NPV at a prevalence; NaN where nothing is predicted positive or negative."""
    (tn, fp), (fn, tp) = np.moveaxis(confusion, 0, -1)
    sensitivity, specificity = tp / (tp + fn), tn / (tn + fp)
    with np.errstate(invalid="ignore"):
        true, false = sensitivity * prevalence, (1 - specificity) * (1 - prevalence)
        ppv = true / (true + false)
        true, false = specificity * (1 - prevalence), (1 - sensitivity) * prevalence
        return {"ppv": ppv, "npv": true / (true + false)}


def _sensitivity_at(rows: Rows, strata: Strata, draws: Draws, best: bool) -> list[Values]:
    """The sensitivity at each of `SPECIFICITIES` in each resample.

    At worst the positive pseudo-patient is below all others, and the scores say nothing about the
    negative one: they are those of the positive rows. (Above all others, a single one would take up
    the share of negative rows that may be called positive.)
    """
    average = strata.mean(rows.confusion_by_patient.sum(axis=2))
    positive, score, patient = [rows.label == 1], [rows.probability], [rows.patient]
    size = [np.ones(len(rows.label))]
    for s, counts in enumerate(average):
        kind = counts[1] > 0
        scores = np.array([2.0 if kind == best else -1.0])
        if not kind and not best:
            scores = rows.probability[rows.label == 1]
        score.append(scores)
        positive.append(np.full(len(scores), kind))
        patient.append(np.full(len(scores), rows.patients + s))
        size.append(np.full(len(scores), counts.sum() / len(scores)))
    weights = np.hstack([draws.patients, draws.pseudo])
    reached: list[list[Values]] = [[] for _ in SPECIFICITIES]
    counted = counts_by_score(
        np.concatenate(positive),
        np.concatenate(score),
        np.concatenate(patient),
        weights,
        np.concatenate(size),
    )
    for positives, negatives in counted:
        tp, fp = positives.cumsum(axis=1), negatives.cumsum(axis=1)
        for values, specificity in zip(reached, SPECIFICITIES, strict=True):
            allowed = fp <= (1 - specificity) * fp[:, -1:] + 1e-9
            values.append(np.where(allowed, tp, 0).max(axis=1) / tp[:, -1])
    return [np.concatenate(values) for values in reached]


def decision_curve(predictions: Predictions) -> JsonDict:
    """Returns 'decision_curve' of 'clinic': net benefit over threshold probabilities.

    A reader who would act at a probability of t weighs a false positive against a true positive as
    t / (1 - t); net benefit is the share of true positives less the weighted share of false ones
    (Vickers and Elkin, Medical Decision Making 26, 2006). It is read off the calibrated
    probabilities if there are any, since only those can be compared with a threshold of a reader.
    """
    calibrated = predictions.calibrated
    if calibrated is not None:
        predictions = replace(predictions, probability=calibrated, calibrated=None)
    curve: JsonDict = {
        "probability": "uncalibrated" if calibrated is None else "calibrated",
        "threshold": _THRESHOLDS.tolist(),
    }
    for level, table in (("image", predictions), ("patient", patient_means(predictions))):
        curve[level] = None
        if table is not None:
            acted = table.probability[:, None] >= _THRESHOLDS
            true, false = ((acted & (table.label == k)[:, None]).mean(axis=0) for k in (1, 0))
            benefit = true - false * _THRESHOLDS / (1 - _THRESHOLDS)
            prevalence = float(table.label.mean())
            curve[level] = {"prevalence": prevalence, "net_benefit": benefit.tolist()}
    return curve
