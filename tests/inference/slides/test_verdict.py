"""The verdict on a slide: as the evaluation decides a patient."""

import numpy as np
import pytest
from scipy import special

from densenet_flax import InputError
from densenet_flax.evaluation.metrics.operating_point import LIKELIEST, OperatingPoint
from densenet_flax.evaluation.metrics.sample import patient_means
from densenet_flax.evaluation.predictions import Predictions
from densenet_flax.inference.classifier import Classifier
from densenet_flax.inference.slides.verdict import check_rule, slide_verdict


class Decider(Classifier):
    """A classifier without a network."""

    is_multilabel = False

    def __init__(self, class_names, point, is_multilabel=False):
        self.class_names, self.operating_point = class_names, point
        self.is_multilabel = is_multilabel


def binary(*positive):
    return np.stack([1 - np.array(positive), np.array(positive)], axis=1)


@pytest.mark.parametrize("classes", [2, 4])
def test_it_is_that_of_the_evaluation_for_a_patient(classes):
    rng = np.random.default_rng(classes)
    names = tuple("abcd"[:classes])
    rule = "fixed" if classes == 2 else LIKELIEST
    point = OperatingPoint(threshold=0.31 if classes == 2 else 0.5, temperature=1.7, rule=rule)
    for _ in range(20):
        decider = Decider(names, point)
        tiles = decider.decide(special.softmax(rng.normal(0, 2, (7, classes)), axis=1))
        table = Predictions(
            file=np.arange(7),
            patient=["slide"] * 7,
            label=[0] * 7,
            probability=tiles.probability,
            class_names=names,
            threshold=point.threshold,
            calibrated=tiles.calibrated,
        )
        patient = patient_means(table)
        verdict = slide_verdict(decider, tiles, "mean")
        column = slice(1, 2) if classes == 2 else slice(None)
        assert np.array_equal(verdict.probability[0, column], np.atleast_1d(patient.probability[0]))
        assert np.array_equal(verdict.calibrated[0, column], np.atleast_1d(patient.calibrated[0]))
        assert verdict.label[0] == patient.prediction[0] and len(verdict) == 1


def test_the_threshold_of_the_run_decides():
    tiles = Decider(("a", "b"), OperatingPoint()).decide(binary(0.2, 0.5, 0.2))
    for threshold, decision in ((0.29, "b"), (0.31, "a")):
        decider = Decider(("a", "b"), OperatingPoint(threshold=threshold))
        assert slide_verdict(decider, tiles, "mean").decision[0] == decision


def test_the_tiles_with_the_highest_probabilities():
    decider = Decider(("a", "b"), OperatingPoint(temperature=2.0))
    tiles = decider.decide(binary(0.1, 0.9, 0.3, 0.7))
    verdict = slide_verdict(decider, tiles, "top-2")
    assert np.allclose(verdict.probability, binary(0.8))
    assert np.allclose(verdict.calibrated, tiles.calibrated[[1, 3]].mean(axis=0)[None])
    # All of them where there are fewer.
    assert np.allclose(slide_verdict(decider, tiles, "top-9").probability, binary(0.5))


def test_more_than_two_classes_and_independent_ones():
    rows = np.array([[0.6, 0.4, 0.0], [0.0, 0.1, 0.9], [0.5, 0.4, 0.1]])
    decider = Decider(("a", "b", "c"), OperatingPoint(rule=LIKELIEST))
    verdict = slide_verdict(decider, decider.decide(rows), "top-1")
    assert np.allclose(verdict.probability, np.array([[0.6, 0.4, 0.9]]) / 1.9)
    assert verdict.decision[0] == "c"
    decider = Decider(("a", "b", "c"), OperatingPoint(), is_multilabel=True)
    verdict = slide_verdict(decider, decider.decide(rows), "top-2")
    assert np.allclose(verdict.probability, [[0.55, 0.4, 0.5]])
    assert verdict.decision[0] == "a|c"


@pytest.mark.parametrize("rule", ["top-0", "top", "top-k", "median", "top--3", ""])
def test_an_unknown_rule_is_one_line(rule):
    with pytest.raises(InputError, match=r"--verdict=.*'mean'.*'top-10'"):
        check_rule(rule)
