import json
from dataclasses import replace

import numpy as np
import pytest

from densenet_flax.common.errors import InputError
from densenet_flax.evaluation import compare, compare_networks, evaluate
from densenet_flax.evaluation.metrics.binary import METRICS
from densenet_flax.evaluation.metrics.bootstrap import Strata
from densenet_flax.evaluation.metrics.comparison import comparison_table
from densenet_flax.evaluation.metrics.influence import standard_error


def better(table, by=0.3):
    shifted = np.clip(table.probability + by * (2 * table.label - 1), 0, 1)
    return replace(table, probability=shifted)


def test_swapping_the_tables_negates_the_differences(random_table):
    a, b = random_table(1), better(random_table(1), 0.1)
    there, back = compare(a, b, 300), compare(b, a, 300)
    for name in METRICS:
        one, other = there["image"][name], back["image"][name]
        assert one["difference"] == pytest.approx(-other["difference"])
        assert one["low"] == pytest.approx(-other["high"], abs=1e-9)
        assert one["p"] == pytest.approx(other["p"], abs=1e-9)


def test_a_table_against_itself_is_no_different(random_table):
    table = random_table(2)
    result = compare(table, table.select(np.arange(len(table))[::-1]), 200)
    for level in ("image", "patient"):
        for name, row in result[level].items():
            if name != "undefined":
                assert row["difference"] == row["low"] == row["high"] == 0 and row["p"] == 1


def test_rows_are_matched_by_file(random_table):
    a, b = random_table(3), better(random_table(3))
    order = np.random.default_rng(0).permutation(len(b))
    assert compare(a, b.select(order), 100) == compare(a, b, 100)


def two_networks(make, seed, patients=40, gain=0.0):
    """Of the same skill but for the gain; hard patients are hard for both."""
    rng = np.random.default_rng(seed)
    patient = np.repeat(np.arange(patients), 6)
    label = (patient >= 0.4 * patients).astype(int)
    shared = 2 * label - 1 + rng.normal(size=patients)[patient]
    own = rng.normal(size=(2, patients))[:, patient] + rng.normal(size=(2, len(patient)))
    scores = shared + own + np.outer([0, gain], 2 * label - 1)
    return [
        make(label=label, patient=patient.astype(str), probability=1 / (1 + np.exp(-score)))
        for score in scores
    ]


def test_p_and_interval_agree(make):
    seen = set()
    for seed in range(3):
        for gain in (0.0, 0.3, 1.0):
            result = compare(*two_networks(make, seed, gain=gain), resamples=9)
            for row in (result["image"][name] for name in METRICS):
                clear = row["low"] > 0 or row["high"] < 0
                if abs(row["p"] - 0.05) > 0.01:
                    assert (row["p"] < 0.05) == clear
                    seen.add(clear)
    assert seen == {True, False}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"file": [f"image{i}.png" for i in range(1, 9)]}, "1 only in A, 1 only in B"),
        ({"label": [1, 0, 1, 1, 1, 1, 1, 1]}, "disagree on the label of 1 images: 'image0.png'"),
        ({"patient": ["a", "b", "b", "b", "b", "b", "c", "c"]}, "disagree on the patient"),
        ({"class_names": ("benign", "cancer")}, "other classes"),
    ],
)
def test_other_images_are_rejected(hand, change, message):
    with pytest.raises(InputError, match=message):
        compare(hand, replace(hand, **change), 10)


def test_differences_are_b_minus_a(random_table):
    a, b = random_table(0), better(random_table(0))
    result = compare(a, b)
    points = evaluate(a)["image"], evaluate(b)["image"]
    row = result["image"]["roc_auc"]
    assert row["difference"] == points[1]["roc_auc"] - points[0]["roc_auc"] > 0
    assert 0 < row["low"] <= row["difference"] <= row["high"] and row["p"] < 0.05
    for name in METRICS:
        assert result["image"][name]["a"] == points[0][name]
        assert result["image"][name]["b"] == points[1][name]


def test_under_no_difference_p_is_rarely_small(make):
    """Two networks equally good at the same patients: p < 0.05 in about 5 of 100 test sets."""
    rows = [compare(*two_networks(make, seed))["image"] for seed in range(100)]
    for name in ("accuracy", "roc_auc"):
        assert sum(row[name]["p"] < 0.05 for row in rows) <= 10


def test_a_difference_that_few_patients_carry_has_few_degrees_of_freedom():
    strata = Strata.of(np.zeros(20, int))
    normal = np.random.default_rng(0).normal(size=20)
    few = np.where(np.arange(20) < 3, 1.0, 0.0)
    assert standard_error(normal, strata).freedom == standard_error(few, strata).freedom == 19
    assert standard_error(few, strata, carried=True).freedom < 4
    assert 4 < standard_error(normal, strata, carried=True).freedom < 19


def test_a_metric_that_cannot_be_compared_has_a_reason(hand):
    result = compare(hand, better(hand, 0.05), 50)
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert result["image"]["accuracy"] is None
    assert "only one benign patient" in result["image"]["undefined"]["accuracy"]
    text = comparison_table(result, "one", "two")
    assert "A  one" in text and "only one benign patient" in text


def test_many_networks_are_compared_pair_by_pair(make):
    a, b = two_networks(make, 0, gain=0.6)
    c = better(a, -0.05).select(np.arange(len(a))[::-1])
    result = compare_networks({"a": a, "b": b, "c": c}, resamples=50)
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert ["".join((pair["a"], pair["b"])) for pair in result["pairs"]] == ["ab", "ac", "bc"]
    # Bonferroni: each pair as if it were alone, at a level of 1 - 0.05 / 3.
    for pair, tables in zip(result["pairs"], ((a, b), (a, c), (b, c)), strict=True):
        alone = compare(*tables, level=1 - 0.05 / 3)
        for level in ("image", "patient"):
            for name, row in alone[level].items():
                if name != "undefined" and row:
                    assert pair[level][name] == pytest.approx(
                        {**row, "p_corrected": pair[level][name]["p_corrected"]}
                    )
    for name in ("roc_auc", "mcc"):
        rows = sorted((pair["image"][name] for pair in result["pairs"]), key=lambda row: row["p"])
        first, second, third = (row["p"] for row in rows)
        holm = [min(1, 3 * first), min(1, max(3 * first, 2 * second))]
        holm.append(min(1, max(3 * first, 2 * second, third)))
        assert [row["p_corrected"] for row in rows] == pytest.approx(holm)
    assert result["metric"] == {"level": "patient", "name": "roc_auc"}
    assert result["networks"][1]["image"] == evaluate(b)["image"]


def test_a_baseline_is_compared_with_all_others(make, several):
    a, b = two_networks(make, 1)
    result = compare_networks({"a": a, "b": b, "c": a}, "b", "mcc", resamples=20)
    assert [(pair["a"], pair["b"]) for pair in result["pairs"]] == [("b", "a"), ("b", "c")]
    one, other = result["pairs"]
    assert one["image"] == other["image"]
    table = several(0)
    result = compare_networks({"a": table, "b": table}, resamples=20)
    assert result["metric"]["name"] == "macro_roc_auc"


@pytest.mark.parametrize(
    ("names", "arguments", "message"),
    [
        ("a", {}, "two networks or more"),
        ("ab", {"baseline": "c"}, "no network 'c'"),
        ("ab", {"metric": "auc"}, "no metric 'auc'; expected one of accuracy, "),
    ],
)
def test_comparisons_that_make_no_sense_are_rejected(hand, names, arguments, message):
    with pytest.raises(InputError, match=message):
        compare_networks(dict.fromkeys(names, hand), **arguments)
    other = replace(hand, file=[f"other{i}" for i in range(len(hand))])
    with pytest.raises(InputError, match="8 only in a, 8 only in c"):
        compare_networks({"a": hand, "b": hand, "c": other})
