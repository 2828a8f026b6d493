import base64
import json
import math
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from densenet_flax.common.errors import InputError
from densenet_flax.evaluation import (
    OperatingPoint,
    choose_operating_point,
    evaluate,
    read_csv,
    verdict,
    write_report,
)
from densenet_flax.evaluation.metrics.bootstrap import Bootstrap
from densenet_flax.evaluation.metrics.compute import assess
from densenet_flax.evaluation.report import figures
from densenet_flax.evaluation.report.plotting import (
    png as draw_png,
)  # the true one, see quick_figures
from densenet_flax.evaluation.report.views import Measured, format_interval, format_number

PNG = b"\x89PNG\r\n\x1a\n"
FIGURES = ("curves", "confusion_matrix", "roc", "precision_recall", "reliability", "patients")
NAMES = {
    "metrics.json",
    "predictions.csv",
    "report.html",
    "MODEL_CARD.md",
    *(f"{name}.{kind}" for name in FIGURES for kind in ("png", "pdf")),
}
NO_CURVES = {"curves.png", "curves.pdf"}
HISTORY = [
    {
        "stage": stage,
        "epoch": epoch,
        "global_epoch": total,
        "train_loss": 1 / (total + 1),
        "train_accuracy": 0.5 + total / 10,
        "validation_loss": 1.2 / (total + 1),
        "validation_accuracy": 0.4 + total / 10,
        "seconds": 1.0,
        "images_per_second": 10.0,
        "learning_rate": 1e-3,
    }
    for total, (stage, epoch) in enumerate([("head", 0), ("head", 1), ("fine_tune", 0)])
]
INFO = {
    "title": "a title",
    "warnings": ["a warning"],
    "split": {
        "policy": "hold-out",
        "hash": "9f86d081",
        "patient_disjoint": True,
        "counts": {"train": {"benign": {"images": 1234, "patients": 16}}},
    },
    "config": {"optimizer": {"learning_rate": 1e-3}, "nothing": float("nan")},
    "versions": {"jax": "0.10.0"},
    "weights": "random",
    "device": "cpu",
    "seconds": {"train": 61.84},
    "stages": ["head: 2 epochs"],
}


@pytest.fixture(autouse=True)
def quick(quick_figures):
    """For every test of this file."""


class Page(HTMLParser):
    """Collects every tag, attribute and piece of text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.sources, self.text = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.sources += [v for k, v in attrs if k in ("src", "href", "srcset", "data", "action")]

    def handle_data(self, data):
        self.text += data


def read(directory):
    return Page((directory / "report.html").read_text())


def snapshot(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_everything_is_written(hand, tmp_path, monkeypatch):
    monkeypatch.undo()
    result = write_report(tmp_path / "deep" / "report", hand, HISTORY, INFO)
    files = snapshot(tmp_path / "deep" / "report")
    assert set(files) == NAMES
    assert json.loads(files["metrics.json"]) == result
    assert {name: result[name] for name in evaluate(hand)} == evaluate(hand)
    again = read_csv(tmp_path / "deep" / "report" / "predictions.csv")
    assert np.array_equal(again.probability, hand.probability)
    assert all(data.startswith(PNG) for name, data in files.items() if name.endswith("png"))
    pdfs = [data for name, data in files.items() if name.endswith("pdf")]
    # Letters stay letters (TrueType), and nothing changes from one day to the next.
    assert all(data.startswith(b"%PDF-") and b"/CIDFontType2" in data for data in pdfs)
    assert all(b"CreationDate" not in data for data in pdfs)


def test_the_page_says_it_all(hand, tmp_path):
    write_report(tmp_path, hand, HISTORY, INFO)
    text = read(tmp_path).text
    for expected in (
        "Accuracy 0.62 on 8 images of 3 patients never seen in training",
        "a title",
        "a warning",
        "Only 1 benign patient and 2 malignant patients",
        "0.750",  # patient recognition rate
        "ductal carcinoma",
        "100×",
        "1234",
        "9f86d081",
        "optimizer.learning_rate",
        "0.10.0",
        "61.8",
        "head: 2 epochs",
        "Research use only, not for diagnosis.",
    ):
        assert expected in text, expected
    # Most confident mistake first: image3 is malignant with P = 0.2.
    assert 0 < text.index("image3.png") < text.index("image4.png") < text.index("image5.png")
    assert "image2.png" not in text


def test_the_page_needs_nothing_from_outside(hand, tmp_path):
    write_report(tmp_path, hand, HISTORY, INFO)
    html = (tmp_path / "report.html").read_text()
    assert "http://" not in html and "https://" not in html and "url(" not in html
    page = Page(html)
    assert not {"script", "link", "iframe"} & set(page.tags)
    assert len(page.sources) == len(FIGURES)
    for source in page.sources:
        head, data = source.split(",", 1)
        assert head == "data:image/png;base64"
        assert base64.b64decode(data) in snapshot(tmp_path).values()


def test_names_from_outside_are_escaped(make, tmp_path):
    evil = "<script>alert('x')</script>\"'&$\\frac$\udcff"
    table = make(
        file=[evil, "b"],
        patient=[evil, evil + "2"],
        subtype=[evil, ""],
        label=[1, 0],
        probability=[0.1, 0.2],
        class_names=("<i>$a", "<b>$b$"),
    )
    info = {
        "title": evil,
        "warnings": [evil],
        "split": {evil: evil, "counts": {evil: {evil: {"images": 1}}}},
        "config": {evil: {evil: evil}},
        "versions": {evil: evil},
        "weights": evil,
        "device": evil,
        "seconds": {evil: 1.0},
        "stages": [evil],
    }
    write_report(tmp_path, table, [{**HISTORY[0], "stage": evil}], info)
    page = read(tmp_path)
    assert "script" not in page.tags and "i" not in page.tags
    assert page.tags.count("b") == 6  # the key figures
    assert page.text.count("<script>alert('x')</script>\"'&$\\frac$") >= 14


def test_bare_minimum(make, tmp_path):
    result = write_report(tmp_path, make(label=[1], probability=[0.9]))
    assert set(snapshot(tmp_path)) == NAMES - NO_CURVES
    text = read(tmp_path).text
    assert "there are no curves" in text and "never seen in training" not in text
    assert "There are no benign images here" in text
    assert "images: no benign images, so no Balanced accuracy, Specificity" in text
    assert result["run"] == {} and not re.search(r"\b(nan|none)\b", text.lower())


def test_only_a_disjoint_split_is_called_unseen(hand, tmp_path):
    leaky = write_report(tmp_path, hand, [], {"split": {"patient_disjoint": False}})
    assert verdict(leaky) == "Accuracy 0.62 on 8 images of 3 patients"
    assert any("not patient-disjoint" in line for line in leaky["warnings"])
    silent = write_report(tmp_path, hand, [], {"split": {"policy": "hold-out"}})
    assert verdict(silent) == "Accuracy 0.62 on 8 images of 3 patients"
    assert not any("patient-disjoint" in line for line in silent["warnings"])


def test_no_better_than_guessing_is_said(make, tmp_path):
    result = write_report(tmp_path, make(label=[0, 1, 1], probability=[0.9, 0.8, 0.7]))
    assert (
        "Accuracy 0.667 is no better than predicting malignant for every image (0.667)."
        in (result["warnings"])
    )
    result = write_report(tmp_path, make(label=[0, 1, 1], probability=[0.1, 0.8, 0.7]))
    assert not any("no better" in line for line in result["warnings"])


@pytest.mark.parametrize("where", ["roc", "patient_dots", "confusion_matrix"])
def test_an_error_while_drawing_keeps_the_old_report(hand, tmp_path, monkeypatch, where):
    write_report(tmp_path, hand, HISTORY, INFO)
    old = snapshot(tmp_path)
    monkeypatch.setattr(figures, where, lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_report(tmp_path, hand, HISTORY[:1], {})
    assert snapshot(tmp_path) == old


def test_an_error_while_writing_keeps_the_old_report(hand, tmp_path, monkeypatch):
    write_report(tmp_path, hand, HISTORY, INFO)
    old = snapshot(tmp_path)
    write_bytes = Path.write_bytes

    def full_disk(path, data):
        if "report.html" in path.name:
            write_bytes(path, data[: len(data) // 2])
            raise OSError(28, "No space left on device")
        return write_bytes(path, data)

    monkeypatch.setattr(Path, "write_bytes", full_disk)
    with pytest.raises(InputError, match="No space left"):
        write_report(tmp_path, hand, HISTORY[:1], {})
    assert snapshot(tmp_path) == old


def test_a_new_report_leaves_no_old_curves_and_no_rubbish(hand, tmp_path):
    (tmp_path / "mine.txt").write_text("kept")
    write_report(tmp_path, hand, HISTORY, INFO)
    write_report(tmp_path, hand, [], INFO)
    assert set(snapshot(tmp_path)) == NAMES - NO_CURVES | {"mine.txt"}


def test_info_of_any_type_is_json(hand, tmp_path):
    class Dict:  # like ml_collections.ConfigDict: no Mapping, but has items
        def items(self):
            return [("a", np.float32(0.5)), ("b", (1, {2}, Path("x")))]

    info = {"config": Dict(), "seconds": {"train": math.inf}, "split": None, "warnings": None}
    result = write_report(tmp_path, hand, [], info)
    assert result["run"]["config"] == {"a": 0.5, "b": [1, [2], "x"]}
    assert result["run"]["seconds"] == {"train": None}


def test_curves_show_both_sides_and_every_stage():
    figure = figures.training_curves(HISTORY)
    assert isinstance(figure, Figure)
    loss, accuracy = figure.axes
    lines = {line.get_label(): line for line in loss.lines}
    assert lines["train"].get_xydata()[:, 0].tolist() == [1, 2, 3]
    assert lines["validation"].get_ydata().tolist() == [1.2, 0.6, pytest.approx(0.4)]
    assert [text.get_text() for text in loss.texts] == ["head", "fine_tune"]
    for axes in (loss, accuracy):  # the boundary, between epochs 2 and 3
        assert any(list(line.get_xdata()) == [2.5, 2.5] for line in axes.lines)


def test_curves_bear_gaps():
    rows = [{**HISTORY[0], "validation_loss": None}, {**HISTORY[1], "train_loss": None}]
    loss = figures.training_curves(rows).axes[0]
    values = {line.get_label(): line.get_ydata() for line in loss.lines}
    assert np.isnan(values["train"]).tolist() == [False, True]
    assert np.isnan(values["validation"]).tolist() == [True, False]
    draw_png(figures.training_curves([{"stage": "head"}]))


def test_dollars_are_not_mathematics(make):
    # Broken TeX would raise while drawing.
    draw_png(figures.training_curves([{**HISTORY[0], "stage": "$\\frac$"}]))
    table = make(
        label=[0, 1], probability=[0.1, 0.9], patient=["$\\a$", "b"], class_names=("$\\b$", "c")
    )
    curves = (figures.roc, figures.precision_recall)
    for draw in (figures.patient_dots, figures.confusion_matrix, *curves):
        draw_png(draw(table))


def test_roc_has_an_area_per_unit(hand, make):
    axes = figures.roc(hand).axes[0]
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    areas = {line.get_label(): np.trapezoid(*line.get_data()[::-1]) for line in axes.lines}
    assert areas["8 images: AUC 0.792"] == pytest.approx(9.5 / 12)
    assert areas["3 patients: AUC 1.000"] == pytest.approx(1)
    assert labels[:2] == ["8 images: AUC 0.792", "3 patients: AUC 1.000"]
    one = figures.roc(make(label=[1], probability=[0.9])).axes[0].get_legend().get_texts()
    assert [text.get_text() for text in one] == [
        "images: no ROC, no benign images",
        "patients: no ROC, no benign patients",
    ]


def test_confusion_matrix_shows_counts_and_row_percentages(hand):
    texts = [text.get_text() for text in figures.confusion_matrix(hand).axes[0].texts]
    assert texts == ["2", "100.0%", "0", "0.0%", "3", "50.0%", "3", "50.0%"]
    texts = [text.get_text() for text in figures.confusion_matrix(hand).axes[1].texts]
    assert texts == ["1", "100.0%", "0", "0.0%", "1", "50.0%", "1", "50.0%"]


def test_a_patient_of_both_classes_has_no_confusion_matrix(make):
    table = make(label=[0, 1], probability=[0.1, 0.9])
    assert len(figures.confusion_matrix(table).axes) == 1


def test_precision_and_recall_have_an_area_per_unit(hand):
    axes = figures.precision_recall(hand).axes[0]
    for line in axes.lines:
        if "AP" in str(line.get_label()):
            recall, precision = line.get_data()
            area = -np.sum(np.diff(recall) * precision[:-1])
            assert line.get_drawstyle() == "steps-post"
            assert line.get_label().endswith(f"AP {area:.3f}")


def test_reliability_shows_every_bin(random_table):
    point = OperatingPoint(temperature=2.0)
    metrics = assess(point.apply(random_table(0)), operating_point=point, bootstrap=Bootstrap(50))
    figure = figures.reliability(metrics["calibration"], "malignant")
    lines = {line.get_label(): line for line in figure.axes[0].lines}
    for side, name in (("before", "uncalibrated"), ("after", "calibrated")):
        found = metrics["calibration"]["test"][side]
        line = lines[f"{name}: ECE {found['ece']:.3f}"]
        full = [row for row in found["bins"] if row["count"]]
        assert list(line.get_xdata()) == [row["confidence"] for row in full]
        assert list(line.get_ydata()) == [row["accuracy"] for row in full]
    alone = assess(random_table(0), bootstrap=Bootstrap(50))["calibration"]
    labels = [line.get_label() for line in figures.reliability(alone, "x").axes[0].lines]
    assert not any(label.startswith("calibrated") for label in labels)


def test_validation_chooses_threshold_and_temperature(random_table, tmp_path):
    test, validation = random_table(0), random_table(1)
    names = {name: np.char.add("v", getattr(validation, name)) for name in ("file", "patient")}
    validation = replace(validation, **names)
    result = write_report(tmp_path, test, validation=validation, rule="sensitivity>=0.9")
    point = choose_operating_point(validation, "sensitivity>=0.9")
    assert result["threshold"] == point.threshold != 0.5
    again = read_csv(tmp_path / "predictions.csv")
    assert np.array_equal(again.calibrated, point.calibrate(test.probability))
    assert OperatingPoint.from_dict(result["operating_point"]) == point
    text = read(tmp_path).text
    assert "sensitivity>=0.9" in text and "200 validation images of 12 patients" in text
    assert "validation (temperature fitted here)" in text and "chosen on validation images" in text
    one_class = validation.select(validation.label == 1)
    write_report(tmp_path, test, validation=one_class, rule="youden")
    text = read(tmp_path).text
    assert "Threshold left at 0.5" in text and "chosen on validation images" not in text
    # A locked operating point wins, and nothing is chosen again.
    locked = OperatingPoint(0.25, 2.0, "youden", "others")
    result = write_report(tmp_path, test, validation=validation, operating_point=locked)
    assert result["threshold"] == 0.25 and result["operating_point"]["chosen_on"] == "others"


def test_intervals_are_beside_the_numbers(random_table, tmp_path):
    result = write_report(tmp_path, random_table(0))
    html = (tmp_path / "report.html").read_text()
    for group, rows in (
        (result["intervals"], 1),
        *((row, 1) for row in result["intervals"]["by_magnification"]),
    ):
        span = group["image"]["roc_auc"]
        assert html.count(f"<small>{span['low']:.3f} to {span['high']:.3f}</small>") >= rows
    rate = result["intervals"]["patient"]["patient_recognition_rate"]
    span = f"<small>{rate['low']:.3f} to {rate['high']:.3f}</small>"
    assert html.count(span) == 2  # a tile and the table
    assert "2000 resamples" in html and "0 resamples contained one class only" in html


def test_a_tile_lies_within_its_interval_as_printed():
    metric = Measured(0.9986, 0.9972, 1.0)
    assert (format_number(metric), format_interval(metric)) == ("0.999", "0.997 to 1.000")


def test_missing_intervals_have_a_reason(hand, tmp_path):
    write_report(tmp_path, hand)
    text = read(tmp_path).text
    assert "images: only one benign patient, and one cannot be resampled, so no Accuracy" in text


def test_the_gallery_is_shown(hand, tmp_path):
    data = draw_png(Figure(figsize=(1, 1)))
    items = [{"caption": "<b>one", "png": data, "group": "Surest"}, {"caption": "two", "png": data}]
    result = write_report(tmp_path, hand, [], {"gallery": items})
    assert result["run"] == {"gallery": ["<b>one", "two"]}
    page = read(tmp_path)
    assert "Gallery" in page.text and "Surest" in page.text and "<b>one" in page.text
    assert sum(base64.b64decode(source.split(",")[1]) == data for source in page.sources) == 2
    write_report(tmp_path, hand, [], {})
    assert "Gallery" not in read(tmp_path).text
    old = snapshot(tmp_path)
    with pytest.raises(InputError, match="gallery picture 1"):
        write_report(tmp_path, hand, [], {"gallery": [{"png": b"no"}]})
    assert snapshot(tmp_path) == old


def test_an_overlap_table_is_shown(hand, tmp_path):
    rows = [{"group": "case70", "train_and_test": 4}]
    write_report(tmp_path, hand, [], {"split": {"overlap": rows, "hash": "abc"}})
    text = read(tmp_path).text
    assert "Overlap between subsets" in text and "train and test" in text
    write_report(tmp_path, hand, [], {"split": {"overlap": "none"}})
    assert "overlap" in read(tmp_path).text


def test_the_same_figure_is_the_same_bytes(hand):
    assert draw_png(figures.roc(hand)) == draw_png(figures.roc(hand))


def test_patients_are_marked_where_their_mean_is_wrong(hand):
    figure = figures.patient_dots(hand)
    labels = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert labels == ["a", "× b", "c"]


def test_pyplot_is_never_imported():
    # In a process of its own: another test's library may have imported it into this one.
    code = "import sys, densenet_flax.evaluation; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
