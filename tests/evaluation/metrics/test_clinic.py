import json
from dataclasses import replace

import numpy as np
import pytest

from densenet_flax.evaluation.metrics.bootstrap import Bootstrap
from densenet_flax.evaluation.metrics.calibration import calibration_line, calibration_report
from densenet_flax.evaluation.metrics.clinic import clinic_metrics


def test_predictive_values_follow_from_bayes(random_table):
    table = random_table(0)
    result = clinic_metrics(table, Bootstrap(200))
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    positive, called = table.label == 1, table.prediction == 1
    sensitivity, specificity = called[positive].mean(), (~called)[~positive].mean()
    rows = result["image"]["predictive_values"]
    assert [row["prevalence"] for row in rows[:3]] == [0.05, 0.2, 0.5]
    for row in rows:
        p = row["prevalence"]
        true, false = sensitivity * p, (1 - specificity) * (1 - p)
        assert row["ppv"] == pytest.approx(true / (true + false))
        true, false = specificity * (1 - p), (1 - sensitivity) * p
        assert row["npv"] == pytest.approx(true / (true + false))
        assert row["ppv_interval"]["low"] < row["ppv"] < row["ppv_interval"]["high"]
    # At the data's own prevalence they are what the test set shows.
    assert rows[3]["own"] and rows[3]["ppv"] == pytest.approx(positive[called].mean())


def test_sensitivity_at_a_specificity(make):
    # 20 benign patients; one of 20 may be above the threshold at a specificity of 95 %.
    score = np.append(np.linspace(0.05, 0.55, 20), [0.3, 0.54, 0.56, 0.9])
    table = make(label=[0] * 20 + [1] * 4, probability=score, patient=[f"p{i}" for i in range(24)])
    result = clinic_metrics(table, Bootstrap(200))["patient"]
    at90, at95 = result["sensitivity_at_specificity"]
    assert (at90["sensitivity"], at95["sensitivity"]) == (0.75, 0.75)
    assert at95["interval"]["low"] < 0.75 < at95["interval"]["high"]


def test_one_class_or_several_have_none(make, several, random_table):
    assert clinic_metrics(make(label=[1], probability=[0.4]), Bootstrap(9)) is None
    assert clinic_metrics(several(0), Bootstrap(9)) is None
    table = random_table(0)
    mixed = clinic_metrics(replace(table, patient=["p"] * len(table)), Bootstrap(9))
    assert (mixed["image"], mixed["patient"]) == (None, None)
    assert mixed["decision_curve"]["image"] and mixed["decision_curve"]["patient"] is None


def test_net_benefit(make):
    # At 0.25 a false positive weighs a third of a true one: (1 - 1 / 3) / 4 of the images, while
    # the means of the patients, 0.1, 0.6 and 0.5, are right at all thresholds from 0.1 to 0.5.
    table = make(
        label=[0, 0, 1, 1], probability=[0.2, 0.0, 0.6, 0.5], patient=list("aabc"), threshold=0.9
    )
    calibrated = replace(table, calibrated=[0.3, 0.0, 0.6, 0.2])
    for shown, name, images in ((table, "uncalibrated", 0.5), (calibrated, "calibrated", 2 / 12)):
        curve = clinic_metrics(shown, Bootstrap(9))["decision_curve"]
        at = curve["threshold"].index(0.25)
        assert curve["probability"] == name
        assert curve["image"]["net_benefit"][at] == pytest.approx(images)
        assert curve["image"]["prevalence"] == 0.5
    assert curve["patient"]["net_benefit"][at] == pytest.approx(1 / 3)
    assert curve["patient"]["prevalence"] == pytest.approx(2 / 3)


def flat(value, key=""):
    """Pairs of key and number of nested mappings and lists."""
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return [pair for name, item in items for pair in flat(item, f"{key}.{name}")]
    return [(key, value)]


def test_calibration_of_patients_is_that_of_a_table_of_their_means(random_table):
    table = random_table(0)
    table = replace(table, calibrated=table.probability**2)
    names = np.unique(table.patient)
    rows_by_patient = [table.patient == name for name in names]
    means = replace(
        table.select(np.array([rows.argmax() for rows in rows_by_patient])),
        file=names,
        probability=[table.probability[rows].mean() for rows in rows_by_patient],
        calibrated=[table.calibrated[rows].mean() for rows in rows_by_patient],
    )
    actual = calibration_report(table, None, Bootstrap(20))["patients"]
    expected = calibration_report(means, None, Bootstrap(20))["test"]
    assert dict(flat(actual)) == pytest.approx(dict(flat(expected)))
    mixed = replace(table, patient=["p"] * len(table))
    assert calibration_report(mixed, None, Bootstrap(9))["patients"] is None


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
