from dataclasses import replace

import numpy as np
import pytest
from scipy.special import expit
from sklearn.metrics import log_loss

from densenet_flax.evaluation import choose_operating_point
from densenet_flax.evaluation.metrics.calibration import calibration_metrics
from densenet_flax.evaluation.metrics.temperature import (
    calibrate,
    fit_temperature,
    margin,
    nll_per_image,
)


def drawn(seed, n=4000, temperature=1.0):
    """Margins whose probability is right at the given temperature, and labels."""
    rng = np.random.default_rng(seed)
    true = rng.normal(0.5, 2, n)
    return true * temperature, (rng.random(n) < expit(true)).astype(int)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
def test_the_temperature_is_fitted(temperature):
    margins, label = drawn(0, temperature=temperature)
    fitted, reason = fit_temperature(margins, label)
    assert reason == "" and fitted == pytest.approx(temperature, rel=0.06)
    # It is the best one: a grid finds none better.
    losses = [log_loss(label, expit(margins / t)) for t in np.geomspace(0.1, 10, 400)]
    assert log_loss(label, expit(margins / fitted)) <= min(losses) + 1e-9


def test_calibration_helps_and_keeps_the_order():
    margins, label = drawn(1, temperature=3)
    probability = expit(margins)
    fitted, _ = fit_temperature(margin(probability), label)
    after = calibrate(probability, fitted)
    assert np.array_equal(np.argsort(after), np.argsort(probability))
    assert np.array_equal(after >= 0.5, probability >= 0.5)
    worse, better = calibration_metrics(label, probability), calibration_metrics(label, after)
    for name in ("brier", "nll", "ece", "ece_top_label"):
        assert better[name] < worse[name]
    assert better["ece"] < 0.03


@pytest.mark.parametrize(
    ("margins", "label", "message"),
    [
        ([1.0, 2.0], [1, 1], "of one class"),
        ([-3.0, -1.0, 2.0], [0, 0, 1], "sharper is always better"),
        ([3.0, 1.0, -2.0], [0, 0, 1], "flatter is always better"),
        ([0.0, 0.0], [0, 1], "no best temperature"),
    ],
)
def test_no_best_temperature_is_1_with_a_reason(margins, label, message):
    temperature, reason = fit_temperature(np.array(margins), np.array(label))
    assert temperature == 1.0 and message in reason


def test_few_patients_hold_the_temperature_near_1():
    """The prior of log T counts as much as a patient's loss does."""
    margins, label = drawn(2, n=500, temperature=3)
    fitted = [fit_temperature(margins, label, patients)[0] for patients in (3, 12, 4000, None)]
    assert fitted == sorted(fitted) and 1 < fitted[0] < fitted[2] == pytest.approx(fitted[3], 0.02)

    def objective(t):
        prior = np.log(t) ** 2 / (2 * 0.3**2)
        return 12 * nll_per_image(label, margins / t).mean() + prior

    assert objective(fitted[1]) <= min(map(objective, np.geomspace(0.5, 5, 300))) + 1e-9


def test_certain_probabilities_stay_finite():
    p = np.array([0.0, 1.0, 0.5, 5e-324, 1 - 2**-53])
    assert np.isfinite(margin(p)).all() and margin(p)[2] == 0
    metrics = calibration_metrics(np.array([1, 0, 1, 0, 1]), p)
    assert np.isfinite(metrics["nll"]) and np.isfinite(metrics["brier"])
    assert np.array_equal(calibrate(p, 1), p)
    np.testing.assert_allclose(expit(margin(p[2:4])), p[2:4], atol=1e-15)


def test_the_temperature_of_several_classes(several):
    table = several(0, n=4000, patients=200)
    flat = replace(table, probability=calibrate(table.probability, 2.0))
    # At a temperature of 2 already, so half of the temperature of the original is left to fit.
    own, _ = fit_temperature(margin(table.probability), table.label)
    fitted, _ = fit_temperature(margin(flat.probability), table.label)
    assert fitted == pytest.approx(own / 2, rel=1e-3)
    best = nll_per_image(table.label, np.log(calibrate(table.probability, own))).mean()
    for other in (0.97, 1.03):
        worse = calibrate(table.probability, own * other)
        assert nll_per_image(table.label, np.log(worse)).mean() > best
    point = choose_operating_point(flat).apply(flat)
    assert point.calibrated.sum(axis=1) == pytest.approx(np.ones(len(flat)))
    assert np.array_equal(point.prediction, flat.prediction)
