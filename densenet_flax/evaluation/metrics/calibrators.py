"""Platt scaling and isotonic regression, compared with the temperature by cross-fitting.

Both follow few patients too closely: they are refused below a number of patients of each class, and
taken only where validation patients that they were not fitted to have a lower NLL than with the
temperature. Two classes only.
"""

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import scipy
from jaxtyping import Float, Int

from densenet_flax.evaluation.metrics.temperature import (
    PRIOR_SD,
    calibrate,
    fit_temperature,
    margin,
    nll_per_image,
)

METHODS = ("temperature", "platt", "isotonic")
# Of each class: two numbers need few, a step function many.
_FEWEST = {"platt": 10, "isotonic": 30}
_FOLDS = 5
_SHIFT_SD = 1.0  # of Platt's intercept, in log-odds

Column: TypeAlias = Float[np.ndarray, " N"]
Labels: TypeAlias = Int[np.ndarray, " N"]
Knots: TypeAlias = tuple[tuple[float, float], ...]


def interpolate(probability: Float[np.ndarray, "..."], knots: Knots) -> Float[np.ndarray, "..."]:
    """Returns the calibrated probability between (probability, calibrated) pairs."""
    before, after = np.transpose(knots)
    return np.interp(probability, before, after)


def fit_platt(margins: Column, label: Labels, patients: int) -> tuple[float, float]:
    """Fits a temperature and a shift of the log-odds (Platt, 1999).

    Both have a normal prior, and the images of a patient count as one observation, as in
    `fit_temperature`.
    """

    def objective(parameters: Float[np.ndarray, " 2"]) -> float:
        log_t, shift = parameters
        loss = nll_per_image(label, margins * np.exp(-log_t) + shift).mean()
        prior = (log_t / PRIOR_SD) ** 2 + (shift / _SHIFT_SD) ** 2
        return float(patients * loss + prior / 2)

    log_t, shift = scipy.optimize.minimize(objective, np.zeros(2)).x
    return float(np.exp(log_t)), float(shift)


def fit_isotonic(probability: Column, label: Labels, patient: Int[np.ndarray, " N"]) -> Knots:
    """Fits a non-decreasing step function, every patient once (Zadrozny and Elkan, KDD 2002).

    The steps keep half a patient's distance from 0 and 1, which no number of patients shows.
    """
    weight = 1 / np.bincount(patient)[patient]
    distinct, index = np.unique(probability, return_inverse=True)
    total = np.bincount(index, weight)
    mean = np.bincount(index, weight * label) / total
    fit = scipy.optimize.isotonic_regression(mean, weights=total)
    least = 0.5 / len(np.unique(patient))
    after = np.clip(fit.x, least, 1 - least)
    first, last = fit.blocks[:-1], fit.blocks[1:] - 1
    ends = np.unique(np.concatenate([first, last]))  # both ends of each step
    return tuple(zip(distinct[ends].tolist(), after[ends].tolist(), strict=True))


def cross_fitted_nll(
    method: str, probability: Column, label: Labels, patient: Int[np.ndarray, " N"]
) -> float:
    """Returns the mean NLL over patients, each calibrated by a fit to the other folds' patients."""
    patients = patient.max() + 1
    first = np.unique(patient, return_index=True)[1]
    fold = np.zeros(patients, int)
    for k in (0, 1):  # both classes in every fold
        members = np.flatnonzero(label[first] == k)
        fold[members] = np.arange(len(members)) % _FOLDS
    loss = np.zeros(len(label))
    for i in range(_FOLDS):
        own = fold[patient] == i
        names, others = np.unique(patient[~own], return_inverse=True)
        function = _fitted(method, probability[~own], label[~own], others, len(names))
        loss[own] = nll_per_image(label[own], margin(function(probability[own])))
    return float(np.mean(np.bincount(patient, loss) / np.bincount(patient)))


def _fitted(
    method: str, probability: Column, label: Labels, patient: Int[np.ndarray, " N"], patients: int
) -> Callable[[Column], Column]:
    if method == "isotonic":
        knots = fit_isotonic(probability, label, patient)
        return lambda p: interpolate(p, knots)
    if method == "platt":
        temperature, shift = fit_platt(margin(probability), label, patients)
        return lambda p: calibrate(p, temperature, shift)
    temperature, _ = fit_temperature(margin(probability), label, patients)
    return lambda p: calibrate(p, temperature)


def why_not(method: str, probability: Column, label: Labels, patient: Int[np.ndarray, " N"]) -> str:
    """Returns the reason to keep the temperature, or '' if the method may be used."""
    first = np.unique(patient, return_index=True)[1]
    fewest = min(int(np.sum(label[first] == k)) for k in (0, 1))
    if fewest < _FEWEST[method]:
        return f"{method} needs {_FEWEST[method]} validation patients of each class, not {fewest}"
    own, other = (cross_fitted_nll(m, probability, label, patient) for m in (method, "temperature"))
    if own >= other:
        return (
            f"{method} was no better on validation patients that it was not fitted to (NLL "
            f"{own:.3f}, with a temperature {other:.3f})"
        )
    return ""
