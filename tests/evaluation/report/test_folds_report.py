"""The report of a cross-validation."""

import json
import re

import numpy as np
import pytest

from densenet_flax.evaluation import cross_validation_summary
from densenet_flax.evaluation.report.folds_report import folds_verdict, write_folds_report


@pytest.fixture(autouse=True)
def quick(quick_figures):
    """For every test of this file."""


@pytest.fixture
def folds(random_table):
    table = random_table(0)
    first = np.isin(table.patient, ["p0", "p1", "p2", "p3"])
    return [table.select(first), table.select(~first)]


def test_files_and_page(folds, tmp_path):
    info = {"title": "five <folds>", "warnings": ["a warning"], "config": {"seed": 0}}
    links = ["../fold1/report.html", '../"fold2"/report.html']
    metrics = write_folds_report(tmp_path, folds, ["a", "<b>"], info, links=links, resamples=50)
    assert {path.name for path in tmp_path.iterdir()} == {
        "metrics.json",
        "report.html",
        "folds.png",
        "folds.pdf",
    }
    assert json.loads((tmp_path / "metrics.json").read_text()) == metrics
    summary = cross_validation_summary(folds, ["a", "<b>"], 50)
    assert metrics["pooled"] == json.loads(json.dumps(summary["pooled"]))
    page = (tmp_path / "report.html").read_text()
    assert "<b>" not in page and "five &lt;folds&gt;" in page and "a warning" in page
    assert re.findall('href="(.*?)">(.*?)<', page) == [
        ("../fold1/report.html", "Report of a"),
        ("../&#34;fold2&#34;/report.html", "Report of &lt;b&gt;"),
    ]
    interval = metrics["pooled"]["intervals"]["image"]["roc_auc"]
    assert f"<small>{interval['low']:.3f} to {interval['high']:.3f}</small>" in page
    assert (
        "Intervals: 95%, over patients: exact for proportions of patients, else 50 resamples"
        in page
    )
    assert folds_verdict(metrics) in page and "folds pooled" in folds_verdict(metrics)


def test_folds_that_share_patients_are_not_pooled(random_table, tmp_path):
    table = random_table(0)
    half = np.arange(len(table)) % 2 == 0
    folds = [table.select(half), table.select(~half)]
    metrics = write_folds_report(tmp_path, folds, ["a", "b"], resamples=50)
    assert metrics["pooled"] is None
    assert (
        "The folds are not pooled: 12 patients are in more than one fold" in metrics["warnings"][0]
    )
    assert "pooled" not in folds_verdict(metrics)
    page = (tmp_path / "report.html").read_text()
    assert "Each fold has its own network" in page and "Intervals:" not in page


def test_a_configuration_that_json_cannot_hold(folds, tmp_path):
    info = {"config": {"limit": float("nan"), "shape": (2, 3)}}
    metrics = write_folds_report(tmp_path, folds, ["a", "b"], info, resamples=50)
    assert metrics["run"]["config"] == {"limit": None, "shape": [2, 3]}
