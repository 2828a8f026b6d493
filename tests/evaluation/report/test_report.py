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
from densenet_flax.evaluation.report import figures
from densenet_flax.evaluation.report.plotting import png  # the original, see quick_figures

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
FIGURES = (
    *("curves", "confusion_matrix", "roc", "precision_recall"),
    *("decision_curve", "reliability", "patients"),
)
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
    assert all(
        data.startswith(PNG_SIGNATURE) for name, data in files.items() if name.endswith("png")
    )
    pdfs = [data for name, data in files.items() if name.endswith("pdf")]
    # Letters stay letters (TrueType), and nothing changes from one day to the next.
    assert all(data.startswith(b"%PDF-") and b"/CIDFontType2" in data for data in pdfs)
    assert all(b"CreationDate" not in data for data in pdfs)


def test_the_page_shows_run_numbers_and_mistakes(hand, tmp_path):
    write_report(tmp_path, hand, HISTORY, INFO)
    text = read(tmp_path).text
    for expected in (
        "Not shown to be better than chance: ROC-AUC of patients 1.00 (0.",
        "Sensitivity 1 of 2 malignant patients (0.01 to 0.99), specificity 1 of 1 benign patient",
        "on 8 images of 3 patients never seen in training",
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


def test_the_page_requests_nothing(hand, tmp_path):
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
    hostile = "<script>alert('x')</script>\"'&$\\frac$\udcff"
    table = make(
        file=[hostile, "b"],
        patient=[hostile, hostile + "2"],
        subtype=[hostile, ""],
        label=[1, 0],
        probability=[0.1, 0.2],
        class_names=("<i>$a", "<b>$b$"),
    )
    info = {
        "title": hostile,
        "warnings": [hostile],
        "split": {hostile: hostile, "counts": {hostile: {hostile: {"images": 1}}}},
        "config": {hostile: {hostile: hostile}},
        "versions": {hostile: hostile},
        "weights": hostile,
        "device": hostile,
        "seconds": {hostile: 1.0},
        "stages": [hostile],
    }
    write_report(tmp_path, table, [{**HISTORY[0], "stage": hostile}], info)
    page = read(tmp_path)
    assert "script" not in page.tags and "i" not in page.tags
    assert page.tags.count("b") == 6  # the key figures
    assert page.text.count("<script>alert('x')</script>\"'&$\\frac$") >= 14


def test_a_table_of_one_image(make, tmp_path):
    result = write_report(tmp_path, make(label=[1], probability=[0.9]))
    assert set(snapshot(tmp_path)) == NAMES - NO_CURVES - {
        "decision_curve.png",
        "decision_curve.pdf",
    }
    text = read(tmp_path).text
    assert "there are no curves" in text and "never seen in training" not in text
    assert "There are no benign images here" in text
    assert "images: no benign images, so no balanced accuracy, specificity" in text
    assert result["run"] == {} and not re.search(r"\b(nan|none)\b", text.lower())


def test_only_a_patient_disjoint_split_is_unseen(hand, tmp_path):
    leaky = write_report(tmp_path, hand, [], {"split": {"patient_disjoint": False}})
    assert verdict(leaky).endswith(" on 8 images of 3 patients")
    assert any("not patient-disjoint" in line for line in leaky["warnings"])
    silent = write_report(tmp_path, hand, [], {"split": {"policy": "hold-out"}})
    assert verdict(silent) == verdict(leaky)
    assert not any("patient-disjoint" in line for line in silent["warnings"])


def test_accuracy_no_better_than_a_constant_is_warned_of(make, tmp_path):
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


def test_a_new_report_removes_old_curves_and_nothing_else(hand, tmp_path):
    (tmp_path / "other.txt").write_text("kept")
    write_report(tmp_path, hand, HISTORY, INFO)
    write_report(tmp_path, hand, [], INFO)
    assert set(snapshot(tmp_path)) == NAMES - NO_CURVES | {"other.txt"}


def test_info_of_any_type_becomes_json(hand, tmp_path):
    class Dict:  # like ml_collections.ConfigDict: no Mapping, but has items
        def items(self):
            return [("a", np.float32(0.5)), ("b", (1, {2}, Path("x")))]

    info = {"config": Dict(), "seconds": {"train": math.inf}, "split": None, "warnings": None}
    result = write_report(tmp_path, hand, [], info)
    assert result["run"]["config"] == {"a": 0.5, "b": [1, [2], "x"]}
    assert result["run"]["seconds"] == {"train": None}


def test_threshold_and_temperature_are_chosen_on_validation_images(random_table, tmp_path):
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
    assert (
        "validation images, on which the temperature was fitted" in text
        and "chosen on validation images" in text
    )
    one_class = validation.select(validation.label == 1)
    write_report(tmp_path, test, validation=one_class, rule="youden")
    text = read(tmp_path).text
    assert "Threshold left at 0.5" in text and "chosen on validation images" not in text
    # A locked operating point wins, and nothing is chosen again.
    knots = ((0.0, 0.1), (1.0, 0.9))
    locked = OperatingPoint(0.25, 1.0, "youden", "others", method="isotonic", knots=knots)
    result = write_report(tmp_path, test, validation=validation, operating_point=locked)
    assert result["threshold"] == 0.25 and result["operating_point"]["chosen_on"] == "others"
    assert "isotonic regression, 2 knots" in read(tmp_path).text


def test_intervals_are_below_the_numbers(random_table, tmp_path):
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
    assert "2000 resamples" in html and "Clopper and Pearson" in html


def test_the_gallery_is_shown(hand, tmp_path):
    data = png(Figure(figsize=(1, 1)))
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


def test_pyplot_is_never_imported():
    # In a process of its own: another test's library may have imported it into this one.
    code = (
        "import sys; from densenet_flax.evaluation.report import folds_report, report; "
        "sys.exit('matplotlib.figure' not in sys.modules or 'matplotlib.pyplot' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_facts_that_no_image_has_are_left_out(make, tmp_path):
    table = make(label=[0, 1], probability=[0.9, 0.8], patient=["a", "b"], magnification=[0, 0])
    write_report(tmp_path, table)
    page = (tmp_path / "report.html").read_text()
    assert "agnification" not in page and "ubtype" not in page
    assert "agnification:" not in (tmp_path / "MODEL_CARD.md").read_text()
    write_report(tmp_path, replace(table, magnification=[0, 40]))
    text = read(tmp_path).text
    assert "By magnification" in text and "unknown" in text and "40×" in text
