import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import brier_score_loss, log_loss

from densenet_flax.evaluation.metrics.calibration import calibration_metrics


@given(st.lists(st.tuples(st.integers(0, 1), st.floats(0.001, 0.999)), min_size=1))
def test_scores_of_two_classes_are_those_of_scikit_learn(rows):
    label, p = map(np.array, zip(*rows, strict=True))
    metrics = calibration_metrics(label, p)
    assert metrics["brier"] == pytest.approx(brier_score_loss(label, p, labels=[0, 1]))
    assert metrics["nll"] == pytest.approx(log_loss(label, p, labels=[0, 1]))


@given(st.lists(st.tuples(st.integers(0, 2), *[st.floats(0.001, 1)] * 3), min_size=1))
def test_scores_of_three_classes_are_those_of_scikit_learn(rows):
    label, *scores = map(np.array, zip(*rows, strict=True))
    p = np.stack(scores, axis=1) / np.sum(scores, axis=0)[:, None]
    metrics = calibration_metrics(label, p)
    expected = np.mean(np.sum((p - np.eye(3)[label]) ** 2, axis=1))
    assert metrics["brier"] == pytest.approx(expected)
    assert metrics["nll"] == pytest.approx(log_loss(label, p, labels=[0, 1, 2]))
    assert set(metrics) == {"n", "brier", "nll", "ece_top_label", "bins_top_label"}


def test_ece_by_hand():
    p = np.array([0.1, 0.2, 0.6, 0.9, 1.0])
    label = np.array([0, 1, 0, 1, 1])
    metrics = calibration_metrics(label, p, bins=2)
    low, high = metrics["bins"]
    assert (low["count"], high["count"]) == (2, 3)
    assert low["confidence"] == pytest.approx(0.15) and low["accuracy"] == 0.5
    assert high["confidence"] == pytest.approx(2.5 / 3) and high["accuracy"] == pytest.approx(2 / 3)
    assert metrics["ece"] == pytest.approx((2 * 0.35 + 3 * (2.5 - 2) / 3) / 5)
    # Likelier class: 0.9, 0.8, 0.6, 0.9, 1.0, of which the second and third are wrong.
    assert metrics["ece_top_label"] == pytest.approx(abs(4.2 / 5 - 3 / 5))
    assert metrics["bins_top_label"][0]["count"] == 0
    assert metrics["bins_top_label"][0]["confidence"] is None


def test_the_top_label_is_the_likelier_class_whatever_the_threshold():
    metrics = calibration_metrics(np.array([1, 0]), np.array([0.55, 0.45]))
    assert metrics["ece_top_label"] == pytest.approx(1 - 0.55)


def test_bins_hold_every_probability_once():
    edges = np.linspace(0, 1, 16)
    p = np.concatenate([edges, np.nextafter(edges[1:], 0), [0.5]])
    metrics = calibration_metrics(np.zeros(len(p), int), p)
    assert sum(row["count"] for row in metrics["bins"]) == len(p)
    assert [row["lower_edge"] for row in metrics["bins"]] == edges[:-1].tolist()
    assert metrics["bins"][-1]["upper_edge"] == 1
    for row in metrics["bins"]:
        inside = (p >= row["lower_edge"]) & ((p < row["upper_edge"]) | (row["upper_edge"] == 1))
        assert row["count"] == inside.sum()


def test_several_classes_have_the_top_label_error_alone(several):
    table = several(0, n=4000, patients=200)
    metrics = calibration_metrics(table.label, table.probability)
    top, right = table.probability.max(1), table.prediction == table.label
    index = np.minimum((top * 15).astype(int), 14)
    gaps = [abs(top[index == b].sum() - right[index == b].sum()) for b in range(15)]
    assert metrics["ece_top_label"] == pytest.approx(sum(gaps) / len(table))
    assert "ece" not in metrics
