import json
from dataclasses import replace

import numpy as np
import pytest

from densenet_flax.evaluation.metrics.bootstrap import Bootstrap
from densenet_flax.evaluation.metrics.calibration import calibration_line
from densenet_flax.evaluation.metrics.clinic import clinic_metrics
from densenet_flax.evaluation.metrics.sample import sample_of


def test_predictive_values_follow_from_bayes(random_table):
    table = random_table(0)
    result = clinic_metrics(sample_of(table), Bootstrap(200))
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    positive, called = table.label == 1, table.prediction == 1
    sensitivity, specificity = called[positive].mean(), (~called)[~positive].mean()
    rows = result["image"]["predictive_values"]
    assert [row["prevalence"] for row in rows[:3]] == [0.05, 0.2, 0.5]
    for row in rows:
        p = row["prevalence"]
        found, alarm = sensitivity * p, (1 - specificity) * (1 - p)
        assert row["ppv"] == pytest.approx(found / (found + alarm))
        clear, missed = specificity * (1 - p), (1 - sensitivity) * p
        assert row["npv"] == pytest.approx(clear / (clear + missed))
        assert row["ppv_interval"]["low"] < row["ppv"] < row["ppv_interval"]["high"]
    # At the data's own prevalence they are what the test set shows.
    assert rows[3]["own"] and rows[3]["ppv"] == pytest.approx(positive[called].mean())


def test_sensitivity_at_a_specificity(make):
    # 20 benign patients; one of 20 may be above the threshold at a specificity of 95 %.
    score = np.append(np.linspace(0.05, 0.55, 20), [0.3, 0.54, 0.56, 0.9])
    table = make(label=[0] * 20 + [1] * 4, probability=score, patient=[f"p{i}" for i in range(24)])
    result = clinic_metrics(sample_of(table), Bootstrap(200))["patient"]
    at90, at95 = result["sensitivity_at_specificity"]
    assert (at90["sensitivity"], at95["sensitivity"]) == (0.75, 0.75)
    assert at95["interval"]["low"] < 0.75 < at95["interval"]["high"]


def test_one_class_or_several_have_none(make, several, random_table):
    assert clinic_metrics(sample_of(make(label=[1], probability=[0.4])), Bootstrap(9)) is None
    assert clinic_metrics(sample_of(several(0)), Bootstrap(9)) is None
    table = random_table(0)
    mixed = clinic_metrics(sample_of(replace(table, patient=["p"] * len(table))), Bootstrap(9))
    assert mixed == {"image": None, "patient": None}


def test_calibration_slope_and_intercept(make):
    rng = np.random.default_rng(0)
    margin = rng.normal(0, 1.5, 4000)
    label = (rng.random(4000) < 1 / (1 + np.exp(-margin))).astype(int)
    patient = np.char.add("p", np.repeat(np.arange(4000 // 8), 8).astype(str))
    patient = np.char.add(patient, label.astype(str))  # a patient has one class
    for stretch, shift in ((1, 0), (2, 0), (1, 1)):
        shown = 1 / (1 + np.exp(-(margin * stretch + shift)))
        table = make(label=label, probability=shown, patient=patient)
        line = calibration_line(table, shown, Bootstrap(200))
        slope, span = line["calibration_slope"]
        assert slope == pytest.approx(1 / stretch, rel=0.1)
        assert span["low"] < slope < span["high"] and span["high"] - span["low"] < 0.4
        if stretch == 1:
            intercept, span = line["calibration_intercept"]
            assert intercept == pytest.approx(-shift, abs=0.1)
            assert span["low"] < -shift < span["high"]
    separated = make(label=[0, 0, 1, 1], probability=[0.1, 0.2, 0.8, 0.9], patient=list("abcd"))
    line = calibration_line(separated, separated.probability, Bootstrap(9))
    assert line["calibration_slope"] == (None, None)
