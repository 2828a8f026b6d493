import re

import pytest

from densenet_flax.evaluation import OperatingPoint, verdict
from densenet_flax.evaluation.metrics.bootstrap import Bootstrap
from densenet_flax.evaluation.metrics.compute import assess
from densenet_flax.evaluation.report.model_card import CARD_KEYS, model_card
from densenet_flax.evaluation.report.rendering import render

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
    return metrics, render("model_card.md", model_card(metrics)).decode()


def test_an_empty_run_is_not_recorded(random_table):
    metrics, text = card(random_table(0))
    assert re.findall(r"^## (.*)$", text, re.M) == HEADINGS
    assert text.count("not recorded") > 15 and "None" not in text
    span = metrics["intervals"]["image"]["roc_auc"]
    value = metrics["image"]["roc_auc"]
    assert f"| ROC-AUC | {value:.3f} \\[{span['low']:.3f}, {span['high']:.3f}\\] |" in text
    assert "- mind the gap" in text and f"**{verdict(metrics)}.**" in text


def test_what_the_run_knows_is_filled_in(random_table):
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
        "versions": {"jax": "0.10"},
        "stages": ["head: 2 epochs"],
        "seconds": {"training": 61.0, "absent": None},
        "gallery": ["one"],
        "card": {name: f"said of {name.replace('_', ' ')}" for name in CARD_KEYS},
    }
    _, text = card(random_table(0), run, OperatingPoint(0.3, 1.5, "youden", "9 images"))
    assert "not recorded" not in text.split("“Not recorded”")[0]
    for expected in (
        "| Level of disjointness | 12a | 21 | patient-disjoint |",
        "| Initial weights | 12c | 24 | sha256 abc |",
        "patients, by case70, seed 3",
        "| train | benign | 1234 | 16 |",
        "training 61 s",
        "temperature 1.5; ECE",
        "0.3, by rule youden on 9 images",
        *(f"said of {name.replace('_', ' ')}" for name in CARD_KEYS),
    ):
        assert expected in text, expected


def test_what_does_not_exist_is_said(make):
    _, text = card(make(label=[1, 1], probability=[0.9, 0.2]))
    assert "| ROC-AUC | undefined | undefined |" in text
    assert "type: roc_auc" not in text and "type: accuracy" in text


@pytest.mark.parametrize("evil", ["a|b\n# c", "<script>", "![x](y)"])
def test_outside_text_is_only_text(random_table, evil):
    _, text = card(random_table(0), {"title": evil, "weights": evil, "card": {"citation": evil}})
    body = text.split("---\n", 2)[-1]
    assert evil not in body
    rows = [line for line in body.splitlines() if line.startswith("| Initial weights")]
    assert len(rows) == 1 and len(re.findall(r"(?<!\\)\|", rows[0])) == 5
