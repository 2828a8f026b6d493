"""What the figures show; their content is read from matplotlib's objects."""

import numpy as np
import pytest

from densenet_flax.evaluation import OperatingPoint
from densenet_flax.evaluation.metrics.bootstrap import Bootstrap
from densenet_flax.evaluation.metrics.compute import assess
from densenet_flax.evaluation.report import figures, multiclass_figures, plotting

HISTORY = [
    {
        "stage": stage,
        "global_epoch": epoch,
        "train_loss": 1 / (epoch + 1),
        "train_accuracy": 0.5 + epoch / 10,
        "validation_loss": 1.2 / (epoch + 1),
        "validation_accuracy": 0.4 + epoch / 10,
    }
    for epoch, stage in enumerate(["head", "head", "fine_tune"])
]


def test_curves_show_both_subsets_and_every_stage():
    figure = figures.training_curves(HISTORY)
    loss, accuracy = figure.axes
    lines = {line.get_label(): line for line in loss.lines}
    assert lines["train"].get_xydata()[:, 0].tolist() == [1, 2, 3]
    assert lines["validation"].get_ydata().tolist() == [1.2, 0.6, pytest.approx(0.4)]
    assert [text.get_text() for text in loss.texts] == ["head", "fine_tune"]
    for axes in (loss, accuracy):  # the boundary, between epochs 2 and 3
        assert any(list(line.get_xdata()) == [2.5, 2.5] for line in axes.lines)


def test_curves_have_gaps_where_values_are_missing():
    rows = [{**HISTORY[0], "validation_loss": None}, {**HISTORY[1], "train_loss": None}]
    loss = figures.training_curves(rows).axes[0]
    values = {line.get_label(): line.get_ydata() for line in loss.lines}
    assert np.isnan(values["train"]).tolist() == [False, True]
    assert np.isnan(values["validation"]).tolist() == [True, False]
    plotting.png(figures.training_curves([{"stage": "head"}]))


def test_names_with_dollars_are_drawn_as_text(make):
    # Broken TeX would raise while drawing.
    plotting.png(figures.training_curves([{**HISTORY[0], "stage": "$\\frac$"}]))
    table = make(
        label=[0, 1], probability=[0.1, 0.9], patient=["$\\a$", "b"], class_names=("$\\b$", "c")
    )
    curves = (figures.roc, figures.precision_recall)
    for draw in (figures.patient_dots, figures.confusion_matrix, *curves):
        plotting.png(draw(table))


def test_roc_has_the_area_of_images_and_of_patients(hand, make):
    figure = figures.roc(hand)
    axes = figure.axes[0]
    (legend,) = figure.legends  # outside of the axes, so that it hides no curve
    labels = [text.get_text() for text in legend.get_texts()]
    areas = {line.get_label(): np.trapezoid(*line.get_data()[::-1]) for line in axes.lines}
    assert areas["8 images: AUC 0.792"] == pytest.approx(9.5 / 12)
    assert areas["3 patients: AUC 1.000"] == pytest.approx(1)
    assert labels[:2] == ["8 images: AUC 0.792", "3 patients: AUC 1.000"]
    (one,) = figures.roc(make(label=[1], probability=[0.9])).legends
    assert [text.get_text() for text in one.get_texts()] == [
        "images: no ROC, no benign images",
        "patients: no ROC, no benign patients",
    ]


def test_confusion_matrix_shows_counts_and_row_percentages(hand):
    texts = [text.get_text() for text in figures.confusion_matrix(hand).axes[0].texts]
    assert texts == ["2", "100.0%", "0", "0.0%", "3", "50.0%", "3", "50.0%"]
    texts = [text.get_text() for text in figures.confusion_matrix(hand).axes[1].texts]
    assert texts == ["1", "100.0%", "0", "0.0%", "1", "50.0%", "1", "50.0%"]


def test_without_a_class_per_patient_only_images_have_a_confusion_matrix(make):
    table = make(label=[0, 1], probability=[0.1, 0.9])
    assert len(figures.confusion_matrix(table).axes) == 1


def test_precision_recall_has_the_area_of_images_and_of_patients(hand):
    axes = figures.precision_recall(hand).axes[0]
    for line in axes.lines:
        if "AP" in str(line.get_label()):
            recall, precision = line.get_data()
            area = -np.sum(np.diff(recall) * precision[:-1])
            assert line.get_drawstyle() == "steps-post"
            assert line.get_label().endswith(f"AP {area:.3f}")


def test_reliability_shows_every_occupied_bin(random_table):
    point = OperatingPoint(temperature=2.0)
    metrics = assess(point.apply(random_table(0)), operating_point=point, bootstrap=Bootstrap(50))
    figure = figures.reliability(metrics["calibration"], "malignant")
    lines = {line.get_label(): line for line in figure.axes[0].lines}
    for state, name in (("before", "uncalibrated"), ("after", "calibrated")):
        scores = metrics["calibration"]["test"][state]
        line = lines[f"{name}: ECE {scores['ece']:.3f}"]
        full = [row for row in scores["bins"] if row["count"]]
        assert list(line.get_xdata()) == [row["confidence"] for row in full]
        assert list(line.get_ydata()) == [row["accuracy"] for row in full]
    alone = assess(random_table(0), bootstrap=Bootstrap(50))["calibration"]
    labels = [line.get_label() for line in figures.reliability(alone, "x").axes[0].lines]
    assert not any(label.startswith("calibrated") for label in labels)


@pytest.mark.parametrize("encode", [plotting.png, plotting.pdf])
def test_the_same_figure_is_the_same_bytes(hand, encode):
    assert encode(figures.roc(hand)) == encode(figures.roc(hand))


def test_patients_are_marked_where_their_mean_is_wrong(hand):
    figure = figures.patient_dots(hand)
    labels = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert labels == ["a", "× b", "c"]


def test_confusion_matrix_of_any_number_of_classes():
    for classes in (3, 8, 30):
        counts = np.eye(classes, dtype=int) * 7
        counts[0, 1] = 3
        names = [f"a_rather_long_name_of_class_${i}$" for i in range(classes)]
        figure = multiclass_figures.confusion_matrix(counts, names, "images")
        texts = [text.get_text() for text in figure.axes[0].texts]
        assert texts.count("7") == classes and texts.count("3") == 1
        assert ("70%" in texts and "30%" in texts) == (classes <= 12)
        plotting.png(figure, dpi=50)
