"""What a report of more than two classes consists of and says."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest

from densenet_flax.evaluation import verdict, write_report


@pytest.fixture
def test_and_validation(several):
    return several(0), several(1, tag="v")


def test_files_page_and_card(test_and_validation, tmp_path):
    table, validation = test_and_validation
    info = {"split": {"patient_disjoint": True}}
    metrics = write_report(tmp_path, table, [], info, validation=validation, resamples=200)
    figures = ("confusion_matrix", "confusion_matrix_patients", "reliability", "roc")
    assert {path.name for path in tmp_path.iterdir()} == {
        "metrics.json",
        "predictions.csv",
        "report.html",
        "MODEL_CARD.md",
        *(f"{name}.{kind}" for name in figures for kind in ("png", "pdf")),
    }
    assert json.loads((tmp_path / "metrics.json").read_text()) == metrics
    assert metrics["threshold"] is None and metrics["positive_class"] is None
    page = (tmp_path / "report.html").read_text()
    assert page.count("<img") == len(figures)
    text = re.sub("<[^>]*>", " ", page)
    accuracy = metrics["image"]["accuracy"]
    assert f"; accuracy {accuracy:.2f} over 4 classes (95% interval " in verdict(metrics)
    assert "never seen in training" in text and "The likeliest of 4 classes is predicted" in text
    assert "Few patients: 4 adenosis, 4 fibroadenoma, 3 ductal carcinoma and 3 lobular" in text
    for expected in ("Macro F1", "kappa", "By class", "Top-2", "log-loss", "200 resamples"):
        assert expected in text
    for binary_only in ("hreshold", "P(fibroadenoma)", "positive", "sensitivity", "one class only"):
        assert binary_only not in text, binary_only
    assert not re.search(r"\b(nan|none)\b", text.lower())
    card = (tmp_path / "MODEL_CARD.md").read_text()
    assert "The likeliest class is predicted." in card and "By class, each against the rest" in card
    assert "P of 4 classes; threshold: none, the likeliest class is predicted" in card
    assert "| Macro ROC-AUC |" in card


def test_figures_of_another_number_of_classes_are_removed(
    test_and_validation, hand, tmp_path, quick_figures
):
    table, _ = test_and_validation
    write_report(tmp_path, table, resamples=20)
    write_report(tmp_path, hand, resamples=20)
    assert not (tmp_path / "confusion_matrix_patients.png").exists()
    write_report(tmp_path, table, resamples=20)
    assert not (tmp_path / "patients.png").exists()


def test_a_missing_class_is_warned_of_and_counts_0_images(
    test_and_validation, tmp_path, quick_figures
):
    table, _ = test_and_validation
    metrics = write_report(tmp_path, table.select(table.label != 3), resamples=50)
    assert any("no lobular_carcinoma images here" in line for line in metrics["warnings"])
    row = metrics["by_class"][3]
    assert row["n"] == row["patients"] == 0 < row["called"]
    card = (tmp_path / "MODEL_CARD.md").read_text()
    assert f"| lobular carcinoma | 0 | {row['called']} | 0 | undefined |" in card


def test_accuracy_no_better_than_a_constant_is_warned_of(
    test_and_validation, tmp_path, quick_figures
):
    table, _ = test_and_validation
    constant = np.tile([0.4, 0.2, 0.2, 0.2], (len(table), 1))
    metrics = write_report(tmp_path, replace(table, probability=constant), resamples=50)
    assert any("is no better than predicting" in line for line in metrics["warnings"])
