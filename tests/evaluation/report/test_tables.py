"""Which rows the tables of the page have, and in which order."""

import pytest

from densenet_flax.evaluation.metrics.bootstrap import Bootstrap
from densenet_flax.evaluation.metrics.compute import assess, evaluate
from densenet_flax.evaluation.report import tables
from densenet_flax.evaluation.report.views import Measured, format_estimate, format_number
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


def test_numbers_are_never_rounded_to_certainty():
    shown = [format_number(v) for v in (0.0, 0.0004, 0.0006, 0.9994, 0.99951, 1.0, 1.0004, 7, None)]
    assert shown == ["0.000", "<0.001", "0.001", "0.999", ">0.999", "1.000", "1.000", "7", "–"]
    assert format_estimate(Measured(0.9996, 0.2, 1.0)) == ">0.999 [0.200, 1.000]"


def test_the_flow_of_cases():
    counts = {"images": 6, "patients": 2}
    split = {"counts": {"train": {"benign": counts, "a_b": {}}, "test": {"a_b": {"images": 3}}}}
    classes = [{"class": "benign", "images": 7}, {"class": "a_b", "images": 3}]
    data = {"classes": classes, "patients": 5, "patients_from": "x", "left_out": {".txt": 2}}
    flow = tables.flow_of_cases({"split": split, "data": data})
    assert flow.header == ["", "images", "benign", "a b"]
    assert flow.rows == [
        ["files left out: .txt", 2, None, None],
        ["all, of 5 patients", 10, 7, 3],
        ["train", 6, "6 of 2 patients", None],
        ["test", 3, None, 3],
        ["in no subset", 1, None, None],
    ]
    assert tables.flow_of_cases({"split": split}).rows == flow.rows[2:4]
    assert not tables.flow_of_cases({}).rows
