"""Which rows the tables of the page have, and in which order."""

import pytest

from densenet_flax.evaluation.metrics.bootstrap import Bootstrap
from densenet_flax.evaluation.metrics.compute import assess, evaluate
from densenet_flax.evaluation.report import tables
from densenet_flax.evaluation.report.wording import wrong_images


@pytest.fixture
def metrics(hand):
    return assess(hand, bootstrap=Bootstrap(50))


def test_patients_are_listed_worst_first(metrics):
    rows = [(row[0], row[1], row[2]) for row in tables.by_patient(metrics).rows]
    assert rows == [("b", 0.25, "1/4"), ("a", 1.0, "2/2"), ("c", 1.0, "2/2")]


def test_mistakes_are_listed_most_confident_first(hand, several):
    mistakes = tables.mistakes(hand)
    assert [row[0] for row in mistakes.rows] == ["image3.png", "image4.png", "image5.png"]
    assert mistakes.header[1] == "P(malignant)" and wrong_images(evaluate(hand)) == 3
    table = several(0)
    mistakes = tables.mistakes(table)
    confidence = [row[mistakes.header.index("P(predicted)")] for row in mistakes.rows]
    assert confidence == sorted(confidence, reverse=True) and len(confidence) == 10
    assert wrong_images(evaluate(table)) == (table.prediction != table.label).sum() > 10
    wrong = table.select(table.prediction != table.label)
    assert confidence[0] == wrong.probability.max()


def test_undefined_metrics_are_not_listed_again_for_their_interval(make):
    metrics = assess(make(label=[1, 1], probability=[0.9, 0.2], patient=["a", "b"]))
    undefined = tables.undefined_metrics(metrics)
    assert any("specificity" in line and "no benign images" in line for line in undefined)


def test_groups_have_their_own_intervals(metrics):
    table = tables.by_magnification(metrics, ("accuracy", "patient_recognition_rate"))
    assert table.header[-2:] == ["accuracy", "patient recognition rate"]
    for row, group in zip(table.rows, metrics["by_magnification"], strict=True):
        assert row[0] == f"{group['magnification']}×" and row[3].value == group["accuracy"]
