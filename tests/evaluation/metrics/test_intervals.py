import json
from dataclasses import replace

import numpy as np
import pytest

from densenet_flax.evaluation import evaluate
from densenet_flax.evaluation.metrics import binary, multiclass
from densenet_flax.evaluation.metrics.bootstrap import Basis, Bootstrap, draw_patients
from densenet_flax.evaluation.metrics.intervals import intervals, mean_intervals
from densenet_flax.evaluation.metrics.levels import level_values, metric_set
from densenet_flax.evaluation.metrics.sample import sample_of


def test_an_interval_is_percentiles_of_the_resamples(random_table):
    table = random_table(0)
    result = intervals(table, Bootstrap(300, seed=7))
    sample = sample_of(table)
    values = level_values(sample, draw_patients(sample.patient.label, 300, 7))["image"]
    for name, patients in (("roc_auc", 4), ("sensitivity", 8), ("specificity", 4)):
        tail = Bootstrap().tail(Basis(patients))
        expected = np.quantile(values[name], [tail, 1 - tail])
        span = result["image"][name]
        assert [span["low"], span["high"]] == pytest.approx(expected, abs=1e-12)
        assert span["undefined_resamples"] == 0
    assert result["one_class_resamples"] == 0 and result["resamples"] == 300
    assert intervals(table, Bootstrap(300, seed=7)) == result
    assert intervals(table, Bootstrap(300, seed=8)) != result


def test_every_metric_of_two_classes_has_an_interval_around_it(random_table):
    result = intervals(random_table(1), Bootstrap())
    assert set(result["image"]) == {*binary.METRICS, "undefined"}
    assert set(result["patient"]) == {*metric_set(2).levels["patient"], "undefined"}
    points = evaluate(random_table(1))
    for name in binary.METRICS:
        span = result["image"][name]
        assert span["low"] < points["image"][name] < span["high"]
    assert [row["magnification"] for row in result["by_magnification"]] == [40, 100, 200, 400]
    assert [row["subtype"] for row in result["by_subtype"]] == ["adenosis", "ductal_carcinoma"]
    assert result["by_subtype"][0]["image"]["undefined"]["roc_auc"] == "no malignant images"


def test_metrics_that_rest_on_one_patient_have_no_interval(hand):
    result = intervals(hand, Bootstrap(50))
    reason = "only one benign patient, and one cannot be resampled"
    assert result["image"]["accuracy"] is None
    assert result["image"]["undefined"]["accuracy"] == reason
    # Sensitivity rests on the two malignant patients alone.
    assert result["image"]["sensitivity"] is not None
    assert result["image"]["specificity"] is None


def test_the_same_value_in_every_resample_is_no_interval(make):
    table = make(label=[0, 0, 1, 1], probability=[0.1, 0.2, 0.8, 0.9], patient=list("abcd"))
    result = intervals(table, Bootstrap(50))
    assert result["image"]["accuracy"] is None
    assert "1 in every resample" in result["image"]["undefined"]["accuracy"]


def test_undefined_resamples_are_counted(make):
    """Precision does not exist in the resamples that miss the one patient called positive."""
    table = make(
        label=[0, 0, 1, 1, 1],
        probability=[0.1, 0.2, 0.9, 0.2, 0.3],
        patient=list("abcde"),
    )
    result = intervals(table, Bootstrap(2000))["image"]
    assert result["mcc"]["undefined_resamples"] == pytest.approx(2000 * (2 / 3) ** 3, abs=90)
    rare = make(
        label=[0, 0, *[1] * 6], probability=[0.1, 0.6, *[0.2] * 6], patient=list("abcdefgh")
    )
    result = intervals(rare, Bootstrap(2000))["image"]
    assert result["precision"] is None  # 0 wherever it exists
    both = make(label=[0, 1, 1, 1], probability=[0.1, 0.9, 0.8, 0.2], patient=list("aabb"))
    mixed = intervals(both, Bootstrap(400))
    assert mixed["patient"]["undefined"]["roc_auc"].startswith("1 of 2 patients")


def test_resamples_of_one_class_are_counted(make):
    table = make(
        label=[0, 1, 0, 1, 1, 1],
        probability=[0.1, 0.9, 0.4, 0.2, 0.6, 0.7],
        patient=["a", "a", "b", "b", "c", "c"],
    )
    # Both classes are in every resample: a and b have images of both.
    assert intervals(table, Bootstrap(200))["one_class_resamples"] == 0
    sample = sample_of(table)
    assert sample.patient.label.tolist() == [-1, -1, 1]


def test_intervals_are_json(random_table, hand, make):
    for table in (random_table(0), hand, make(label=[1], probability=[0.3])):
        result = intervals(table, Bootstrap(20))
        assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_intervals_of_means(random_table):
    table = random_table(2)
    error = (table.probability - table.label) ** 2
    interval = mean_intervals(table, {"brier": error}, Bootstrap(500))["brier"]
    assert interval["low"] < error.mean() < interval["high"]
    names = np.unique(table.patient)
    sums = np.array([error[table.patient == name].sum() for name in names])
    counts = np.array([np.sum(table.patient == name) for name in names])
    weights = draw_patients(sample_of(table).patient.label, 500, 0)
    tail = Bootstrap().tail(Basis(4))
    expected = np.quantile(weights @ sums / (weights @ counts), [tail, 1 - tail])
    assert [interval["low"], interval["high"]] == pytest.approx(expected)


def test_every_metric_of_four_classes_has_an_interval_around_it(several):
    table = several(1)
    result, points = intervals(table, Bootstrap(400)), evaluate(table)
    assert result["resamples_without_a_class"] == 0
    assert [row["magnification"] for row in result["by_magnification"]] == [40, 100]
    assert result["by_subtype"] == points["by_subtype"] == []  # the classes say it all
    for name in multiclass.METRICS:
        assert result["image"][name]["low"] < points["image"][name] < result["image"][name]["high"]
    for span, row in zip(result["by_class"], points["by_class"], strict=True):
        for name in multiclass.PER_CLASS:
            assert span[name]["low"] < row[name] < span[name]["high"]
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert intervals(table, Bootstrap(400)) == result != intervals(table, Bootstrap(400, seed=1))


def test_a_class_with_one_patient_has_no_interval_and_the_rest_still_does(several):
    table = several(0)
    table = table.select(~np.isin(table.patient, ["p4", "p8", "p12"]))
    result = intervals(table, Bootstrap(200))
    reason = "only one adenosis patient, and one cannot be resampled"
    assert result["image"]["undefined"]["macro_f1"] == reason
    assert result["by_class"][0]["undefined"]["recall"] == reason
    assert result["image"]["accuracy"] and result["by_class"][1]["recall"]


def test_a_class_that_the_table_lacks_is_not_missing_in_every_resample(several):
    table = several(0)
    result = intervals(table.select(table.label != 2), Bootstrap(50))
    assert result["resamples_without_a_class"] == 0
    assert result["image"]["undefined"]["macro_f1"] == "no ductal_carcinoma images"


def test_patients_of_several_classes_leave_the_recognition_rate_its_interval(several):
    table = several(0)
    mixed = replace(table, patient=np.where(table.patient == "p1", "p0", table.patient))
    result = intervals(mixed, Bootstrap(50))
    assert result["patient"]["patient_recognition_rate"] is not None
    assert result["patient"]["kappa"] is None
