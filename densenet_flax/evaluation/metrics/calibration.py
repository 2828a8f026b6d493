"""Whether probabilities mean what they say: Brier score, NLL, ECE, before and after scaling.

Probabilities are P(positive) `[N]`, or `[N, K]` of more than two classes.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import scipy
from jaxtyping import Bool, Float, Int

from densenet_flax.common.trees import JsonDict
from densenet_flax.evaluation.metrics.bootstrap import (
    Bootstrap,
    Interval,
    make_interval,
    strata_of,
)
from densenet_flax.evaluation.metrics.influence import Influence, standard_error, t_limits
from densenet_flax.evaluation.metrics.intervals import WITH_T, mean_intervals, union
from densenet_flax.evaluation.metrics.pseudo_patients import METHOD
from densenet_flax.evaluation.metrics.sample import patient_means, sample_of
from densenet_flax.evaluation.metrics.temperature import margin, nll_per_image
from densenet_flax.evaluation.predictions import Predictions, Probability

BINS = 15
_MAX_WIDTH = 100.0  # of slope and intercept; beyond it the data say nothing about them


class _Binary(NamedTuple):
    """A yes-or-no outcome per image, and the probability that was predicted for it."""

    outcome: Bool[np.ndarray, " N"]
    probability: Float[np.ndarray, " N"]


def calibration_report(
    predictions: Predictions, validation: Predictions | None, bootstrap: Bootstrap
) -> JsonDict:
    """Returns 'calibration' of metrics.json: of the test images and of their patients' means.

    Both have intervals; 'patients' is None if one has images of several classes. On the validation
    images the temperature was fitted, so their calibration is too good, and has none.
    """
    patients = patient_means(predictions)
    reason = "no temperature: no validation predictions and no operating point"
    return {
        "bins": BINS,
        "test": _with_intervals(predictions, bootstrap),
        "patients": patients and _with_intervals(patients, bootstrap),
        "validation": None if validation is None else _before_and_after(validation),
        "undefined": {} if predictions.calibrated is not None else {"after": reason},
    }


def _with_intervals(predictions: Predictions, bootstrap: Bootstrap) -> JsonDict:
    stages = {"before": predictions.probability}
    if predictions.calibrated is not None:
        stages["after"] = predictions.calibrated
    test = _before_and_after(predictions)
    spans = calibration_intervals(predictions, stages, bootstrap)
    for stage, probability in stages.items():
        name, shown = next(iter(_outcomes(predictions.label, probability).items()))
        _add_bin_intervals(test[stage][f"bins{name}"], predictions, shown, bootstrap)
        if probability.ndim == 1:
            for name, line in calibration_line(predictions, probability, bootstrap).items():
                test[stage][name], spans[f"{name}_{stage}"] = line
    return {**test, "intervals": spans}


def calibration_intervals(
    predictions: Predictions, stages: Mapping[str, Probability], bootstrap: Bootstrap
) -> JsonDict:
    """Returns the intervals of Brier score, NLL, their changes, and ECE, by name and stage.

    The stages are the probabilities 'before' scaling and perhaps 'after' it.
    """
    label = predictions.label
    errors, worst = {}, {}
    for stage, probability in stages.items():
        for name, per_image in (("brier", brier_per_image), ("nll", _nll)):
            errors[f"{name}_{stage}"] = per_image(label, probability)
            worst[f"{name}_{stage}"] = _of_another_class(per_image, label, probability)
    spans = mean_intervals(predictions, errors, bootstrap, worst)
    # Image by image, so that the interval of a change knows that both are of the same images.
    if "after" in stages:
        changes = {
            f"{name}_change": errors[f"{name}_after"] - errors[f"{name}_before"]
            for name in ("brier", "nll")
        }
        more = mean_intervals(predictions, changes, bootstrap)
        undefined = spans["undefined"] | more["undefined"]
        spans = {**spans, **more, "undefined": undefined}
    for stage, probability in stages.items():
        for name, outcome in _outcomes(label, probability).items():
            spans[f"ece{name}_{stage}"] = ece_interval(predictions, outcome, bootstrap)
    return spans


def _before_and_after(table: Predictions) -> JsonDict:
    after = table.calibrated
    return {
        "before": calibration_metrics(table.label, table.probability),
        "after": None if after is None else calibration_metrics(table.label, after),
    }


def calibration_metrics(
    label: Int[np.ndarray, " N"], probability: Probability, bins: int = BINS
) -> JsonDict:
    """Returns Brier score, NLL, and two expected calibration errors with their bins.

    `ece` bins P(positive) and compares its mean with the share that is positive. `ece_top_label`
    bins the probability of the predicted class and compares it with the share that is right, as
    most papers on networks do (Guo et al., ICML 2017). They are different numbers; of more than two
    classes there is only the second.

    The bins have equal width from 0 to 1 and are closed on the left; the last holds 1 too.
    """
    label = np.asarray(label)
    metrics: JsonDict = {
        "n": len(label),
        "brier": float(np.mean(brier_per_image(label, probability))),
        "nll": float(nll_per_image(label, margin(probability)).mean()),
    }
    for name, binary in _outcomes(label, probability).items():
        metrics[f"ece{name}"], metrics[f"bins{name}"] = _binned(binary, bins)
    return metrics


def brier_per_image(
    label: Int[np.ndarray, " N"], probability: Probability
) -> Float[np.ndarray, " N"]:
    """Returns (P(positive) − truth)²; of more than two classes its sum over all classes, 0 to 2."""
    if probability.ndim > 1:
        return ((probability - np.eye(probability.shape[1])[label]) ** 2).sum(axis=1)
    return (probability - label) ** 2


def _nll(label: Int[np.ndarray, " N"], probability: Probability) -> Float[np.ndarray, " N"]:
    return nll_per_image(label, margin(probability))


def _of_another_class(
    per_image: Callable[[Int[np.ndarray, " N"], Probability], Float[np.ndarray, " N"]],
    label: Int[np.ndarray, " N"],
    probability: Probability,
) -> Float[np.ndarray, " K"]:
    """The mean error of a patient of each class whose images look like those of other classes."""
    classes = 2 if probability.ndim == 1 else probability.shape[1]
    worst = np.zeros(classes)
    for k in range(classes):
        others = probability[label != k]
        if len(others):
            worst[k] = per_image(np.full(len(others), k), others).mean()
    return worst


def ece_interval(
    predictions: Predictions, binary: _Binary, bootstrap: Bootstrap, bins: int = BINS
) -> Interval:
    """Returns an interval of an expected calibration error; it begins at 0.

    The distance in a bin is an absolute value, so an ECE is biased upwards, in small samples by
    more than the ECE itself, and no correction for that gave lower ends that hold. The upper end
    is that of resamples with a pseudo-patient of whose images every probability is wrong by 1.
    """
    sample = sample_of(predictions)
    strata = strata_of(sample)
    draws = bootstrap.draw(strata)
    index = _bin_index(binary.probability, bins)
    distance = (binary.probability - binary.outcome)[:, None] * np.eye(bins)[index]
    by_patient = sample.image.sum_by_patient(distance)
    size = sample.images.astype(float)
    extra = draws.pseudo @ strata.mean(size)
    total = np.abs(draws.patients @ by_patient).sum(axis=1) + extra
    high = np.quantile(total / (draws.patients @ size + extra), 1 - bootstrap.tail)
    point = float(np.abs(by_patient.sum(axis=0)).sum() / size.sum())
    return make_interval(0.0, max(high, point), METHOD)


def calibration_line(
    predictions: Predictions, probability: Float[np.ndarray, " N"], bootstrap: Bootstrap
) -> dict[str, tuple[float | None, Interval | None]]:
    """Returns calibration slope and intercept, each with its interval.

    The slope is that of a logistic regression of the label on the log-odds: 1 if probabilities are
    neither too extreme (below 1) nor too moderate. The intercept is that of a regression with a
    slope of 1: 0 if they are right on average (calibration in the large; Van Calster et al., BMC
    Medicine 17, 2019). Either is None if there is one class only, if a line separates the classes,
    or if so few images are between them that its interval is wider than `_MAX_WIDTH`.
    """
    x, y = margin(probability), predictions.label.astype(float)
    sample = sample_of(predictions)
    strata = strata_of(sample)
    result: dict[str, tuple[float | None, Interval | None]] = {}
    for name, design, offset in (
        ("calibration_slope", np.stack([x, np.ones_like(x)], axis=1), np.zeros_like(x)),
        ("calibration_intercept", np.ones((len(x), 1)), x),
    ):
        fit = _logistic(design, offset, y)
        result[name] = (None, None)
        if fit is not None:
            beta, residual, inverse = fit
            value = float(beta[0])
            own = sample.image.sum_by_patient(((design * residual[:, None]) @ inverse)[:, 0])
            # A pseudo-patient of a class, whose images look like those of the other.
            images = strata.mean(sample.images_by_class.astype(float))
            effect = ((design * ((1 - y) - (y - residual))[:, None]) @ inverse)[:, 0]
            pseudo = sum(images[:, k] * effect[y != k].mean() for k in (0, 1))
            influence = Influence(value, own, pseudo).centered(strata)
            draws = bootstrap.draw(strata, one_class=True)
            linear = value + draws.patients @ influence.patients
            worst = linear + draws.pseudo @ np.minimum(influence.pseudo, 0)
            best = linear + draws.pseudo @ np.maximum(influence.pseudo, 0)
            span = bootstrap.interval(worst, best, value, WITH_T)
            error = standard_error(own, strata, carried=True)
            limits = t_limits(value, error, bootstrap.tail) if error else None
            span = union(span, limits, -np.inf, np.inf)
            if span["high"] - span["low"] <= _MAX_WIDTH:
                result[name] = (value, span)
    return result


def _logistic(
    design: Float[np.ndarray, "N D"], offset: Float[np.ndarray, " N"], y: Float[np.ndarray, " N"]
) -> tuple[Float[np.ndarray, " D"], Float[np.ndarray, " N"], Float[np.ndarray, "D D"]] | None:
    """Coefficients, residuals, inverse information of a logistic regression; None if infinite."""
    beta = np.zeros(design.shape[1])
    if len(np.unique(y)) < 2:
        return None
    for _ in range(50):
        p = scipy.special.expit(design @ beta + offset)
        information = (design.T * (p * (1 - p))) @ design
        if np.linalg.cond(information) > 1e12:
            return None
        inverse = np.linalg.inv(information)
        step = inverse @ (design.T @ (y - p))
        beta = beta + np.clip(step, -2, 2)
        if np.abs(beta).max() > 100:
            return None
        if np.abs(step).max() < 1e-9:
            return beta, y - scipy.special.expit(design @ beta + offset), inverse
    return None


def _outcomes(label: Int[np.ndarray, " N"], probability: Probability) -> dict[str, _Binary]:
    """What each error bins, by the end of its name; the first is the one that is drawn."""
    if probability.ndim > 1:
        right = probability.argmax(axis=1) == label
        return {"_top_label": _Binary(right, probability.max(axis=1))}
    # By 0.5 and not by the threshold: the class whose probability is higher, as of several classes.
    right = (probability >= 0.5) == (label == 1)
    return {
        "": _Binary(label == 1, probability),
        "_top_label": _Binary(right, np.maximum(probability, 1 - probability)),
    }


def _binned(binary: _Binary, bins: int) -> tuple[float, list[JsonDict]]:
    """The expected calibration error and its bins; an empty bin has no confidence and accuracy."""
    edges = np.linspace(0, 1, bins + 1).tolist()
    index = _bin_index(binary.probability, bins)
    count = np.bincount(index, minlength=bins)
    confidence = np.bincount(index, weights=binary.probability, minlength=bins)
    accuracy = np.bincount(index, weights=binary.outcome, minlength=bins)
    # Naeini et al., AAAI 2015: Σ count · |mean confidence − accuracy| ÷ n. The counts cancel.
    error = float(np.abs(confidence - accuracy).sum() / count.sum())
    rows: list[JsonDict] = [
        {
            "lower_edge": edges[i],
            "upper_edge": edges[i + 1],
            "count": int(count[i]),
            "confidence": float(confidence[i] / count[i]) if count[i] else None,
            "accuracy": float(accuracy[i] / count[i]) if count[i] else None,
        }
        for i in range(bins)
    ]
    return error, rows


def _bin_index(probability: Float[np.ndarray, " N"], bins: int) -> Int[np.ndarray, " N"]:
    # By the edges and not `int(probability * bins)`, which rounding may put into the next bin.
    edges = np.linspace(0, 1, bins + 1)
    return np.clip(np.searchsorted(edges, probability, side="right") - 1, 0, bins - 1)


def _add_bin_intervals(
    rows: list[JsonDict], predictions: Predictions, binary: _Binary, bootstrap: Bootstrap
) -> None:
    """Adds to each bin how far its share of the outcome varies with other patients."""
    index = _bin_index(binary.probability, len(rows))
    # Its accuracy is the mean of the outcome over the images in it.
    columns = {str(i): np.where(index == i, binary.outcome, np.nan) for i in range(len(rows))}
    intervals = mean_intervals(predictions, columns, bootstrap, {})
    for i, row in enumerate(rows):
        interval = intervals[str(i)]
        row["accuracy_interval"] = [interval["low"], interval["high"]] if interval else None
