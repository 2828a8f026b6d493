from dataclasses import replace

import pytest

from densenet_flax.evaluation import OperatingPoint, verdict
from densenet_flax.evaluation.metrics.bootstrap import Bootstrap
from densenet_flax.evaluation.metrics.compute import assess
from densenet_flax.evaluation.report.cautions import warnings


def said(table, run=None, **given):
    metrics = assess(table, bootstrap=Bootstrap(50), **given)
    metrics["run"] = run or {}
    return metrics, " ".join(warnings(metrics))


def test_the_verdict_carries_its_interval(random_table):
    metrics, _ = said(random_table(0), {"split": {"patient_disjoint": True}})
    span = metrics["intervals"]["image"]["accuracy"]
    assert verdict(metrics) == (
        f"Accuracy {metrics['image']['accuracy']:.2f} (95% interval {span['low']:.2f} to "
        f"{span['high']:.2f}) on 200 images of 12 patients never seen in training"
    )


def test_no_mistake_is_no_certainty(make):
    table = make(label=[0, 0, 1, 1], probability=[0.1, 0.2, 0.8, 0.9], patient=list("abcd"))
    metrics, text = said(table)
    assert verdict(metrics) == "Accuracy 1.00 on 4 images of 4 patients"
    assert "up to 53% of patients could still be misclassified" in text  # 1 - 0.05 ** (1 / 4)


def test_a_temperature_that_does_harm_is_reported(random_table):
    point = OperatingPoint(temperature=0.1, notes=("temperature left at 1: no reason",))
    _, text = said(point.apply(random_table(0)), operating_point=point)
    assert "made the probabilities of the test images worse" in text
    assert "Temperature left at 1: no reason." in text


def test_patients_shared_with_validation_are_reported(random_table):
    table = random_table(0)
    other = replace(table, file=[f"v{name}" for name in table.file])
    _, text = said(table, validation=other)
    assert "12 test patients also contributed validation images" in text


@pytest.mark.parametrize("label", [0, 1])
def test_a_missing_class_comes_first(make, label):
    _, text = said(make(label=[label], probability=[0.5]))
    assert text.startswith(f"There are no {('malignant', 'benign')[label]} images")
