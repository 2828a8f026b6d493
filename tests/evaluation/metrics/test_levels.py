from dataclasses import replace

import numpy as np
import pytest

from densenet_flax.evaluation import evaluate
from densenet_flax.evaluation.metrics.levels import level_metrics
from densenet_flax.evaluation.metrics.sample import sample_of
from tests.evaluation.metrics import scikit_learn

ONLY_ONE_CLASS = {"balanced_accuracy", "precision", "npv", "f1", "mcc", "roc_auc", "pr_auc"}


def image_metrics(table):
    return level_metrics(sample_of(table), table.class_names)["image"]


def patient_metrics(table):
    return level_metrics(sample_of(table), table.class_names)["patient"]


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
def test_metrics_that_need_two_classes_do_not_exist_for_one(make, label, gone, reason):
    result = image_metrics(make(label=[label] * 3, probability=[0.2, 0.8, 0.9]))
    assert result["undefined"] == dict.fromkeys(ONLY_ONE_CLASS | {gone}, reason)
    assert all(result[name] is None for name in result["undefined"])
    kept = "specificity" if gone == "sensitivity" else "sensitivity"
    assert result["accuracy"] == result[kept] == pytest.approx((1 / 3, 2 / 3)[label])


def test_nothing_predicted_positive(make):
    result = image_metrics(make(label=[0, 1], probability=[0.1, 0.2]))
    assert result["precision"] is None and result["mcc"] is None
    assert result["undefined"] == {
        "precision": "no images predicted malignant",
        "mcc": "all images predicted benign",
    }
    assert result["f1"] == 0 and result["sensitivity"] == 0 and result["roc_auc"] == 1


def test_everything_predicted_positive(make):
    result = image_metrics(make(label=[0, 1], probability=[0.9, 0.8]))
    assert result["undefined"] == {
        "npv": "no images predicted benign",
        "mcc": "all images predicted malignant",
    }
    assert result["precision"] == 0.5


def test_a_patient_with_images_of_both_classes(make):
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


@pytest.mark.parametrize("seed", range(2))
def test_four_classes_against_scikit_learn(several, seed):
    table = several(seed)
    columns = table.label, table.probability, table.prediction
    metrics = evaluate(table)
    for name, value in scikit_learn.multiclass(*columns).items():
        assert metrics["image"][name] == pytest.approx(value, abs=1e-12), name
    for k, row in enumerate(metrics["by_class"]):
        assert row["class"] == table.class_names[k] and row["undefined"] == {}
        assert row["n"] == np.sum(table.label == k)
        assert row["called"] == np.sum(table.prediction == k)
        assert row["patients"] == len(np.unique(table.patient[table.label == k]))
        for name, value in scikit_learn.one_class(*columns, k).items():
            assert row[name] == pytest.approx(value, abs=1e-12), name


def test_patients_of_four_classes_are_decided_by_their_mean(several):
    table = several(0)
    names = np.unique(table.patient)
    mean = np.array([table.probability[table.patient == name].mean(axis=0) for name in names])
    truth = np.array([table.label[table.patient == name][0] for name in names])
    metrics = patient_metrics(table)
    expected = scikit_learn.multiclass(truth, mean, mean.argmax(axis=1))
    assert metrics["patient_accuracy_by_mean_probability"] == pytest.approx(
        expected.pop("accuracy")
    )
    for name, value in expected.items():
        assert metrics[name] == pytest.approx(value, abs=1e-12), name
    right = table.prediction == table.label
    rates = [right[table.patient == name].mean() for name in names]
    assert metrics["patient_recognition_rate"] == pytest.approx(np.mean(rates))


def test_metrics_of_four_classes_that_do_not_exist_have_a_reason(several):
    table = several(0)
    without = image_metrics(table.select(table.label != 2))
    for name in ("balanced_accuracy", "macro_f1", "macro_roc_auc"):
        assert without[name] is None
        assert without["undefined"][name] == "no ductal_carcinoma images"
    assert all(without[name] is not None for name in ("accuracy", "mcc", "kappa", "top2_accuracy"))
    alone = image_metrics(table.select(table.label == 1))
    assert alone["mcc"] is None and alone["undefined"]["kappa"] == "all images are fibroadenoma"
    sure = np.tile([0.7, 0.1, 0.1, 0.1], (len(table), 1))
    same = image_metrics(replace(table, probability=sure))
    assert same["mcc"] is None and same["kappa"] == 0
    rows = evaluate(replace(table, probability=sure))["by_class"]
    assert rows[1]["precision"] is None
    assert rows[1]["undefined"]["precision"] == "no images predicted fibroadenoma"


def test_a_patient_with_images_of_several_classes(several):
    table = several(0)
    mixed = replace(table, patient=np.where(table.patient == "p1", "p0", table.patient))
    metrics = patient_metrics(mixed)
    assert metrics["n_by_class"]["several"] == 1 and metrics["kappa"] is None
    assert metrics["undefined"]["mcc"] == "1 of 13 patients have images of several classes"
    assert metrics["patient_recognition_rate"] > 0
    assert {row["class"] for row in evaluate(mixed)["by_patient"]} >= {"several"}
