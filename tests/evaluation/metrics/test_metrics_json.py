"""The numbers of metrics.json, of a comparison and of folds stay what they were.

`expected_metrics.json` is rewritten where a method changes, never for another reason:
`json.dumps(results())`. The values of the table are compared with scikit-learn's in other tests.
"""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from densenet_flax.evaluation import Predictions, compare, cross_validation_summary

EXPECTED = Path(__file__).with_name("expected_metrics.json")
RESAMPLES = 40


def fixed_table(classes, patients, images=72, shift=0, tag=""):
    """Predictions by arithmetic alone, so that no random generator can change them."""
    row = np.arange(images)
    patient = row % patients
    label = patient % classes
    image_noise = (row[:, None] * (37 + 8 * np.arange(classes)) + shift) % 101 / 100
    patient_noise = (patient[:, None] * (29 + 12 * np.arange(classes)) + shift) % 97 / 96
    score = image_noise + patient_noise + 0.5 * np.eye(classes)[label]
    probability = np.round(score / score.sum(axis=1, keepdims=True), 3)
    probability[:, 0] += 1 - probability.sum(axis=1)
    names = ("benign", "malignant", "normal", "in_situ")[:classes]
    return Predictions(
        file=[f"{tag}{i}.png" for i in row],
        patient=[f"{tag}p{i}" for i in patient],
        subtype=[names[k] for k in label],  # of two classes a group, of four the class itself
        magnification=np.where(row // patients % 2, 100, 40),
        slide=[f"{tag}s{i}" for i in patient],
        label=label,
        probability=probability,
        class_names=names,
    )


def results():
    """Everything that the evaluation writes as JSON, of small tables."""
    from densenet_flax.evaluation import choose_operating_point
    from densenet_flax.evaluation.metrics.bootstrap import Bootstrap
    from densenet_flax.evaluation.metrics.compute import assess

    def levels(table):
        actual = assess(table, bootstrap=Bootstrap(RESAMPLES))
        intervals = actual["intervals"]
        for key in ("by_magnification", "by_subtype"):
            intervals.pop(key)
        return {key: actual[key] for key in ("image", "patient", "by_patient")} | {
            "by_class": actual.get("by_class"),
            "intervals": intervals,
        }

    settings = Bootstrap(RESAMPLES)
    two, four = fixed_table(2, 9), fixed_table(4, 14)
    validation = fixed_table(2, 6, 36, shift=5, tag="v")
    point = choose_operating_point(validation, "youden")
    both = replace(two, patient=np.where(two.patient == "p1", "p0", two.patient))
    # One class has a single patient; in the second table another is only in a patient of two.
    rare = four.select(~np.isin(four.patient, ["p4", "p8", "p12"]))
    mixed = replace(rare, patient=np.where(rare.label == 3, "p1", rare.patient))
    binary = assess(point.apply(two), point.apply(validation), point, settings)
    multiclass = assess(four, bootstrap=settings)
    # Newer than the file; tests of their own show both.
    del binary["clinic"]["decision_curve"]
    del binary["calibration"]["patients"], multiclass["calibration"]["patients"]
    parts = [two.select(np.isin(two.patient, own)) for own in (["p0", "p1"], ["p2", "p3", "p5"])]
    return {
        "two_classes": binary,
        "four_classes": multiclass,
        "one_class": levels(two.select(two.label == 1)),
        "patients_of_both_classes": levels(both),
        "rare_classes": levels(rare),
        "patients_of_several_classes": levels(mixed),
        "comparison": compare(two, fixed_table(2, 9, shift=11), RESAMPLES),
        "comparison_of_four_classes": compare(four, fixed_table(4, 14, shift=11), RESAMPLES),
        "folds": cross_validation_summary(parts, resamples=RESAMPLES),
        "folds_of_four_classes": cross_validation_summary([four, four], resamples=RESAMPLES),
    }


def as_lists(value):
    """Dictionaries as lists of pairs, so that the order of keys counts as well."""
    return parse(json.dumps(value, allow_nan=False))


def parse(text):
    return json.loads(text, object_pairs_hook=lambda pairs: [[*pair] for pair in pairs])


def assert_same(actual, expected, where=""):
    if isinstance(expected, list) and isinstance(actual, list):
        assert len(actual) == len(expected), where
        for i, pair in enumerate(zip(actual, expected, strict=True)):
            assert_same(*pair, f"{where}[{i}]")
    elif isinstance(expected, float) and isinstance(actual, float):
        assert actual == pytest.approx(expected, rel=1e-12, abs=1e-12), where
    else:
        assert actual == expected and type(actual) is type(expected), where


def test_numbers_and_keys_are_unchanged():
    expected = dict(parse(EXPECTED.read_text()))
    for name, actual in results().items():
        assert_same(as_lists(actual), expected.pop(name), name)
    assert not expected
