"""The metrics of resamples at both levels, against a loop that copies rows."""

from dataclasses import replace

import numpy as np
import pytest

from densenet_flax.evaluation.metrics.levels import (
    level_metrics,
    level_values,
    metric_set,
)
from densenet_flax.evaluation.metrics.sample import sample_of
from tests.evaluation.metrics import scikit_learn


def assert_same_as_copied_rows(values, table, weights, oracle):
    patient = np.unique(table.patient, return_inverse=True)[1]
    for i, times in enumerate(weights):
        copied = scikit_learn.drawn_rows(patient, times)
        expected = oracle(table.label[copied], table.probability[copied], table.prediction[copied])
        for name, value in expected.items():
            np.testing.assert_allclose(values[name][i], value, atol=1e-12, err_msg=name)


def draw_patients(sample, resamples, seed):
    """How often each patient is drawn, with replacement within the class."""
    random, label = np.random.default_rng(seed), sample.patient.label
    weights = np.zeros((resamples, len(label)))
    for group in np.unique(label):
        members = np.flatnonzero(label == group)
        share = np.full(len(members), 1 / len(members))
        weights[:, members] = random.multinomial(len(members), share, resamples)
    return weights


def by_patient(table):
    """A row per patient with the mean probability: the patient level as a table of images."""
    names, first = np.unique(table.patient, return_index=True)
    means = [table.probability[table.patient == name].mean(axis=0) for name in names]
    return replace(table.select(first), probability=np.array(means))


@pytest.mark.parametrize("threshold", [0.5, 0.8, 1.0])
def test_resamples_of_two_classes_at_both_levels(random_table, threshold):
    table = replace(random_table(0), threshold=threshold)
    sample = sample_of(table)
    weights = draw_patients(sample, 15, 0)
    image, patient = level_values(sample, weights).values()
    assert tuple(image) == metric_set(2).names and tuple(patient) == metric_set(2).levels["patient"]
    patient["accuracy"] = patient["patient_accuracy_by_mean_probability"]
    assert_same_as_copied_rows(image, table, weights, scikit_learn.binary)
    assert_same_as_copied_rows(patient, by_patient(table), weights, scikit_learn.binary)


def test_resamples_of_four_classes_at_both_levels(several):
    table = several(1, n=120)
    sample = sample_of(table)
    weights = draw_patients(sample, 8, 3)
    image, patient = level_values(sample, weights).values()
    assert tuple(patient) == metric_set(4).levels["patient"]
    patient["accuracy"] = patient["patient_accuracy_by_mean_probability"]
    assert_same_as_copied_rows(image, table, weights, scikit_learn.multiclass)
    assert_same_as_copied_rows(patient, by_patient(table), weights, scikit_learn.multiclass)


def test_patient_recognition_rate_of_copied_patients(random_table):
    table = random_table(0)
    sample = sample_of(table)
    weights = draw_patients(sample, 20, 0)
    right = table.prediction == table.label
    rates = [right[table.patient == name].mean() for name in np.unique(table.patient)]
    expected = [np.mean(np.repeat(rates, row.astype(int))) for row in weights]
    rates = level_values(sample, weights)["patient"]["patient_recognition_rate"]
    np.testing.assert_allclose(rates, expected, atol=1e-12)


@pytest.mark.parametrize("fixture", ["random_table", "several"])
def test_the_table_itself_is_a_resample(fixture, request):
    table = request.getfixturevalue(fixture)(1)
    sample = sample_of(table)
    once = np.ones((3, sample.patients))
    image, patient = level_values(sample, once).values()
    metrics, points = metric_set(sample.classes), level_metrics(sample, table.class_names)
    for name in metrics.names:
        assert image[name] == pytest.approx([points["image"][name]] * 3, abs=1e-12)
    for name in metrics.levels["patient"]:
        assert patient[name] == pytest.approx([points["patient"][name]] * 3, abs=1e-12)


def test_a_resample_of_one_class_has_the_metrics_of_one_class(make):
    """Only patients of both classes can bring one about."""
    table = make(label=[0, 1, 1, 1], probability=[0.1, 0.9, 0.8, 0.2], patient=["a", "a", "b", "b"])
    sample = sample_of(table)
    weights = np.array([[0.0, 2.0], [1.0, 1.0]])
    computed = level_values(sample, weights)["image"]
    assert computed["accuracy"].tolist() == [0.5, 0.75] and computed["sensitivity"][0] == 0.5
    exist = {name for name, values in computed.items() if np.isfinite(values[0])}
    assert exist == {"accuracy", "sensitivity"}
    assert all(np.isfinite(values[1]) for values in computed.values())
    # A patient of both classes has no true class, so only the share of right images exists.
    patients = level_values(sample, weights)["patient"]
    exist = {name for name, values in patients.items() if np.isfinite(values).all()}
    assert exist == {"patient_recognition_rate"}
