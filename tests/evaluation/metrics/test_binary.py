"""Two classes: against scikit-learn on copied rows, and against the definitions."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from densenet_flax.evaluation.metrics import binary
from densenet_flax.evaluation.metrics.sample import Rows
from tests.evaluation.metrics import scikit_learn

# Few values, so that scores are tied; and any, down to the smallest.
SCORES = st.sampled_from([0.0, 0.25, 0.5, 1.0]) | st.floats(0, 1)
ROWS = st.lists(
    st.tuples(st.integers(0, 1), SCORES, st.integers(0, 1), st.integers(0, 3)),
    min_size=1,
    max_size=20,
)
WEIGHTS = st.lists(st.tuples(*[st.integers(0, 3)] * 4), min_size=1, max_size=3)


def as_rows(columns):
    label, probability, predicted, patient = map(np.array, zip(*columns, strict=True))
    return Rows(label, probability, predicted, patient, patients=4)


@settings(deadline=None, max_examples=60)
@given(ROWS, WEIGHTS)
@example([(0, 0.5, 0, 0), (1, 0.5, 1, 1)], [(1, 1, 0, 0)])  # all scores equal
@example([(1, 0.1, 0, 0), (1, 0.9, 1, 1)], [(2, 1, 0, 0)])  # one class
@example([(0, 0.1, 0, 0), (1, 0.9, 0, 1)], [(0, 3, 0, 0)])  # none predicted positive
def test_resamples_are_those_of_scikit_learn_on_copied_rows(columns, weights):
    rows = as_rows(columns)
    weights = np.array(weights, float)
    weights[:, rows.patient[0]] += 1  # no resample is empty
    metrics = binary.binary_metrics(rows, weights)
    assert tuple(metrics) == binary.METRICS
    for i, times in enumerate(weights):
        copied = scikit_learn.drawn_rows(rows.patient, times)
        expected = scikit_learn.binary(
            rows.label[copied], rows.probability[copied], rows.predicted[copied]
        )
        for name, values in metrics.items():
            np.testing.assert_allclose(values[i], expected[name], atol=1e-12, err_msg=name)


@given(ROWS)
def test_a_metric_is_nan_exactly_where_there_is_a_reason(columns):
    rows = as_rows(columns)
    values = binary.binary_metrics(rows, rows.once)
    confusion = rows.confusion(rows.once)[0].astype(int)
    reasons = binary.binary_undefined(confusion, ("benign", "malignant"), "images")
    assert {name for name in values if np.isnan(values[name][0])} == set(reasons)


@given(ROWS)
def test_the_confusion_matrix_is_that_of_scikit_learn(columns):
    rows = as_rows(columns)
    expected = sk.confusion_matrix(rows.label, rows.predicted, labels=[0, 1])
    assert np.array_equal(rows.confusion(rows.once)[0], expected)
    cells = binary.binary_confusion(rows.confusion(rows.once)[0].astype(int))
    assert [cells[name] for name in ("tn", "fp", "fn", "tp")] == expected.ravel().tolist()


@given(ROWS.filter(lambda rows: len({label for label, *_ in rows}) == 2))
def test_curves_are_those_of_scikit_learn(columns):
    rows = as_rows(columns)
    positive, score = rows.label == 1, rows.probability
    false, true, _ = sk.roc_curve(positive, score, drop_intermediate=False)
    np.testing.assert_allclose(binary.roc_curve(positive, score), (false, true), atol=1e-12)
    precision, recall, _ = sk.precision_recall_curve(positive, score)
    curve = binary.precision_recall_curve(positive, score)
    np.testing.assert_allclose(curve, (precision, recall), atol=1e-12)


@pytest.mark.parametrize("chunk", [1, 450, 10**6])
def test_resamples_are_handled_in_chunks(monkeypatch, chunk):
    random = np.random.default_rng(0)
    label, patient = random.integers(0, 2, 200), random.integers(0, 12, 200)
    rows = Rows(label, random.random(200).round(1), label, patient, patients=12)
    weights = random.integers(0, 3, (7, 12)).astype(float)
    whole = binary.binary_metrics(rows, weights)
    monkeypatch.setattr(binary, "_CHUNK", chunk)
    for name, values in binary.binary_metrics(rows, weights).items():
        np.testing.assert_array_equal(values, whole[name], err_msg=name)


def test_only_named_metrics_are_computed():
    rows = as_rows([(0, 0.1, 0, 0), (1, 0.9, 1, 1)])
    for names in (("roc_auc",), ("accuracy", "mcc")):
        assert tuple(binary.binary_metrics(rows, rows.once, names)) == names


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("threshold", [0.3, 0.5])
def test_against_the_definitions(random_table, seed, threshold):
    table = random_table(seed)
    y, p = table.label, table.probability
    called = p >= threshold
    tp, fp = np.sum(called & (y == 1)), np.sum(called & (y == 0))
    fn, tn = np.sum(~called & (y == 1)), np.sum(~called & (y == 0))
    pairs = p[y == 1][:, None] - p[y == 0][None, :]
    at_positives = [np.mean(y[p >= score]) for score in p[y == 1]]
    expected = {
        "accuracy": (tp + tn) / len(y),
        "balanced_accuracy": (tp / (tp + fn) + tn / (tn + fp)) / 2,
        "sensitivity": tp / (tp + fn),
        "specificity": tn / (tn + fp),
        "precision": tp / (tp + fp),
        "npv": tn / (tn + fn),
        "f1": 2 * tp / (2 * tp + fp + fn),
        "mcc": (tp * tn - fp * fn) / np.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)),
        "roc_auc": np.mean((pairs > 0) + 0.5 * (pairs == 0)),
        "pr_auc": np.mean(at_positives),
    }
    rows = Rows(y, p, called.astype(int), np.zeros(len(y), int), patients=1)
    metrics = {name: values[0] for name, values in binary.binary_metrics(rows, rows.once).items()}
    assert metrics == pytest.approx(expected, abs=1e-12)
