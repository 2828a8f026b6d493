"""More than two classes: against scikit-learn on copied rows."""

import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from densenet_flax.evaluation.metrics import binary, multiclass
from densenet_flax.evaluation.metrics.sample import Rows
from tests.evaluation.metrics import scikit_learn

K = 3
# Small integers, so that probabilities are tied within a row and between rows.
SCORES = st.tuples(*[st.integers(0, 3)] * K).filter(any)
ROWS = st.lists(
    st.tuples(st.integers(0, K - 1), SCORES, st.integers(0, 3)), min_size=1, max_size=20
)
WEIGHTS = st.lists(st.tuples(*[st.integers(0, 3)] * 4), min_size=1, max_size=2)


def as_rows(columns):
    label, scores, patient = map(np.array, zip(*columns, strict=True))
    probability = scores / scores.sum(axis=1, keepdims=True)
    return Rows(label, probability, probability.argmax(axis=1), patient, patients=4)


@settings(deadline=None, max_examples=30)
@given(ROWS, WEIGHTS)
@example([(k, (1, 1, 1), k) for k in range(K)], [(1, 1, 1, 0)])  # all equally likely
@example([(0, (3, 1, 0), 0), (1, (1, 3, 0), 1)], [(1, 2, 0, 0)])  # a class is absent
@example([(2, (0, 1, 3), 0), (2, (3, 1, 0), 1)], [(1, 1, 0, 0)])  # one class only
def test_resamples_are_those_of_scikit_learn_on_copied_rows(columns, weights):
    rows = as_rows(columns)
    weights = np.array(weights, float)
    weights[:, rows.patient[0]] += 1  # no resample is empty
    metrics = multiclass.multiclass_metrics(rows, weights)
    assert set(metrics) == {*multiclass.METRICS, *multiclass.PER_CLASS}
    for i, times in enumerate(weights):
        copied = scikit_learn.drawn_rows(rows.patient, times)
        table = rows.label[copied], rows.probability[copied], rows.predicted[copied]
        for name, value in scikit_learn.multiclass(*table).items():
            np.testing.assert_allclose(metrics[name][i], value, atol=1e-12, err_msg=name)
        for k in range(K):
            for name, value in scikit_learn.one_class(*table, k).items():
                np.testing.assert_allclose(metrics[name][i, k], value, atol=1e-12, err_msg=name)


@given(ROWS)
def test_a_metric_is_nan_exactly_where_there_is_a_reason(columns):
    rows = as_rows(columns)
    values = multiclass.multiclass_metrics(rows, rows.once)
    confusion = rows.confusion(rows.once)[0].astype(int)
    expected = sk.confusion_matrix(rows.label, rows.predicted, labels=range(K))
    assert np.array_equal(confusion, expected)
    reasons = multiclass.multiclass_undefined(confusion, "abc", "images")
    assert {name for name in multiclass.METRICS if np.isnan(values[name][0])} == set(reasons)
    for k in range(K):
        reasons = binary.binary_undefined(
            multiclass.one_against_rest(confusion, k), ("other", "k"), "images"
        )
        for name, binary_name in multiclass.PER_CLASS.items():
            assert np.isnan(values[name][0, k]) == (binary_name in reasons)


def test_without_the_macro_auc_no_areas_are_computed():
    rows = as_rows([(k, (1, 2, 3), k) for k in range(K)])
    metrics = multiclass.multiclass_metrics(rows, rows.once, ("accuracy", "kappa"))
    assert set(metrics) == {"accuracy", "kappa", "recall", "precision", "f1"}


def test_top2_counts_the_first_of_equally_likely_classes():
    probability = np.full((3, 3), 1 / 3)
    assert multiclass.in_top_two(np.arange(3), probability).tolist() == [True, True, False]
