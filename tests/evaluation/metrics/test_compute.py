import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from densenet_flax.common.errors import InputError
from densenet_flax.evaluation import choose_operating_point, evaluate
from densenet_flax.evaluation.metrics.bootstrap import Bootstrap
from densenet_flax.evaluation.metrics.calibration import calibration_metrics
from densenet_flax.evaluation.metrics.compute import assess

QUICK = Bootstrap(100)


@pytest.fixture
def both(random_table):
    validation = random_table(1)
    validation = replace(
        validation,
        file=np.char.add("v", validation.file),
        patient=np.char.add("v", validation.patient),
    )
    point = choose_operating_point(validation, "youden")
    return point.apply(random_table(0)), point.apply(validation), point


def test_calibration_is_reported_before_and_after(both):
    test, validation, point = both
    metrics = assess(test, validation, point, QUICK)
    assert json.loads(json.dumps(metrics, allow_nan=False)) == metrics
    after = calibration_metrics(test.label, test.calibrated)
    measured = metrics["calibration"]["test"]
    for name in ("brier", "nll", "ece"):
        assert measured["after"][name] == after[name]
        assert measured["before"][name] == calibration_metrics(test.label, test.probability)[name]
    fitted = metrics["calibration"]["validation"]
    assert fitted["after"]["nll"] < fitted["before"]["nll"]
    spans = measured["intervals"]
    assert (
        spans["brier_before"]["low"] < measured["before"]["brier"] < spans["brier_before"]["high"]
    )
    change = measured["after"]["nll"] - measured["before"]["nll"]
    assert spans["nll_change"]["low"] <= change <= spans["nll_change"]["high"]
    for row in measured["before"]["bins"]:
        span = row["accuracy_interval"]
        assert span is None or span[0] <= row["accuracy"] <= span[1]
    assert metrics["operating_point"]["threshold"] == point.threshold == metrics["threshold"]
    assert metrics["shared_with_validation"] == 0


def test_without_validation_there_is_no_calibration_after(random_table):
    metrics = assess(random_table(0), bootstrap=QUICK)
    assert metrics["operating_point"] is None and metrics["shared_with_validation"] is None
    assert metrics["calibration"]["test"]["after"] is None
    assert "no temperature" in metrics["calibration"]["undefined"]["after"]


def test_a_shared_image_is_rejected_and_shared_patients_are_counted(both):
    test, validation, point = both
    with pytest.raises(InputError, match=r"such as 'image0\.png'"):
        assess(test, replace(validation, file=test.file), point, QUICK)
    assert assess(test, replace(validation, patient=test.patient), point, QUICK)[
        "shared_with_validation"
    ] == len(np.unique(test.patient))


def test_one_patient_has_intervals(make):
    metrics = assess(make(label=[1, 1], probability=[0.3, 0.9]), bootstrap=QUICK)
    measured = metrics["calibration"]["test"]
    span = measured["intervals"]["brier_before"]
    assert span["low"] < measured["before"]["brier"] <= span["high"]
    assert all(
        (row["accuracy_interval"] is None) == (row["count"] == 0)
        for row in measured["before"]["bins"]
    )


def test_evaluate_is_json(random_table, make):
    for table in (random_table(0), make(label=[1], probability=[0.3])):
        result = evaluate(table)
        assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_scikit_learn_is_only_the_oracle_of_the_tests():
    code = (
        "import sys, densenet_flax.evaluation.metrics.compute; sys.exit('sklearn' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0
