"""Threshold and temperature: chosen on validation images, then locked.

The threshold applies to the network's own probability, never to the calibrated one. For one image
that makes no difference, since temperature scaling keeps the order; but a decision then needs no
temperature, refitting the temperature changes no decision, and a patient's mean probability stays
the one that other tools compute from the same predictions.

Of more than two classes the likeliest is predicted. There is no threshold, and only the
temperature is fitted.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import ArrayLike

from densenet_flax.common.errors import InputError
from densenet_flax.common.trees import JsonDict
from densenet_flax.evaluation.metrics.binary import counts_by_threshold
from densenet_flax.evaluation.metrics.calibrators import (
    METHODS,
    Knots,
    fit_isotonic,
    fit_platt,
    interpolate,
    why_not,
)
from densenet_flax.evaluation.metrics.temperature import calibrate, fit_temperature, margin
from densenet_flax.evaluation.predictions import Predictions

_RULES = (
    "'fixed' (0.5), 'youden', 'f1', 'sensitivity>=0.95' with any value above 0 and up to 1, or "
    "'cost=10', how many false positives a false negative weighs"
)
LIKELIEST = "likeliest class"  # the rule where there are more than two classes
_NUMBER = r"([0-9]+\.?[0-9]*|\.[0-9]+)"
_SENSITIVITY = re.compile(rf"sensitivity\s*>=\s*{_NUMBER}")
_COST = re.compile(rf"cost\s*=\s*{_NUMBER}")


@dataclass(frozen=True)
class OperatingPoint:
    """What turns a probability into a decision; kept with the network.

    Attributes:
      threshold: Positive where the network's own P(positive) is at least this; unused where there
        are more than two classes.
      temperature: Divides the log-odds, for the calibrated probability; decides nothing.
      rule: How the threshold was chosen.
      chosen_on: Which images both were chosen on, such as '512 validation images of 9 patients';
        '' if none.
      notes: What could not be chosen, and why.
      method: How probabilities are calibrated, 'temperature', 'platt' or 'isotonic'.
      shift: Of Platt scaling, added to the divided log-odds.
      knots: Of isotonic regression, pairs of probability and calibrated probability, between
        which it is linear; the temperature is unused.
    """

    threshold: float = 0.5
    temperature: float = 1.0
    rule: str = "fixed"
    chosen_on: str = ""
    notes: tuple[str, ...] = ()
    method: str = "temperature"
    shift: float = 0.0
    knots: Knots = ()

    def __post_init__(self) -> None:
        if not 0 <= self.threshold <= 1:
            raise InputError(f"operating point: threshold is {self.threshold}; expected 0 to 1")
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise InputError(
                f"operating point: temperature is {self.temperature}; expected a number above 0"
            )
        kept_by = {"platt": bool(self.shift), "isotonic": bool(self.knots)}
        used = [method for method, has_values in kept_by.items() if has_values]
        empty = self.method == "isotonic" and not self.knots
        if self.method not in METHODS or empty or used not in ([], [self.method]):
            raise InputError(
                f"operating point: method is {self.method!r}; expected one of "
                f"{', '.join(METHODS)}, a shift for platt only and knots for isotonic only"
            )
        if not math.isfinite(self.shift):
            raise InputError(f"operating point: shift is {self.shift}; expected a finite number")
        if self.knots:
            before, after = np.transpose(self.knots)
            inside = np.all((after >= 0) & (after <= 1))
            # `np.interp` returns anything where they are not in order.
            if not (inside and np.all(np.diff(before) > 0) and np.all(np.diff(after) >= 0)):
                raise InputError(
                    "operating point: knots are not a calibration; expected pairs of rising "
                    "probabilities and calibrated probabilities from 0 to 1 that never fall"
                )
        # JSON has lists, and a frozen field takes no assignment.
        object.__setattr__(self, "notes", tuple(self.notes))

    @property
    def calibrated_threshold(self) -> float:
        """The calibrated probability of an image that is just called positive, of two classes."""
        return float(self.calibrate(self.threshold))

    def calibrate(self, probability: ArrayLike) -> Float[np.ndarray, "..."]:
        """Returns calibrated probabilities: of P(positive), or of rows of more than two classes."""
        if self.knots:
            return interpolate(np.asarray(probability, np.float64), self.knots)
        return calibrate(probability, self.temperature, self.shift)

    def decide(self, probability: ArrayLike) -> Int[np.ndarray, "..."]:
        """Returns 1 where the network's own probability is at least the threshold, else 0.

        Of probabilities `[…, K]` of more than two classes, the index of the likeliest.
        """
        if self.rule == LIKELIEST:
            return np.asarray(probability).argmax(axis=-1)
        return (np.asarray(probability) >= self.threshold).astype(np.int64)

    def apply(self, predictions: Predictions) -> Predictions:
        """Returns the table with this threshold and calibrated probabilities."""
        calibrated = self.calibrate(predictions.probability)
        return replace(predictions, threshold=self.threshold, calibrated=calibrated)

    def to_dict(self) -> JsonDict:
        """Returns the fields in JSON's types; a threshold that is unused is None."""
        threshold = None if self.rule == LIKELIEST else self.threshold
        values = {**asdict(self), "threshold": threshold, "notes": list(self.notes)}
        if self.method == "temperature":
            for name in ("method", "shift", "knots"):
                del values[name]
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "OperatingPoint":
        """Reads what `to_dict` returned, or raises `InputError`; unknown keys are ignored."""
        try:
            return cls(
                threshold=0.5 if values["rule"] == LIKELIEST else float(values["threshold"]),
                temperature=float(values["temperature"]),
                rule=str(values["rule"]),
                chosen_on=str(values["chosen_on"]),
                notes=tuple(map(str, values.get("notes", ()))),
                method=str(values.get("method", "temperature")),
                shift=float(values.get("shift", 0.0)),
                knots=tuple((float(x), float(y)) for x, y in values.get("knots", ())),
            )
        except InputError:  # a ValueError, and clear already
            raise
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"operating point: {error!r} in {dict(values)}; expected threshold, temperature, "
                "rule and chosen_on"
            ) from error


def check_rule(rule: str, classes: int = 2) -> float | None:
    """Returns the sensitivity that a rule asks for, None for the other rules.

    Raises `InputError` if the rule is unknown, or does not apply to that many classes. Call it
    before training: a misspelled rule should not fail after hours.
    """
    if classes > 2 and rule != "fixed":
        raise InputError(
            f"threshold rule is {rule!r}, but there are {classes} classes and the likeliest "
            "one is predicted without a threshold; leave the rule at 'fixed'"
        )
    if rule in ("fixed", "youden", "f1"):
        return None
    cost = _COST.fullmatch(rule.strip())
    if cost and 0 < float(cost.group(1)) < math.inf:
        return None
    match = _SENSITIVITY.fullmatch(rule.strip())
    sensitivity = float(match.group(1)) if match else 0.0
    if not 0 < sensitivity <= 1:
        raise InputError(f"threshold rule is {rule!r}; expected {_RULES}")
    return sensitivity


def check_calibration(method: str, classes: int = 2) -> None:
    """Raises `InputError` if the method is unknown or does not apply to that many classes."""
    if method not in METHODS:
        raise InputError(f"calibration is {method!r}; expected one of {', '.join(METHODS)}")
    if classes > 2 and method != "temperature":
        raise InputError(
            f"calibration is {method!r}, which is for two classes, but there are {classes}; leave "
            "it at 'temperature'"
        )


def choose_operating_point(
    validation: Predictions, rule: str = "fixed", calibration: str = "temperature"
) -> OperatingPoint:
    """Fits temperature and threshold on validation images.

    What the images cannot decide falls back to temperature 1 and threshold 0.5, with a reason in
    `notes`: a run that trained for hours should not end without a report.

    Args:
      validation: Never the test images.
      rule: 'fixed', 'youden', 'f1', 'sensitivity>=s' or 'cost=c', checked by `check_rule`.
      calibration: 'temperature'; or 'platt' or 'isotonic', which are used where there are patients
        enough and where cross-fitting over patients finds them better than the temperature.
    """
    sensitivity = check_rule(rule, len(validation.class_names))
    check_calibration(calibration, len(validation.class_names))
    label, probability = validation.label, validation.probability
    names, patient = np.unique(validation.patient, return_inverse=True)
    patients = len(names)
    temperature, reason = fit_temperature(margin(probability), label, patients)
    notes = [f"temperature left at 1: {reason}"] if reason else []
    method, shift = "temperature", 0.0
    knots: Knots = ()
    if calibration != method:
        reason = why_not(calibration, probability, label, patient)
        if reason:
            notes.append(f"calibrated by a temperature: {reason}")
        else:
            method, notes = calibration, []
            if method == "isotonic":
                temperature, knots = 1.0, fit_isotonic(probability, label, patient)
            else:
                temperature, shift = fit_platt(margin(probability), label, patients)
    threshold = 0.5
    missing = [name for k, name in enumerate(validation.class_names) if not np.any(label == k)]
    if rule != "fixed" and missing:
        notes.append(f"threshold left at 0.5: there is not one {missing[0]} validation image")
    elif rule != "fixed":
        threshold = _choose_threshold(label, probability, rule.strip(), sensitivity)
    if len(validation.class_names) > 2:
        rule = LIKELIEST
    return OperatingPoint(
        threshold=threshold,
        temperature=temperature,
        rule=rule.strip(),
        chosen_on=f"{len(validation)} validation images of {patients} patients",
        notes=tuple(notes),
        method=method,
        shift=shift,
        knots=knots,
    )


def _choose_threshold(
    label: Int[np.ndarray, " N"],
    probability: Float[np.ndarray, " N"],
    rule: str,
    sensitivity: float | None,
) -> float:
    """The highest threshold, so the best specificity, with at least that sensitivity.

    With None the best by the rule; of several such thresholds the nearest to 0.5. 'youden' is
    sensitivity + specificity (Youden, Cancer 3, 1950), 'cost=c' the fewest false positives plus c
    times the false negatives, at the classes' shares in the validation images.
    """
    scores, tp, fp = counts_by_threshold(label == 1, probability)
    # A threshold lies halfway to the next lower probability: on the probability of an image itself,
    # a difference in the last digit (another batch size, another device) would change its class.
    lower = np.append(scores[1:], 0.0)
    middle = (scores + lower) / 2
    # Adjacent floats have nothing between them; their middle is rounded to one of the two.
    thresholds = np.where(middle > lower, middle, scores)
    # The rates are quotients of counts, so equal ones may differ by rounding.
    tolerance = 1e-12
    if sensitivity is not None:
        return float(thresholds[np.argmax(tp / tp[-1] >= sensitivity - tolerance)])
    cost = _COST.fullmatch(rule)
    if cost:
        weight = float(cost.group(1))
        index = -(fp + weight * (tp[-1] - tp)) / (fp[-1] + weight * tp[-1])
    elif rule == "f1":
        index = 2 * tp / (tp + fp + tp[-1])
    else:
        index = tp / tp[-1] + (1 - fp / fp[-1])
    best = thresholds[index >= index.max() - tolerance]
    return float(best[np.argmin(np.abs(best - 0.5))])
