import numpy as np
import pytest
from sklearn import metrics as sk

from densenet_flax.evaluation.metrics.binary import METRICS
from densenet_flax.evaluation.metrics.bootstrap import draw_patients
from densenet_flax.evaluation.metrics.metric_set import image_values, metric_set, patient_values
from densenet_flax.evaluation.metrics.point_metrics import image_metrics, patient_metrics
from densenet_flax.evaluation.metrics.sample import sample_of

PATIENT_METRICS = metric_set(2).patient_names


def loop(table, weights):
    """The plain way: copy the rows of every drawn patient and ask scikit-learn."""
    names = np.unique(table.patient)
    found = []
    for row in weights:
        rows = np.concatenate(
            [
                np.tile(np.flatnonzero(table.patient == name), int(times))
                for name, times in zip(names, row, strict=True)
            ]
        )
        y, p, called = table.label[rows], table.probability[rows], table.prediction[rows]
        found.append(
            {
                "accuracy": sk.accuracy_score(y, called),
                "balanced_accuracy": sk.balanced_accuracy_score(y, called),
                "sensitivity": sk.recall_score(y, called),
                "specificity": sk.recall_score(y, called, pos_label=0),
                "precision": sk.precision_score(y, called) if called.any() else np.nan,
                "f1": sk.f1_score(y, called),
                "mcc": sk.matthews_corrcoef(y, called) if 0 < called.mean() < 1 else np.nan,
                "roc_auc": sk.roc_auc_score(y, p),
                "pr_auc": sk.average_precision_score(y, p),
            }
        )
    return {name: np.array([values[name] for values in found]) for name in METRICS}


def by_patient(table):
    """One row per patient with the mean probability: the patient level as a table of images."""
    names = np.unique(table.patient)
    first = table.select(np.array([np.argmax(table.patient == name) for name in names]))
    means = [table.probability[table.patient == name].mean() for name in names]
    object.__setattr__(first, "probability", np.array(means))
    return first


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("threshold", [0.5, 0.8, 1.0])
def test_against_a_loop_with_scikit_learn(random_table, seed, threshold):
    table = random_table(seed)
    object.__setattr__(table, "threshold", threshold)
    sample = sample_of(table)
    weights = draw_patients(sample.patient.label, 15, seed)
    image, patient = image_values(sample, weights), patient_values(sample, weights)
    expected = loop(table, weights)
    for name in METRICS:
        np.testing.assert_allclose(image[name], expected[name], atol=1e-12, err_msg=name)
    expected = loop(by_patient(table), weights)
    expected["patient_accuracy_by_mean_probability"] = expected.pop("accuracy")
    for name, values in expected.items():
        np.testing.assert_allclose(patient[name], values, atol=1e-12, err_msg=name)


def test_patient_recognition_rate_of_a_loop(random_table):
    table = random_table(0)
    sample = sample_of(table)
    weights = draw_patients(sample.patient.label, 20, 0)
    right = table.prediction == table.label
    rates = [right[table.patient == name].mean() for name in np.unique(table.patient)]
    expected = [np.mean(np.repeat(rates, row.astype(int))) for row in weights]
    found = patient_values(sample, weights)["patient_recognition_rate"]
    np.testing.assert_allclose(found, expected, atol=1e-12)


@pytest.mark.parametrize("chunk", [1, 450, 10**6])
def test_the_sample_itself_is_a_resample(random_table, monkeypatch, chunk):
    monkeypatch.setattr("densenet_flax.evaluation.metrics.binary._CHUNK", chunk)
    table = random_table(1)
    sample = sample_of(table)
    once = np.ones((3, len(sample.patient.label)))
    image, patient = image_values(sample, once), patient_values(sample, once)
    for name in METRICS:
        assert image[name] == pytest.approx([image_metrics(table)[name]] * 3, abs=1e-12)
    for name in PATIENT_METRICS:
        assert patient[name] == pytest.approx([patient_metrics(table)[name]] * 3, abs=1e-12)


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


def test_one_class_resamples_have_what_one_class_has(make):
    """Only patients of both classes can bring them about."""
    table = make(label=[0, 1, 1, 1], probability=[0.1, 0.9, 0.8, 0.2], patient=["a", "a", "b", "b"])
    sample = sample_of(table)
    weights = np.array([[0.0, 2.0], [1.0, 1.0]])
    found = image_values(sample, weights)
    assert found["accuracy"].tolist() == [0.5, 0.75] and found["sensitivity"][0] == 0.5
    exist = {name for name in METRICS if np.isfinite(found[name][0])}
    assert exist == {"accuracy", "sensitivity"}
    assert all(np.isfinite(found[name][1]) for name in METRICS)
    judged = patient_values(sample, weights)
    assert {name for name in judged if np.isfinite(judged[name]).all()} == {
        "patient_recognition_rate"
    }


def test_tables_lined_up_keep_their_thresholds(make):
    a = make(label=[0, 1], probability=[0.4, 0.6], patient=["p", "q"], threshold=0.5)
    b = make(label=[1, 0], probability=[0.4, 0.2], patient=["p", "q"], threshold=0.3)
    sample = sample_of(a, b)
    assert sample.image.predicted.tolist() == [0, 1, 1, 0]
    assert sample.patient.predicted.tolist() == [0, 1, 1, 0]
    assert sample.image.patient.tolist() == [0, 1, 2, 3]
    assert sample.patient.label.tolist() == [0, 1, 1, 0]
