import numpy as np
import pytest

from densenet_flax.evaluation import evaluate


def test_groups_by_hand(hand):
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
def test_groups_add_up_to_the_whole(random_table, seed):
    result = evaluate(random_table(seed))
    right = result["image"]["confusion"]["tn"] + result["image"]["confusion"]["tp"]
    for rows in (result["by_subtype"], result["by_patient"]):
        assert sum(row["n"] for row in rows) == 200
        assert sum(row["correct"] for row in rows) == right
    rates = [row["accuracy"] for row in result["by_patient"]]
    assert result["patient"]["patient_recognition_rate"] == pytest.approx(np.mean(rates))


def test_unknown_subtypes_are_left_out(make):
    assert evaluate(make(label=[0, 1], probability=[0.1, 0.9]))["by_subtype"] == []


def test_subtypes_that_are_the_classes_are_left_out(several):
    assert evaluate(several(0))["by_subtype"] == []


@pytest.mark.parametrize("seed", range(2))
def test_the_mean_probability_of_four_classes_is_that_of_the_true_class(several, seed):
    table = several(seed)
    for row in evaluate(table)["by_patient"]:
        own = table.select(table.patient == row["patient"])
        true = own.probability[np.arange(len(own)), own.label]
        assert row["mean_probability"] == pytest.approx(true.mean())
