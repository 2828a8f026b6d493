import json
import re
from dataclasses import replace

import numpy as np
import pytest

from densenet_flax.common.errors import InputError
from densenet_flax.evaluation import write_comparison_report
from densenet_flax.evaluation.report.comparison_report import comparison_verdict


@pytest.fixture
def tables(make):
    """A network, one that is as good, and one that guesses, on 40 patients."""
    rng = np.random.default_rng(0)
    patient = np.repeat(np.arange(40), 4)
    label = (patient >= 16).astype(int)
    noise = rng.normal(size=(3, len(label)))
    scores = noise + np.outer([1.5, 1.5, 0.0], 2 * label - 1)
    names = ("one", "two", "<guess>")
    return {
        name: make(label=label, patient=patient.astype(str), probability=1 / (1 + np.exp(-score)))
        for name, score in zip(names, scores, strict=True)
    }


def test_the_page_of_a_comparison(tables, tmp_path):
    metrics = write_comparison_report(tmp_path, tables, resamples=50)
    assert json.loads((tmp_path / "metrics.json").read_text()) == metrics
    names = {path.name for path in tmp_path.iterdir()}
    figures = [f"{n}.{kind}" for n in ("networks", "differences", "roc") for kind in ("png", "pdf")]
    assert names == {"metrics.json", "report.html", *figures}
    page = (tmp_path / "report.html").read_text()
    assert "&lt;guess&gt;" in page and "<guess>" not in page
    wrong = {n: set() for n in tables}
    for name, table in tables.items():
        for patient in np.unique(table.patient):
            rows = table.patient == patient
            predicted = table.probability[rows].mean() >= 0.5
            if predicted != table.label[rows][0]:
                wrong[name].add(patient)
    times = len(set.union(*wrong.values())), len(set.intersection(*wrong.values()))
    assert f"{times[0]} patients wrong in at least one network, {times[1]} in all" in page
    assert re.search(r"<h1>Comparison</h1>", page)


def test_the_verdict(tables, tmp_path):
    metrics = write_comparison_report(tmp_path, tables, resamples=50)
    verdict = comparison_verdict(metrics)
    assert verdict.startswith("ROC-AUC of patients: ")
    assert "<guess> shown to be worse" in verdict and "not shown to differ from it" in verdict
    metrics = write_comparison_report(tmp_path, tables, "<guess>", resamples=50)
    verdict = comparison_verdict(metrics)
    assert verdict.startswith("Not shown to be better than chance: ")
    assert verdict.endswith("one and two shown to be better")


def test_several_classes_and_undefined_metrics(several, make, tmp_path):
    table = several(0)
    metrics = write_comparison_report(tmp_path / "a", {"x": table, "y": table}, resamples=20)
    assert "not shown to differ" in comparison_verdict(metrics)
    assert not (tmp_path / "a" / "roc.png").exists()
    one = make(label=[1, 1], probability=[0.9, 0.2], patient=["a", "b"])
    same = replace(one, probability=[0.1, 0.2])
    metrics = write_comparison_report(tmp_path / "b", {"x": one, "y": same}, resamples=20)
    assert comparison_verdict(metrics).endswith("undefined, so nothing is compared")


def test_no_other_report_is_replaced(tables, tmp_path):
    for content in ('{"schema": 1}', "[]", "{"):
        (tmp_path / "metrics.json").write_text(content)
        with pytest.raises(InputError, match=r"metrics\.json: .*; choose another directory"):
            write_comparison_report(tmp_path, tables, resamples=20)
    (tmp_path / "metrics.json").unlink()
    for _ in range(2):
        write_comparison_report(tmp_path, tables, resamples=20)


@pytest.mark.parametrize(
    ("metric", "level"),
    [("accuracy", "image"), ("patient_recognition_rate", "patient"), ("npv", "patient")],
)
def test_metrics_of_one_level_or_both(metric, level, tables, tmp_path):
    metrics = write_comparison_report(tmp_path, tables, metric=metric, resamples=20)
    assert metrics["metric"] == {"level": level, "name": metric}
    levels = 2 if metric == "npv" else 1
    assert (tmp_path / "report.html").read_text().count("p, corrected</th>") == levels
    assert f"of {level}s: " in comparison_verdict(metrics)
