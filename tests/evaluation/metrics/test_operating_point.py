import json
from dataclasses import replace

import numpy as np
import pytest
from scipy.special import expit

from densenet_flax.common.errors import InputError
from densenet_flax.evaluation import OperatingPoint, Predictions, choose_operating_point
from densenet_flax.evaluation.metrics.calibration import calibration_metrics
from densenet_flax.evaluation.metrics.operating_point import check_rule
from densenet_flax.weights.inference_settings import StoredOperatingPoint


@pytest.fixture
def validation(make):
    return make(
        label=[0, 0, 0, 0, 1, 1, 1, 1],
        probability=[0.1, 0.2, 0.3, 0.75, 0.25, 0.7, 0.8, 0.9],
        patient=list("aabbccdd"),
    )


def test_rules_by_hand(validation):
    assert choose_operating_point(validation).threshold == 0.5
    # 3 of 4 of either class: between 0.3 and 0.7; or, as good, between 0.75 and 0.8.
    assert choose_operating_point(validation, "youden").threshold == pytest.approx(0.5)
    all_found = choose_operating_point(validation, "sensitivity>=1")
    assert all_found.threshold == pytest.approx((0.25 + 0.2) / 2)
    most = choose_operating_point(validation, "sensitivity>=0.75")
    assert most.threshold == pytest.approx(0.5)
    assert most.rule == "sensitivity>=0.75"
    assert most.chosen_on == "8 validation images of 4 patients"
    assert most.notes == ()


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("rule", ["youden", "sensitivity>=0.9", "sensitivity >= 0.35"])
def test_no_other_threshold_is_better(random_table, seed, rule):
    table = random_table(seed)

    def rates(threshold):
        called = table.probability >= threshold
        return np.mean(called[table.label == 1]), np.mean(~called[table.label == 0])

    chosen = rates(choose_operating_point(table, rule).threshold)
    others = [rates(t) for t in np.linspace(0, 1, 201)]
    if rule == "youden":
        assert sum(chosen) >= max(map(sum, others)) - 1e-12
    else:
        sensitivity = check_rule(rule)
        assert chosen[0] >= sensitivity
        assert chosen[1] >= max(spec for sens, spec in others if sens >= sensitivity)


def test_adjacent_probabilities_can_be_separated(make):
    a = 0.7
    b = np.nextafter(a, 1)
    point = choose_operating_point(make(label=[0, 1], probability=[a, b]), "youden")
    assert point.decide(np.array([a, b])).tolist() == [0, 1]
    zero = choose_operating_point(make(label=[1, 0], probability=[0.0, 0.5]), "sensitivity>=1")
    assert zero.threshold == 0


@pytest.mark.parametrize("label", [0, 1])
@pytest.mark.parametrize("rule", ["youden", "sensitivity>=0.95"])
def test_one_class_leaves_the_defaults_with_a_reason(make, label, rule):
    point = choose_operating_point(make(label=[label] * 2, probability=[0.1, 0.4]), rule)
    missing = ("malignant", "benign")[label]
    assert (point.threshold, point.temperature) == (0.5, 1)
    assert len(point.notes) == 2
    assert point.notes[1] == f"threshold left at 0.5: there is not one {missing} validation image"


@pytest.mark.parametrize(
    "rule", ["", "best", "sensitivity>=0", "sensitivity>=1.1", "sensitivity>=."]
)
def test_unknown_rules_are_rejected(validation, rule):
    with pytest.raises(InputError, match=r"threshold rule is .*youden"):
        choose_operating_point(validation, rule)


def test_decisions_do_not_depend_on_the_temperature(random_table):
    table = random_table(0)
    plain = OperatingPoint(threshold=0.4)
    sharp = replace(plain, temperature=0.3)
    assert np.array_equal(plain.decide(table.probability), sharp.decide(table.probability))
    applied = sharp.apply(table)
    assert applied.threshold == 0.4
    assert np.array_equal(applied.probability, table.probability)
    # The calibrated threshold would decide the same, but for images that lie on it.
    off = np.abs(table.probability - 0.4) > 1e-9
    calibrated = applied.calibrated >= sharp.calibrated_threshold
    assert np.array_equal(calibrated[off], applied.prediction[off] == 1)
    assert plain.calibrated_threshold == 0.4


def test_json_round_trip():
    point = OperatingPoint(0.3, 1.7, "youden", "8 validation images of 2 patients", ("a", "b"))
    assert OperatingPoint.from_dict(json.loads(json.dumps(point.to_dict()))) == point
    assert OperatingPoint.from_dict({**point.to_dict(), "new": 1}) == point


@pytest.mark.parametrize(
    "change",
    [{"threshold": 2}, {"threshold": "x"}, {"temperature": 0}, {"temperature": float("nan")}],
)
def test_values_that_cannot_be_applied_are_rejected(change):
    with pytest.raises(InputError, match="operating point"):
        OperatingPoint.from_dict({**OperatingPoint().to_dict(), **change})
    without = OperatingPoint().to_dict()
    del without["threshold"]
    with pytest.raises(InputError, match="threshold"):
        OperatingPoint.from_dict(without)


def test_several_classes_have_no_threshold(several):
    table, validation = several(0), several(1, tag="v")
    with pytest.raises(InputError, match="there are 4 classes"):
        choose_operating_point(validation, "youden")
    point = choose_operating_point(validation)
    values = json.loads(json.dumps(point.to_dict()))
    assert values["threshold"] is None and values["rule"] == "likeliest class"
    assert OperatingPoint.from_dict(values) == point
    assert np.array_equal(point.decide(table.probability), table.prediction)


def population(seed, patients, miscalibrate):
    """A table of patients with 6 images each whose probabilities are off."""
    random = np.random.default_rng(seed)
    label = np.repeat(np.arange(patients) % 2, 6)
    effect = np.repeat(random.normal(size=patients), 6)
    true = 2 * label - 1 + effect + random.normal(size=len(label))
    return Predictions(
        file=[f"{seed}-{i}" for i in range(len(label))],
        patient=np.repeat([f"{seed}-p{i}" for i in range(patients)], 6),
        label=label,
        probability=expit(miscalibrate(true)),
    )


@pytest.mark.parametrize(
    ("method", "miscalibrate"),
    [("platt", lambda z: z + 2.5), ("isotonic", lambda z: np.sign(z) * z**2 * 2 - 1.5)],
)
def test_platt_and_isotonic_are_used_where_they_help(method, miscalibrate):
    validation, test = (population(seed, 80, miscalibrate) for seed in (0, 1))
    point = choose_operating_point(validation, calibration=method)
    assert point.method == method and point.notes == ()
    scaled = choose_operating_point(validation)
    assert scaled.method == "temperature" and "method" not in scaled.to_dict()
    own, other = (
        calibration_metrics(test.label, p.calibrate(test.probability))["nll"]
        for p in (point, scaled)
    )
    assert own < other - 0.01
    again = OperatingPoint.from_dict(json.loads(json.dumps(point.to_dict())))
    assert again == point and 0 <= again.calibrated_threshold <= 1
    stored = StoredOperatingPoint.from_dict(point.to_dict())
    assert (stored.method, stored.shift, stored.knots) == (method, point.shift, point.knots)
    # The order of probabilities stays, up to ties of a step.
    order = np.argsort(test.probability)
    assert np.all(np.diff(point.calibrate(test.probability)[order]) >= 0)


def test_platt_and_isotonic_are_not_guessed():
    few = choose_operating_point(population(0, 12, lambda z: z + 2), calibration="platt")
    assert few.method == "temperature" and few.temperature != 1
    assert few.notes == (
        "calibrated by a temperature: platt needs 10 validation patients of each class, not 6",
    )
    right = choose_operating_point(population(3, 64, lambda z: z), calibration="isotonic")
    assert right.method == "temperature" and "no better on validation patients" in right.notes[0]


def test_calibrations_that_make_no_sense_are_rejected(several):
    with pytest.raises(InputError, match="expected one of temperature, platt, isotonic"):
        choose_operating_point(population(0, 4, lambda z: z), calibration="beta")
    with pytest.raises(InputError, match="there are 4; leave"):
        choose_operating_point(several(0), calibration="platt")
    for method, shift, knots in (("temperature", 1.0, ()), ("isotonic", 0.0, ()), ("x", 0.0, ())):
        with pytest.raises(InputError, match="method is"):
            OperatingPoint(method=method, shift=shift, knots=knots)
    with pytest.raises(InputError, match="shift is nan"):
        OperatingPoint(method="platt", shift=float("nan"))
    for knots in (((0.9, 0.1), (0.1, 0.9)), ((0.1, 0.9), (0.9, 0.1)), ((0.1, 0.5), (0.9, 1.5))):
        with pytest.raises(InputError, match="knots are not a calibration"):
            OperatingPoint(method="isotonic", knots=knots)
