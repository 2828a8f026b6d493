import importlib.util
from pathlib import Path

import numpy as np
import pytest

from densenet_flax.common.errors import InputError
from densenet_flax.evaluation.metrics.bootstrap import (
    Basis,
    Bootstrap,
    basis_of,
    draw_patients,
    p_value,
    strata,
)
from densenet_flax.evaluation.metrics.multiclass import multiclass_metrics
from densenet_flax.evaluation.metrics.sample import sample_of


def test_patients_are_drawn_within_their_class():
    label = np.array([0, 1, 1, 0, 1, -1, -1])
    weights = draw_patients(label, 4000, 0)
    for kind in (0, 1, -1):
        assert np.all(weights[:, label == kind].sum(axis=1) == np.sum(label == kind))
    # Each is drawn once on average, and left out as often as drawing with replacement has it.
    assert weights.mean(axis=0) == pytest.approx(np.ones(7), abs=0.06)
    absent = (weights[:, label == 1] == 0).mean(axis=0)
    assert absent == pytest.approx([(2 / 3) ** 3] * 3, abs=0.03)
    assert np.array_equal(weights, draw_patients(label, 4000, 0))
    assert not np.array_equal(weights, draw_patients(label, 4000, 1))


def test_a_single_patient_of_a_class_is_drawn_with_the_smallest_other_class(several):
    table = several(0)
    table = table.select(~np.isin(table.patient, ["p4", "p8", "p12"]))
    sample = sample_of(table)
    single = sample.patient.label == 0
    assert single.sum() == 1
    stratum = strata(sample)
    smallest = np.unique(sample.patient.label[stratum == stratum[single]])
    assert smallest.tolist() == [0, 2]  # of class 1 there are 4 patients, of 2 and 3 there are 3
    weights = draw_patients(stratum, 400, 0)
    assert weights[:, single].mean() > 0 and weights[:, single].std() > 0


def test_single_patients_of_several_classes_are_drawn_together(several):
    table = several(0, patients=6)  # of class 0 and 1 two each, of 2 and 3 one
    sample = sample_of(table)
    groups = strata(sample)
    assert groups[sample.patient.label == 2] == groups[sample.patient.label == 3]
    assert set(groups[sample.patient.label < 2]) == {0, 1}


def test_patients_of_two_classes_are_never_drawn_together(hand):
    sample = sample_of(hand)  # one benign patient
    assert strata(sample).tolist() == sample.patient.label.tolist() == [0, 1, 1]


def test_few_patients_widen_an_interval_and_many_do_not():
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


def test_too_few_values_make_no_interval():
    values = np.append(np.arange(5.0), np.full(5, np.nan))
    interval = Bootstrap().interval(values, Basis(10**6))
    assert interval["undefined_resamples"] == 5 and 0 <= interval["low"] < interval["high"] <= 4
    interval = Bootstrap().interval(values[1:], Basis(10**6))
    assert interval == {"low": None, "high": None, "undefined_resamples": 5}


def test_p_value():
    many = 10**6
    assert p_value(np.array([1.0, 2, 3, -1]), Basis(many)) == pytest.approx(2 * 2 / 5, abs=1e-3)
    assert p_value(np.ones(1999), Basis(many)) == pytest.approx(2 / 2000, rel=0.01)
    assert p_value(np.array([0.0, 1e-17, -1e-17]), Basis(many)) == 1
    assert p_value(np.append(np.ones(9), np.nan), Basis(many)) == pytest.approx(2 / 10, rel=0.01)
    # Few patients: larger, as their intervals are wider.
    assert p_value(np.ones(1999), Basis(5)) > 5 * p_value(np.ones(1999), Basis(many))


def test_the_p_value_is_the_inverse_of_the_interval():
    """A difference whose interval just touches 0 has p = 1 − level."""
    differences = np.linspace(0, 1, 10**6)
    for basis in (Basis(4), Basis(9), Basis(30), Basis(5.5, 12.3)):
        shifted = differences - np.quantile(differences, Bootstrap().tail(basis))
        assert p_value(shifted, basis) == pytest.approx(0.05, rel=0.02)


@pytest.mark.parametrize("settings", [{"resamples": 0}, {"level": 1.0}, {"level": 0}])
def test_settings_that_make_no_sense_are_rejected(settings):
    with pytest.raises(InputError, match=next(iter(settings))):
        Bootstrap(**settings)


def test_resampled_patients_cover_the_truth_and_resampled_images_do_not():
    """The benchmark behind docs/evaluation.md, small."""
    path = Path(__file__).parents[3] / "benchmarks" / "interval_coverage.py"
    spec = importlib.util.spec_from_file_location("interval_coverage", path)
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    row = benchmark.coverage((24, 58), 0.4, test_sets=80, resamples=200, seed=0, images=12)
    assert row["coverage"]["patients"] >= 0.87
    assert row["coverage"]["images"] <= 0.8
    independent = benchmark.coverage((24, 58), 0.0, test_sets=60, resamples=200, seed=0, images=8)
    assert independent["coverage"]["images"] >= 0.87  # nothing else is wrong with it


def test_intervals_cover_the_truth_with_few_patients_of_each_class(make):
    """Plain percentiles hold the truth too rarely where a class has four patients."""
    rng, hits, plain, sets = np.random.default_rng(0), 0, 0, 150
    patient_label = np.repeat(np.arange(4), 4)
    for i in range(sets):
        rate = np.clip(rng.normal(0.7, 0.15, 16), 0, 1)  # of each patient; 0.7 on average
        patient = np.repeat(np.arange(16), 10)
        label = patient_label[patient]
        right = rng.random(160) < rate[patient]
        called = np.where(right, label, (label + 1) % 4)
        made = make(
            label=label,
            patient=patient.astype(str),
            probability=np.eye(4)[called],
            class_names=tuple("abcd"),
        )
        sample = sample_of(made)
        weights = draw_patients(strata(sample), 400, i)
        values = multiclass_metrics(sample.image, weights, ("accuracy",))
        basis = basis_of(sample, "accuracy", "abcd")
        span = Bootstrap().interval(values["accuracy"], basis)
        hits += span["low"] <= 0.699 <= span["high"]
        low, high = np.quantile(values["accuracy"], [0.025, 0.975])
        plain += low <= 0.699 <= high
    assert hits / sets >= 0.9 and hits > plain
