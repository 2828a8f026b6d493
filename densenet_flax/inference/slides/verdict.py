"""The verdict on a slide, from the probabilities of its tiles."""

import dataclasses
import re

import numpy as np
from jaxtyping import Float

from densenet_flax.common.errors import InputError
from densenet_flax.evaluation.metrics.sample import mean_by_patient
from densenet_flax.inference.classifier import Classifier
from densenet_flax.inference.results import Prediction

MEAN = "mean"
_TOP = re.compile(r"top-([1-9][0-9]{0,8})")


def check_rule(rule: str) -> int | None:
    """The number of 'top-10', None for 'mean'; InputError for anything else."""
    match = _TOP.fullmatch(rule)
    if rule != MEAN and not match:
        raise InputError(
            f"--verdict={rule}: expected 'mean', the mean probability of all tiles, by which an "
            "evaluation decides patients; or 'top-10', with any number, the mean of the tiles with "
            "the highest probabilities"
        )
    return int(match[1]) if match else None


def slide_verdict(classifier: Classifier, tiles: Prediction, rule: str) -> Prediction:
    """Decides a slide as the evaluation of a run decides a patient: by the mean probability.

    The network's own threshold decides, on its own probability; the calibrated one is the mean of
    the calibrated ones.

    Args:
      classifier: the network, with its threshold.
      tiles: at least one.
      rule: 'mean'; or 'top-10', with any number, for the mean of as many tiles. These are the ones
        with the highest P(positive); of more than two classes, each class has its own.

    Returns:
      One row.
    """
    count = check_rule(rule)
    verdict = classifier.decide(_mean(tiles.probability, tiles, count)[None])
    return dataclasses.replace(verdict, calibrated=_mean(tiles.calibrated, tiles, count)[None])


def _mean(
    values: Float[np.ndarray, "N K"], tiles: Prediction, count: int | None
) -> Float[np.ndarray, " K"]:
    if count is None or count >= len(values):
        return mean_by_patient(values, np.zeros(len(values), np.int64), 1)[0]
    if len(tiles.class_names) == 2 and tiles.present is None:
        # Calibration keeps the order, up to ties, so both columns are of the same tiles.
        highest = np.argsort(-tiles.probability[:, 1], kind="stable")[:count]
        return values[highest].mean(axis=0)
    means = -np.sort(-values, axis=0)[:count].mean(axis=0)
    # The highest of each class are of different tiles, so that they add up to more than 1.
    return means if tiles.present is not None else means / means.sum()
