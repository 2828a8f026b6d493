import importlib.util
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from densenet_flax.common.errors import InputError
from densenet_flax.evaluation.metrics.bootstrap import Bootstrap, Strata, merged_strata, strata_of
from densenet_flax.evaluation.metrics.pseudo_patients import clopper_pearson, ratio_values
from densenet_flax.evaluation.metrics.sample import sample_of


@pytest.fixture(scope="module")
def benchmark():
    path = Path(__file__).parents[3] / "benchmarks" / "interval_coverage.py"
    spec = importlib.util.spec_from_file_location("interval_coverage", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_each_stratum_keeps_its_weight():
    strata = Strata.of(np.array([0, 1, 1, 0, 1, -1, -1]))
    draws = Bootstrap(3000).draw(strata)
    for s, size in enumerate(strata.sizes):
        total = draws.patients[:, strata.index == s].sum(axis=1) + draws.pseudo[:, s]
        assert total == pytest.approx(np.full(3000, size))
    assert np.all(draws.patients > 0)  # nobody is ever left out
    # The classes share one pseudo-patient, but two patients have at least half of one.
    assert draws.pseudo.mean(axis=0) == pytest.approx(
        [2 * 0.5 / 2.5, 2 * 0.5 / 2.5, 3 / (3 + 1 / 3) / 3], rel=0.08
    )
    whole = Bootstrap(3000).draw(strata, one_class=True).pseudo.mean(axis=0)
    assert whole == pytest.approx([2 / 3, 2 / 3, 3 / 4], rel=0.06)
    assert not np.array_equal(Bootstrap(3000, 1).draw(strata).patients, draws.patients)


@pytest.mark.parametrize(("right", "total"), [(0, 5), (4, 6), (20, 24), (58, 58)])
def test_pseudo_patients_make_the_interval_of_clopper_and_pearson(right, total):
    """For a proportion of patients of one class the two are the same interval."""
    bootstrap = Bootstrap(40_000)
    strata, once = Strata.of(np.zeros(total, int)), np.ones(total)
    draws = bootstrap.draw(strata, one_class=True)
    outcome = (np.arange(total) < right).astype(float)
    worst, best = (ratio_values(outcome, once, strata, draws, end) for end in (0.0, 1.0))
    span = bootstrap.interval(worst, best, right / total, "")
    exact = clopper_pearson(right, total, bootstrap)
    expected = stats.binomtest(right, total).proportion_ci(method="exact")
    assert (exact["low"], exact["high"]) == pytest.approx((expected.low, expected.high))
    assert (span["low"], span["high"]) == pytest.approx((exact["low"], exact["high"]), abs=0.008)


def test_bounds_of_perfect_scores():
    """58 of 58 patients say at least 0.938, 6 of 6 at least 0.541."""
    for patients, low in ((58, 0.938), (6, 0.541)):
        span = clopper_pearson(patients, patients, Bootstrap())
        assert span["low"] == pytest.approx(low, abs=5e-4) and span["high"] == 1


def test_a_variance_needs_two_patients(several, hand):
    table = several(0)
    table = table.select(~np.isin(table.patient, ["p4", "p8", "p12"]))
    sample = sample_of(table)
    assert strata_of(sample).sizes.tolist() == [1, 4, 3, 3]
    merged = merged_strata(sample)  # the single patient with the smallest other class
    assert sorted(merged.sizes) == [3, 4, 4]
    single = sample_of(several(0, patients=6))  # 2, 2, 1 and 1 patients
    assert merged_strata(single).sizes.tolist() == [2, 2, 2]
    assert merged_strata(sample_of(hand)).sizes.tolist() == [1, 2]  # never two classes together


@pytest.mark.parametrize("settings", [{"resamples": 0}, {"level": 1.0}, {"level": 0}])
def test_settings_that_make_no_sense_are_rejected(settings):
    with pytest.raises(InputError, match=next(iter(settings))):
        Bootstrap(**settings)


def test_intervals_cover_where_few_patients_are_hard(benchmark):
    """Small form of the simulation in docs/evaluation.md; plain percentiles fail in it."""
    population = benchmark.Population.parse("hard", 0.99)
    rows = benchmark.coverage((7, 17), population, test_sets=60, resamples=200)
    covered = {row.figure: row.coverage for row in rows if row.test_sets >= 20}
    plain = {row.figure: row.coverage for row in rows if row.figure.startswith("(")}
    assert max(plain.values()) <= 0.85
    covered.pop("test calibration_slope_before", None)  # infinite in most test sets
    assert len(covered) >= 26 and min(covered.values()) >= 0.9, covered
    assert max(row.type_one_error or 0 for row in rows) <= 0.14  # 30 comparisons


def test_intervals_cover_with_smooth_differences_between_patients(benchmark, tmp_path):
    population = benchmark.Population.parse("gauss", 0.8)
    rows = benchmark.coverage((6, 6), population, test_sets=40, resamples=200)
    assert min(row.coverage for row in rows if row.test_sets >= 20) >= 0.88
    assert "| image accuracy |" in benchmark.markdown(rows)
