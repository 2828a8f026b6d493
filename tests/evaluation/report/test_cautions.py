from dataclasses import replace

import numpy as np
import pytest

from densenet_flax.evaluation import OperatingPoint, verdict
from densenet_flax.evaluation.metrics.bootstrap import Bootstrap
from densenet_flax.evaluation.metrics.compute import assess
from densenet_flax.evaluation.report.cautions import warnings


def metrics_and_warnings(table, run=None, **given):
    metrics = assess(table, bootstrap=Bootstrap(50), **given)
    metrics["run"] = run or {}
    return metrics, " ".join(warnings(metrics))


def test_the_verdict_states_the_interval(random_table):
    metrics, _ = metrics_and_warnings(random_table(0), {"split": {"patient_disjoint": True}})
    span = metrics["intervals"]["image"]["accuracy"]
    assert verdict(metrics).endswith(
        f"; accuracy {metrics['image']['accuracy']:.2f} (95% interval {span['low']:.2f} to "
        f"{span['high']:.2f}) on 200 images of 12 patients never seen in training"
    )


def test_the_verdict_counts_patients_first(make):
    label = np.repeat([0, 1], [24, 58])
    table = make(
        label=label,
        probability=np.where(np.arange(82) < 4, 0.8, np.where(label == 1, 0.9, 0.1)),
        patient=[f"p{i}" for i in range(82)],
    )
    metrics, text = metrics_and_warnings(table)
    assert verdict(metrics).startswith(
        "Sensitivity 58 of 58 malignant patients (0.94 to 1.00), specificity 20 of 24 benign "
        "patients (0.63 to 0.95), AUC 1.00 ("
    )
    assert "chance" not in verdict(metrics) + text


def test_a_useless_network_has_it_in_the_headline(make):
    """Its accuracy beats the commoner class, its AUC says nothing."""
    rng = np.random.default_rng(0)
    label = np.repeat([0, 1], [120, 290])
    probability = np.clip(rng.normal(0.7, 0.1, 410), 0, 1)
    probability[:3] = 0.4
    table = make(
        label=label, probability=probability, patient=[f"p{i}" for i in np.arange(410) // 5]
    )
    metrics, text = metrics_and_warnings(table)
    assert verdict(metrics).startswith("Not shown to be better than chance: ")
    assert "Not shown to be better than chance" in text


def test_no_mistake_is_not_certainty(make):
    table = make(label=[0, 0, 1, 1], probability=[0.1, 0.2, 0.8, 0.9], patient=list("abcd"))
    metrics, text = metrics_and_warnings(table)
    assert "accuracy 1.00 (95% interval 0." in verdict(metrics)
    assert "up to 60% of patients could still be misclassified" in text  # 1 - 0.025 ** (1 / 4)


def test_a_harmful_temperature_is_warned_of(random_table):
    point = OperatingPoint(temperature=0.1, notes=("temperature left at 1: no reason",))
    _, text = metrics_and_warnings(point.apply(random_table(0)), operating_point=point)
    assert "made the probabilities of the test images worse" in text
    assert "Temperature left at 1: no reason." in text


def test_patients_shared_with_validation_are_warned_of(random_table):
    table = random_table(0)
    other = replace(table, file=[f"v{name}" for name in table.file])
    _, text = metrics_and_warnings(table, validation=other)
    assert "12 test patients also contributed validation images" in text


@pytest.mark.parametrize("label", [0, 1])
def test_a_missing_class_is_the_first_warning(make, label):
    _, text = metrics_and_warnings(make(label=[label], probability=[0.5]))
    assert text.startswith(f"There are no {('malignant', 'benign')[label]} images")


def test_one_class_alone_is_not_compared_with_a_constant(make):
    _, text = metrics_and_warnings(make(label=[1, 1], probability=[0.9, 0.2], patient=["a", "b"]))
    assert "no better than" not in text
