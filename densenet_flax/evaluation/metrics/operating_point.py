"""Where to draw the line, and how sharp the probabilities are: chosen on validation, then locked.

The threshold applies to the network's own probability, never to the calibrated one. For one image
that makes no difference, since temperature scaling keeps the order; but a decision then needs no
temperature, refitting the temperature moves no decision, and a patient's mean probability stays
the one that other tools compute from the same predictions.

Of more than two classes the likeliest is called. There is no threshold, and only the temperature is
fitted.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from densenet_flax.common.errors import InputError
from densenet_flax.evaluation.metrics.calibration import calibrate, fit_temperature, margin
from densenet_flax.evaluation.predictions import Predictions

RULES = "'fixed' (0.5), 'youden', or 'sensitivity>=0.95' with any value above 0 and up to 1"
LIKELIEST = "likeliest class"  # the rule where there are more than two classes
_SENSITIVITY = re.compile(r"sensitivity\s*>=\s*([0-9.]+)")


@dataclass(frozen=True)
class OperatingPoint:
    """What turns a probability into a decision; kept with the network.

    Attributes:
        threshold: Positive where the network's own P(positive) is at least this; not looked at
            where there are more than two classes.
        temperature: Divides the log-odds, for the calibrated probability; decides nothing.
        rule: How the threshold was chosen.
        chosen_on: Which images chose both, such as '512 validation images of 9 patients'; ''
            where none did.
        notes: What could not be chosen, and why.
    """

    threshold: float = 0.5
    temperature: float = 1.0
    rule: str = "fixed"
    chosen_on: str = ""
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuses what cannot be applied."""
        if not 0 <= self.threshold <= 1:
            raise InputError(f"operating point: threshold is {self.threshold}; expected 0 to 1")
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise InputError(
                f"operating point: temperature is {self.temperature}; expected a number above 0"
            )
        object.__setattr__(self, "notes", tuple(self.notes))

    @property
    def calibrated_threshold(self) -> float:
        """The calibrated probability of an image that is just called positive, of two classes."""
        return float(calibrate(np.asarray(self.threshold), self.temperature))

    def calibrate(self, probability: np.ndarray) -> np.ndarray:
        """Calibrated probabilities: of P(positive), or of rows of more than two classes."""
        return calibrate(probability, self.temperature)

    def decide(self, probability: np.ndarray) -> np.ndarray:
        """1 where the network's own probability is at least the threshold, else 0.

        Of `[…, classes]`, more than two, the index of the likeliest.
        """
        if self.rule == LIKELIEST:
            return np.asarray(probability).argmax(axis=-1)
        return (np.asarray(probability) >= self.threshold).astype(np.int64)

    def apply(self, predictions: Predictions) -> Predictions:
        """The table with this threshold and calibrated probabilities."""
        return replace(
            predictions,
            threshold=self.threshold,
            calibrated=self.calibrate(predictions.probability),
        )

    def to_dict(self) -> dict[str, Any]:
        """In JSON's types; a threshold that is not looked at is None."""
        threshold = None if self.rule == LIKELIEST else self.threshold
        return {**asdict(self), "threshold": threshold, "notes": list(self.notes)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "OperatingPoint":
        """The inverse of `to_dict`; keys of a later version are left out.

        Raises:
            InputError: A value is missing or cannot be used.
        """
        try:
            return cls(
                threshold=0.5 if values["rule"] == LIKELIEST else float(values["threshold"]),
                temperature=float(values["temperature"]),
                rule=str(values["rule"]),
                chosen_on=str(values["chosen_on"]),
                notes=tuple(map(str, values.get("notes", ()))),
            )
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(
                f"operating point: {error!r} in {dict(values)}; expected threshold, temperature, "
                "rule and chosen_on"
            ) from error


def check_rule(rule: str, classes: int = 2) -> float | None:
    """The sensitivity that a rule asks for, None for the other rules.

    Raises:
        InputError: It is no rule, or none for so many classes. Ask before training, not after.
    """
    if classes > 2 and rule != "fixed":
        raise InputError(
            f"threshold rule is {rule!r}, but there are {classes} classes: the likeliest is called "
            "and there is no threshold; leave the rule at 'fixed'"
        )
    if rule in ("fixed", "youden"):
        return None
    match = _SENSITIVITY.fullmatch(rule.strip())
    try:
        wanted = float(match.group(1)) if match else 0.0
    except ValueError:
        wanted = 0.0
    if not 0 < wanted <= 1:
        raise InputError(f"threshold rule is {rule!r}; expected {RULES}")
    return wanted


def choose_operating_point(validation: Predictions, rule: str = "fixed") -> OperatingPoint:
    """Fits temperature and threshold on validation images.

    What the images cannot decide falls back to temperature 1 and threshold 0.5 and is said in
    `notes`: a run that trained for hours should not end without a report.

    Args:
        validation: Never the test images.
        rule: 'fixed', 'youden' or 'sensitivity>=s'.

    Raises:
        InputError: The rule is none of these, or there are more than two classes and it is not
            'fixed'.
    """
    wanted = check_rule(rule, len(validation.class_names))
    label, probability = validation.label, validation.probability
    temperature, why_not = fit_temperature(margin(probability), label)
    notes = [f"temperature left at 1: {why_not}"] if why_not else []
    threshold = 0.5
    missing = [name for i, name in enumerate(validation.class_names) if not np.any(label == i)]
    if rule != "fixed" and missing:
        notes.append(f"threshold left at 0.5: there is not one {missing[0]} validation image")
    elif rule == "youden":
        threshold = _youden(label, probability)
    elif wanted is not None:
        threshold = _at_sensitivity(label, probability, wanted)
    if len(validation.class_names) > 2:
        rule = LIKELIEST
    patients = len(np.unique(validation.patient))
    return OperatingPoint(
        threshold=threshold,
        temperature=temperature,
        rule=rule.strip(),
        chosen_on=f"{len(validation)} validation images of {patients} patients",
        notes=tuple(notes),
    )


def _cuts(label: np.ndarray, probability: np.ndarray) -> tuple[np.ndarray, ...]:
    """Every way to cut the images in two: thresholds falling, sensitivity, specificity.

    A threshold lies halfway to the next lower probability: on the probability of an image
    itself, a difference in the last digit would turn the image over.
    """
    scores, index = np.unique(probability, return_inverse=True)
    positive = np.bincount(index, weights=label)[::-1]
    negative = np.bincount(index, weights=1 - label)[::-1]
    falling = scores[::-1]
    below = np.append(falling[1:], 0.0)
    middle = (falling + below) / 2
    thresholds = np.where(middle > below, middle, falling)  # neighbours have no middle
    sensitivity = positive.cumsum() / positive.sum()
    return thresholds, sensitivity, 1 - negative.cumsum() / negative.sum()


def _youden(label: np.ndarray, probability: np.ndarray) -> float:
    """Where sensitivity + specificity is largest; of several such places the nearest to 0.5."""
    thresholds, sensitivity, specificity = _cuts(label, probability)
    index = sensitivity + specificity
    best = np.flatnonzero(index >= index.max() - 1e-12)
    return float(thresholds[best[np.argmin(np.abs(thresholds[best] - 0.5))]])


def _at_sensitivity(label: np.ndarray, probability: np.ndarray, wanted: float) -> float:
    """The highest threshold, so the best specificity, that finds at least that share."""
    thresholds, sensitivity, _ = _cuts(label, probability)
    return float(thresholds[np.argmax(sensitivity >= wanted - 1e-12)])
