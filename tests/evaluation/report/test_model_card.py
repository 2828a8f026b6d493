import re

import pytest

from densenet_flax.evaluation import OperatingPoint, verdict
from densenet_flax.evaluation.metrics.bootstrap import Bootstrap
from densenet_flax.evaluation.metrics.compute import assess
from densenet_flax.evaluation.report.model_card import model_card

CARD_KEYS = (
    "authors",
    "citation",
    "conflicts",
    "data_availability",
    "data_dates",
    "data_source",
    "demographics",
    "eligibility",
    "environment",
    "ethics",
    "external_validation",
    "funding",
    "intended_use",
    "involvement",
    "license",
    "missing_data",
    "population",
    "protocol",
    "reference_standard",
    "sample_size",
)
HEADINGS = [
    "Model details",
    "Uses",
    "Bias, risks and limitations",
    "Training details",
    "Evaluation",
    "Environmental impact",
    "Citation",
    "Reporting checklist",
]


def card(table, run=None, point=None):
    if point:
        table = point.apply(table)
    metrics = assess(table, operating_point=point, bootstrap=Bootstrap(50))
    metrics |= {"run": run or {}, "warnings": ["mind the gap"]}
    return metrics, model_card(metrics).decode()


def test_what_a_run_does_not_record_is_named(random_table):
    metrics, text = card(random_table(0))
    assert re.findall(r"^## (.*)$", text, re.M) == HEADINGS
    assert text.count("not recorded") > 15 and "None" not in text
    cells = ""
    for level in ("patient", "image"):
        span, value = metrics["intervals"][level]["roc_auc"], metrics[level]["roc_auc"]
        cells += f" {value:.3f} \\[{span['low']:.3f}, {span['high']:.3f}\\] |"
    assert f"| ROC-AUC |{cells}" in text
    checklist = text.split("## Reporting checklist")[1].splitlines()
    rows = [line for line in checklist if line.startswith("|")]
    assert len(rows) == 34 and {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {6}
    assert "- mind the gap" in text and f"**{verdict(metrics)}.**" in text


def test_what_a_run_records_is_filled_in(random_table):
    run = {
        "title": "a run",
        "split": {
            "kind": "patients",
            "group": "case70",
            "seed": 3,
            "hash": "9f86",
            "patient_disjoint": True,
            "counts": {"train": {"benign": {"images": 1234, "patients": 16}}},
        },
        "config": {
            "model": {"name": "densenet201"},
            "data": {"name": "drawn", "image_size": [6, 9]},
        },
        "weights": {"sha256": "abc"},
        "device": "cpu",
        "computation": "float32 on a test",
        "versions": {"jax": "0.10"},
        "stages": ["head: 2 epochs"],
        "seconds": {"training": 61.0, "absent": None},
        "gallery": ["one"],
        "card": {name: f"said of {name.replace('_', ' ')}" for name in CARD_KEYS},
    }
    _, text = card(
        random_table(0), run, OperatingPoint(0.3, 1.5, "youden", "9 images", (), "platt", 0.25)
    )
    assert "not recorded" not in text.split("“Not recorded”")[0]
    for expected in (
        "| Level of disjointness | 12a | 20 | 15b | patient-disjoint |",
        "| Initial weights | 12c | 24 | 15b | sha256 abc |",
        "patients, by case70, seed 3",
        "| train | 1234 | 1234 of 16 patients |",
        "training 61 s",
        "temperature 1.5 and shift +0.25 (Platt scaling); ECE",
        "0.3, by rule youden on 9 images",
        *(f"said of {name.replace('_', ' ')}" for name in CARD_KEYS),
    ):
        assert expected in text, expected


def test_undefined_metrics_are_named(make):
    _, text = card(make(label=[1, 1], probability=[0.9, 0.2]))
    assert "| ROC-AUC | undefined | undefined |" in text
    assert "type: roc_auc" not in text and "type: accuracy" in text


@pytest.mark.parametrize("hostile", ["a|b\n# c", "<script>", "![x](y)"])
def test_text_from_outside_is_escaped(random_table, hostile):
    _, text = card(
        random_table(0), {"title": hostile, "weights": hostile, "card": {"citation": hostile}}
    )
    body = text.split("---\n", 2)[-1]
    assert hostile not in body
    rows = [line for line in body.splitlines() if line.startswith("| Initial weights")]
    assert len(rows) == 1 and len(re.findall(r"(?<!\\)\|", rows[0])) == 6
