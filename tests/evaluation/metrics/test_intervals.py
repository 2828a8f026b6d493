import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from densenet_flax.common.errors import InputError
from densenet_flax.evaluation import evaluate
from densenet_flax.evaluation.metrics.binary import METRICS
from densenet_flax.evaluation.metrics.bootstrap import Basis, Bootstrap, draw_patients
from densenet_flax.evaluation.metrics.intervals import intervals, mean_intervals
from densenet_flax.evaluation.metrics.metric_set import image_values, metric_set
from densenet_flax.evaluation.metrics.sample import sample_of

PATIENT_METRICS = metric_set(2).patient_names


def test_an_interval_is_percentiles_of_the_resamples(random_table):
    table = random_table(0)
    found = intervals(table, Bootstrap(300, seed=7))
    sample = sample_of(table)
    values = image_values(sample, draw_patients(sample.patient.label, 300, 7))
    for name, patients in (("roc_auc", 4), ("sensitivity", 8), ("specificity", 4)):
        tail = Bootstrap().tail(Basis(patients))
        expected = np.quantile(values[name], [tail, 1 - tail])
        span = found["image"][name]
        assert [span["low"], span["high"]] == pytest.approx(expected, abs=1e-12)
        assert span["undefined_resamples"] == 0
    assert found["one_class_resamples"] == 0 and found["resamples"] == 300
    assert intervals(table, Bootstrap(300, seed=7)) == found
    assert intervals(table, Bootstrap(300, seed=8)) != found


def test_every_metric_has_an_interval_around_it(random_table):
    found = intervals(random_table(1), Bootstrap())
    assert set(found["image"]) == {*METRICS, "undefined"}
    assert set(found["patient"]) == {*PATIENT_METRICS, "undefined"}
    points = evaluate(random_table(1))
    for name in METRICS:
        span = found["image"][name]
        assert span["low"] < points["image"][name] < span["high"]
    assert [row["magnification"] for row in found["by_magnification"]] == [40, 100, 200, 400]
    assert [row["subtype"] for row in found["by_subtype"]] == ["adenosis", "ductal_carcinoma"]
    assert found["by_subtype"][0]["image"]["undefined"]["roc_auc"] == "no malignant images"


def test_few_patients_widen_and_many_do_not():
    tails = [Bootstrap().tail(Basis(n)) for n in (2, 5, 9, 30, 10_000)]
    assert tails == sorted(tails)
    assert tails[-1] == pytest.approx(0.025, abs=1e-4)
    # Student's 2.306 with 8 degrees of freedom times sqrt(9/8) is a normal's 2.446.
    assert tails[2] == pytest.approx(0.00723, abs=1e-5)
    # The mean of 9 normal numbers has, from its resamples, the width that Student's t gives it.
    x = np.random.default_rng(0).normal(size=9)
    means = np.random.default_rng(1).choice(x, (200_000, 9)).mean(axis=1)
    width = np.diff(np.quantile(means, [tails[2], 1 - tails[2]]))[0]
    assert width == pytest.approx(2 * 2.306 * x.std(ddof=1) / 3, rel=0.03)


def test_one_patient_cannot_be_resampled(hand):
    found = intervals(hand, Bootstrap(50))
    reason = "only one benign patient, and one cannot be resampled"
    assert found["image"]["accuracy"] is None
    assert found["image"]["undefined"]["accuracy"] == reason
    # Sensitivity rests on the two malignant patients alone.
    assert found["image"]["sensitivity"] is not None
    assert found["image"]["specificity"] is None


def test_no_spread_is_no_interval(make):
    table = make(label=[0, 0, 1, 1], probability=[0.1, 0.2, 0.8, 0.9], patient=list("abcd"))
    found = intervals(table, Bootstrap(50))
    assert found["image"]["accuracy"] is None
    assert "1 in every resample" in found["image"]["undefined"]["accuracy"]


def test_undefined_resamples_are_counted(make):
    """Precision does not exist in the resamples that miss the one patient called positive."""
    table = make(
        label=[0, 0, 1, 1, 1],
        probability=[0.1, 0.2, 0.9, 0.2, 0.3],
        patient=list("abcde"),
    )
    found = intervals(table, Bootstrap(2000))["image"]
    assert found["mcc"]["undefined_resamples"] == pytest.approx(2000 * (2 / 3) ** 3, abs=90)
    rare = make(
        label=[0, 0, *[1] * 6], probability=[0.1, 0.6, *[0.2] * 6], patient=list("abcdefgh")
    )
    found = intervals(rare, Bootstrap(2000))["image"]
    assert found["precision"] is None  # 0 wherever it exists
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
        found = intervals(table, Bootstrap(20))
        assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_means(random_table):
    table = random_table(2)
    error = (table.probability - table.label) ** 2
    found = mean_intervals(table, {"brier": error}, Bootstrap(500))["brier"]
    assert found["low"] < error.mean() < found["high"]
    names = np.unique(table.patient)
    sums = np.array([error[table.patient == name].sum() for name in names])
    counts = np.array([np.sum(table.patient == name) for name in names])
    weights = draw_patients(sample_of(table).patient.label, 500, 0)
    tail = Bootstrap().tail(Basis(4))
    expected = np.quantile(weights @ sums / (weights @ counts), [tail, 1 - tail])
    assert [found["low"], found["high"]] == pytest.approx(expected)


@pytest.mark.parametrize("settings", [{"resamples": 0}, {"level": 1.0}, {"level": 0}])
def test_settings_that_make_no_sense_are_refused(hand, settings):
    with pytest.raises(InputError, match=next(iter(settings))):
        Bootstrap(**settings)


def test_patients_resampled_cover_the_truth_and_images_do_not():
    """The benchmark behind docs/evaluation.md, small."""
    path = Path(__file__).parents[3] / "benchmarks" / "interval_coverage.py"
    spec = importlib.util.spec_from_file_location("interval_coverage", path)
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    row = benchmark.coverage((24, 58), 0.4, test_sets=80, resamples=200, seed=0, images=12)
    assert row["coverage"]["patients"] >= 0.87
    assert row["coverage"]["images"] <= 0.8
    alike = benchmark.coverage((24, 58), 0.0, test_sets=60, resamples=200, seed=0, images=8)
    assert alike["coverage"]["images"] >= 0.87  # nothing is wrong with it but the independence
