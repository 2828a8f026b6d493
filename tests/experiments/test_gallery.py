"""The gallery of the report."""

import json
import re
import shutil

import numpy as np
import pytest

import densenet_flax
from densenet_flax.evaluation.metrics.feature_space import measure_features
from densenet_flax.evaluation.report.views import format_number
from densenet_flax.experiments.gallery import choose_images, confidence
from densenet_flax.experiments.run import evaluate


def test_confidence_of_two_and_of_more_classes():
    two = np.array([[0.9, 0.1], [0.4, 0.6], [0.2, 0.8], [0.0, 1.0], [1.0, 0.0]])
    assert np.allclose(confidence(two, 0.6), [5 / 6, 0, 0.5, 1, 1])
    assert np.isfinite(confidence(two, 0.0)).all() and np.isfinite(confidence(two, 1.0)).all()
    three = np.array([[0.5, 0.3, 0.2], [0.4, 0.4, 0.2], [0.0, 1.0, 0.0]])
    assert np.allclose(confidence(three), [0.2, 0, 1])


def test_groups_prefer_images_of_different_patients():
    confidences = np.array([0.9, 0.8, 0.7, 0.6, 0.5, 0.1, 0.2])
    is_correct = np.array([True, True, True, True, False, True, False])
    groups = choose_images(confidences, is_correct, ["a", "a", "b", "c", "a", "d", "b"])
    assert groups["Most confident, correct"] == [0, 2, 3]  # 1 is another of the same patient
    assert groups["Most confident, wrong"] == [4, 6]
    assert groups["Least confident"] == [5, 6, 4]
    all_correct = choose_images(confidences, np.ones(7, bool), list("abcdefg"))
    assert "Most confident, wrong" not in all_correct
    of_one_patient = choose_images(confidences, np.ones(7, bool), ["a"] * 7)
    assert of_one_patient["Most confident, correct"] == [0, 1, 2]


def test_maps_of_a_single_position_are_replaced_by_a_note(tiny_run):
    report = tiny_run.workdir / "report"
    note = json.loads((report / "metrics.json").read_text())["run"]["gallery_note"]
    assert "32 × 32" in note and "config.explain" in note
    assert note.partition("×")[0] in (report / "report.html").read_text()


def test_the_features_of_a_run_are_those_of_its_classifier(tiny_run):
    report, table = tiny_run.workdir / "report", tiny_run.table
    features = densenet_flax.load_classifier(tiny_run.workdir).embed(tiny_run.paths)
    space = measure_features(features, table.label, table.patient)
    metrics = json.loads((report / "metrics.json").read_text())
    assert metrics["features"]["explained_variance"] == pytest.approx(
        space.summary["explained_variance"], abs=1e-3
    )
    for name in ("patient", "class", "images", "features"):
        assert metrics["features"][name] == space.summary[name]
    captions = metrics["run"]["neighbors"]
    assert len(captions) == 4 * 5 and captions[0] in table.file.tolist()
    page = (report / "report.html").read_text()
    assert "<h2>Features</h2>" in page
    for caption in captions[1:5]:
        assert re.fullmatch(r"\d: \w+, (the same patient|patient \w+), \S+\.png", caption)
        assert f"<figcaption>{caption}</figcaption>" in page
    for name in ("features_by_class", "features_by_patient"):
        assert (report / f"{name}.png").exists() and (report / f"{name}.pdf").exists()


def test_the_gallery_of_a_run(tiny_run, tmp_path):
    table, copy = tiny_run.table, tmp_path / "copy"
    shutil.copytree(tiny_run.workdir, copy)
    config = tiny_run.config.copy_and_resolve_references()
    config.explain = "pool2"
    evaluate(config, str(copy))
    run = json.loads((copy / "report" / "metrics.json").read_text())["run"]
    page = (copy / "report" / "report.html").read_text()
    groups = ["Most confident, correct", "Least confident"]
    groups += ["Most confident, wrong"] if (table.prediction != table.label).any() else []
    assert all(f"<h3>{name}</h3>" in page for name in groups)
    assert 3 <= len(run["gallery"]) <= 9
    for caption in run["gallery"]:
        label, predicted, reason, name = re.fullmatch(
            r"(\w+), predicted (\w+) \((P\(malignant\) = .*)\); patient \w+, (\S+)", caption
        ).groups()
        i = table.file.tolist().index(name)
        assert label == table.class_names[table.label[i]]
        assert predicted == table.class_names[table.prediction[i]]
        sign = "at least" if predicted == "malignant" else "below"
        value = format_number(float(table.probability[i]))
        threshold = f"{sign} the threshold {table.threshold:.3g}"
        assert reason == f"P(malignant) = {value}, {threshold}"
    assert "Grad-CAM at unit 'pool2', 4 × 4 positions" in run["gallery_note"]
    correlations = [
        float(x) for x in re.findall(r"(?:head|conv\d|stem) (-?\d\.\d\d)", run["gallery_note"])
    ]
    assert len(correlations) == 6 and all(-1 <= x <= 1 for x in correlations)
    config.explain = ""
    evaluate(config, str(copy))
    assert "<h2>Gallery</h2>" not in (copy / "report" / "report.html").read_text()
