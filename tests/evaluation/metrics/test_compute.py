import json

import numpy as np
import pytest
from sklearn import metrics as sk

from densenet_flax.evaluation import evaluate
from densenet_flax.evaluation.metrics.binary import METRICS
from densenet_flax.evaluation.metrics.point_metrics import image_metrics, patient_metrics

ONLY_ONE_CLASS = {"balanced_accuracy", "precision", "f1", "mcc", "roc_auc", "pr_auc"}


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("threshold", [0.3, 0.5])
def test_against_the_definitions(random_table, seed, threshold):
    table = random_table(seed)
    object.__setattr__(table, "threshold", threshold)
    y, p = table.label, table.probability
    called = p >= threshold
    tp, fp = np.sum(called & (y == 1)), np.sum(called & (y == 0))
    fn, tn = np.sum(~called & (y == 1)), np.sum(~called & (y == 0))
    pairs = p[y == 1][:, None] - p[y == 0][None, :]
    expected = {
        "accuracy": (tp + tn) / len(y),
        "balanced_accuracy": (tp / (tp + fn) + tn / (tn + fp)) / 2,
        "sensitivity": tp / (tp + fn),
        "specificity": tn / (tn + fp),
        "precision": tp / (tp + fp),
        "f1": 2 * tp / (2 * tp + fp + fn),
        "mcc": (tp * tn - fp * fn) / np.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)),
        "roc_auc": np.mean((pairs > 0) + 0.5 * (pairs == 0)),
        "pr_auc": sk.average_precision_score(y, p),
    }
    result = image_metrics(table)
    assert result["undefined"] == {}
    assert result["confusion"] == {"tn": tn, "fp": fp, "fn": fn, "tp": tp}
    assert {name: result[name] for name in METRICS} == pytest.approx(expected, abs=1e-12)


def test_images_by_hand(hand):
    result = image_metrics(hand)
    assert result["n"] == 8
    assert result["confusion"] == {"tn": 2, "fp": 0, "fn": 3, "tp": 3}
    assert result["accuracy"] == 5 / 8
    assert result["sensitivity"] == 0.5 and result["specificity"] == 1
    assert result["balanced_accuracy"] == 0.75 and result["precision"] == 1
    assert result["f1"] == pytest.approx(2 / 3)
    # Of 12 pairs the negatives win at 0.4 over 0.2 and 0.3 and tie once.
    assert result["roc_auc"] == pytest.approx(9.5 / 12)


def test_patients_by_hand(hand):
    result = patient_metrics(hand)
    assert result["n"] == 3 and result["n_by_class"] == {"benign": 1, "malignant": 2}
    assert result["patient_recognition_rate"] == pytest.approx((1 + 1 / 4 + 1) / 3)
    # Means 0.25, 0.45 and 0.55: b is missed. The rate above and this differ, as they should.
    assert result["patient_accuracy_by_mean_probability"] == pytest.approx(2 / 3)
    assert result["sensitivity"] == 0.5 and result["specificity"] == 1
    assert result["roc_auc"] == 1
    assert result["confusion"] == {"tn": 1, "fp": 0, "fn": 1, "tp": 1}
    assert result["undefined"] == {}


@pytest.mark.parametrize(
    ("label", "gone", "reason"),
    [(0, "sensitivity", "no malignant images"), (1, "specificity", "no benign images")],
)
def test_one_class_only(make, label, gone, reason):
    result = image_metrics(make(label=[label] * 3, probability=[0.2, 0.8, 0.9]))
    assert result["undefined"] == dict.fromkeys(ONLY_ONE_CLASS | {gone}, reason)
    assert all(result[name] is None for name in result["undefined"])
    kept = "specificity" if gone == "sensitivity" else "sensitivity"
    assert result["accuracy"] == result[kept] == pytest.approx((1 / 3, 2 / 3)[label])


def test_nothing_called_positive(make):
    result = image_metrics(make(label=[0, 1], probability=[0.1, 0.2]))
    assert result["precision"] is None and result["mcc"] is None
    assert result["undefined"] == {
        "precision": "no images predicted malignant",
        "mcc": "all images predicted benign",
    }
    assert result["f1"] == 0 and result["sensitivity"] == 0 and result["roc_auc"] == 1


def test_everything_called_positive(make):
    result = image_metrics(make(label=[0, 1], probability=[0.9, 0.8]))
    assert result["undefined"] == {"mcc": "all images predicted malignant"}
    assert result["precision"] == 0.5


def test_a_patient_of_both_classes(make):
    table = make(label=[0, 1, 1], probability=[0.1, 0.9, 0.2], patient=["a", "a", "b"])
    result = patient_metrics(table)
    assert result["patient_recognition_rate"] == 0.5
    assert result["n_by_class"] == {"benign": 0, "malignant": 1, "both": 1}
    assert result["roc_auc"] is None and result["sensitivity"] is None
    assert result["undefined"]["roc_auc"] == "1 of 2 patients have images of both classes"
    rows = {row["patient"]: row["class"] for row in evaluate(table)["by_patient"]}
    assert rows == {"a": "both", "b": "malignant"}


def test_patients_of_one_class(make):
    result = patient_metrics(make(label=[1, 1], probability=[0.9, 0.1], patient=["a", "b"]))
    assert result["undefined"]["specificity"] == "no benign patients"
    assert "accuracy" not in result
    assert result["patient_accuracy_by_mean_probability"] == 0.5


def test_tables_by_hand(hand):
    result = evaluate(hand)
    forty, hundred = result["by_magnification"]
    assert (forty["magnification"], forty["n"], forty["patients"]) == (40, 4, 3)
    assert (forty["accuracy"], hundred["accuracy"]) == (0.75, 0.5)
    assert forty["patient_recognition_rate"] == pytest.approx((1 + 0.5 + 1) / 3)
    subtypes = result["by_subtype"]
    assert [row["subtype"] for row in subtypes] == [
        "adenosis",
        "ductal_carcinoma",
        "papillary_carcinoma",
    ]
    assert [row["class"] for row in subtypes] == ["benign", "malignant", "malignant"]
    assert [(row["correct"], row["n"]) for row in subtypes] == [(2, 2), (1, 4), (2, 2)]
    b = result["by_patient"][1]
    assert b == {
        "patient": "b",
        "class": "malignant",
        "subtypes": ["ductal_carcinoma"],
        "n": 4,
        "correct": 1,
        "accuracy": 0.25,
        "mean_probability": pytest.approx(0.45),
        "predicted_by_mean_probability": "benign",
    }


@pytest.mark.parametrize("seed", range(3))
def test_the_parts_add_up(random_table, seed):
    result = evaluate(random_table(seed))
    right = result["image"]["confusion"]["tn"] + result["image"]["confusion"]["tp"]
    for rows in (result["by_subtype"], result["by_patient"]):
        assert sum(row["n"] for row in rows) == 200
        assert sum(row["correct"] for row in rows) == right
    rates = [row["accuracy"] for row in result["by_patient"]]
    assert result["patient"]["patient_recognition_rate"] == pytest.approx(np.mean(rates))


def test_unknown_subtypes_are_left_out(make):
    assert evaluate(make(label=[0, 1], probability=[0.1, 0.9]))["by_subtype"] == []


def test_evaluate_is_json(random_table, make):
    for table in (random_table(0), make(label=[1], probability=[0.3])):
        result = evaluate(table)
        assert json.loads(json.dumps(result, allow_nan=False)) == result
