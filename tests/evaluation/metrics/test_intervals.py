import json
from dataclasses import replace

import numpy as np
import pytest

from densenet_flax.evaluation import evaluate
from densenet_flax.evaluation.metrics import binary, multiclass
from densenet_flax.evaluation.metrics.bootstrap import Bootstrap, Strata
from densenet_flax.evaluation.metrics.influence import area_influence
from densenet_flax.evaluation.metrics.intervals import intervals, mean_intervals
from densenet_flax.evaluation.metrics.levels import metric_set
from densenet_flax.evaluation.metrics.sample import sample_of


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


def test_intervals_are_json(random_table, hand, make):
    for table in (random_table(0), hand, make(label=[1], probability=[0.3])):
        result = intervals(table, Bootstrap(20))
        assert json.loads(json.dumps(result, allow_nan=False)) == result


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


def test_every_figure_that_exists_has_two_ends(hand, make):
    """Also of one patient in a class, of perfect scores, and where few resamples had a value."""
    perfect = make(label=[0, 0, 1, 1], probability=[0.1, 0.2, 0.8, 0.9], patient=list("abcd"))
    for table in (hand, perfect, make(label=[0, 1], probability=[0.1, 0.9], patient=["a", "b"])):
        result, points = intervals(table, Bootstrap(200)), evaluate(table)
        for level in ("image", "patient"):
            for name, span in result[level].items():
                if name == "undefined":
                    assert span == points[level]["undefined"]
                elif points[level][name] is not None:
                    assert span["low"] <= points[level][name] <= span["high"]
                    assert span["high"] - span["low"] > 0.05
                    assert span["undefined_resamples"] == 0
    assert result["image"]["sensitivity"]["low"] < 0.1  # of one patient


def test_the_worst_resamples_are_not_dropped(make):
    """Without a benign patient called benign the coefficient did not exist, and was left out."""
    benign, wrong, malignant = 24, 22, 58
    low = np.where(np.arange(benign) < wrong, 0.9, 0.1)
    table = make(
        label=[0] * benign + [1] * malignant,
        probability=[*low, *[0.95] * malignant],
        patient=[f"p{i}" for i in range(benign + malignant)],
    )
    span, point = intervals(table, Bootstrap(500))["image"]["mcc"], evaluate(table)["image"]["mcc"]
    assert span["low"] < 0.1 < point - 0.1


def test_proportions_of_patients_are_exact(random_table):
    result = intervals(random_table(0), Bootstrap(50))["patient"]
    for name in ("sensitivity", "specificity", "patient_accuracy_by_mean_probability"):
        assert result[name]["method"] == "clopper-pearson"


def test_intervals_of_means(random_table):
    table = random_table(2)
    error = (table.probability - table.label) ** 2
    worst = {"brier": np.array([1.0, 1.0])}
    spans = mean_intervals(table, {"brier": error}, Bootstrap(500), worst)
    assert spans["brier"]["low"] < error.mean() < spans["brier"]["high"]
    change = mean_intervals(table, {"change": error - 0.1}, Bootstrap(500))["change"]
    assert change["low"] < error.mean() - 0.1 < change["high"] and change["method"] == "t"
    nothing = mean_intervals(table, {"x": np.full(len(table), np.nan)}, Bootstrap(9), {})
    assert nothing["x"] is None and nothing["undefined"] == {"x": "no images"}


def test_the_influence_on_an_area_is_its_derivative(random_table):
    rows = sample_of(random_table(0)).image  # with ties
    strata = Strata.of(np.zeros(rows.patients, int))
    step = 1e-6
    weights = np.vstack([rows.once, 1 + step * np.eye(rows.patients)])
    values = binary.ranking_metrics(rows.label == 1, rows.probability, rows.patient, weights)
    for name, influence in area_influence(rows, rows.label == 1, rows.probability, strata).items():
        slope = (values[name][1:] - values[name][0]) / step
        assert influence.value == pytest.approx(values[name][0])
        assert influence.patients == pytest.approx(slope - slope.mean(), abs=1e-5)


def test_a_class_with_one_patient_has_wide_intervals(several):
    table = several(0)
    table = table.select(~np.isin(table.patient, ["p4", "p8", "p12"]))
    result = intervals(table, Bootstrap(200))
    recall = result["by_class"][0]["recall"]
    assert recall["high"] - recall["low"] > 0.5
    assert result["image"]["macro_f1"] and result["by_class"][1]["recall"]
