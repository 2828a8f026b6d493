"""The checklist of the model card: items of TRIPOD+AI (2024) and of CLAIM (2020).

TRIPOD+AI: Collins et al., BMJ 2024; CLAIM: Mongan et al., Radiology: Artificial Intelligence 2020.
"""

from collections.abc import Iterator
from typing import Any

from densenet_flax.common.types import JsonDict
from densenet_flax.evaluation.report.cautions import verdict
from densenet_flax.evaluation.report.run_info import (
    config_value,
    dataset_name,
    model_name,
    one_line,
    split_rule,
)
from densenet_flax.evaluation.report.views import Table
from densenet_flax.evaluation.report.wording import count, wording_for, wrong_images


def checklist_table(metrics: JsonDict) -> Table:
    """A row per item: its numbers in both guidelines, and what this run states about it.

    The answer is None where neither the run nor its author (`info['card']`) gives one.
    """
    return Table(["item", "TRIPOD+AI", "CLAIM", "this run"], list(_rows(metrics)))


def _rows(metrics: JsonDict) -> Iterator[list[str | None]]:
    run, intervals = metrics["run"], metrics["intervals"]
    card: JsonDict = run.get("card") or {}
    disjoint: Any = (run.get("split") or {}).get("patient_disjoint")
    level = {True: "patient-disjoint", False: "not patient-disjoint"}.get(disjoint)
    image_size = config_value(run, "data", "image_size")
    preparation = f"resized to {image_size} (height, width)" if image_size else None
    uncertainty = f"{intervals['method']}, {intervals['resamples']} resamples"
    wrong = f"{count(wrong_images(metrics), 'wrong image')}, the most confident in report.html"
    images = len(run.get("gallery") or [])
    explained = f"{count(images, 'image')} in report.html" if images else None
    funding = "; ".join(str(card[key]) for key in ("funding", "conflicts") if card.get(key))
    # Item, numbers in TRIPOD+AI, numbers in CLAIM, answer. An item that a guideline lacks has ''.
    yield ["Intended use, population", "3a, 3b", "3, 4", card.get("intended_use")]
    yield ["Health inequalities, fairness", "3c, 14", "34", card.get("population")]
    yield ["Source of data", "5a", "5, 7", card.get("data_source") or dataset_name(run)]
    yield ["Dates of data", "5b", "7", card.get("data_dates")]
    yield ["Eligibility of participants", "6a, 6b", "8, 10", card.get("eligibility")]
    yield ["Preparation of images", "7", "9", preparation]
    yield ["Outcome, reference standard", "8a, 8b", "14, 15", card.get("reference_standard")]
    yield ["Sample size", "10", "19", card.get("sample_size")]
    yield ["Missing data", "11", "13", card.get("missing_data")]
    yield ["Partition of data", "12a", "20", split_rule(run)]
    yield ["Level of disjointness", "12a", "21", level]
    yield ["Model, libraries", "12c, 22", "22, 23", model_name(run)]
    yield ["Initial weights", "12c", "24", one_line(run.get("weights"))]
    yield [
        "Training, choice of the model",
        "12c",
        "25, 26",
        "; ".join(run.get("stages") or []) or None,
    ]
    yield ["Performance measures", "12e", "28", "see Results; metrics.json"]
    yield ["Uncertainty", "12e, 23a", "29, 36", uncertainty]
    yield ["Recalibration", "12f, 24", "28", calibration_text(metrics)]
    yield ["Output and threshold", "15", "28", _output(metrics)]
    yield ["Explainability", "", "31", explained]
    yield ["Evaluation on external data", "16", "32", card.get("external_validation")]
    yield ["Ethical approval", "17", "", card.get("ethics")]
    yield ["Funding, conflicts of interest", "18a, 18b", "42", funding or None]
    yield ["Protocol, registration", "18c, 18d", "40, 41", card.get("protocol")]
    yield ["Availability of data", "18e", "7, 41", card.get("data_availability")]
    yield ["Patient and public involvement", "19", "", card.get("involvement")]
    yield ["Flow and number of participants", "20a, 21", "33", _participants(metrics)]
    yield ["Characteristics of participants", "20b, 20c", "34", card.get("demographics")]
    yield ["Performance with intervals", "23a", "36", verdict(metrics)]
    yield ["Differences between groups", "12d, 23b", "30", _groups(metrics)]
    yield ["Failure analysis", "", "37", wrong]
    yield ["Limitations", "26", "38", "see Bias, risks and limitations"]


def _participants(metrics: JsonDict) -> str:
    image, patient = metrics["image"], metrics["patient"]
    classes = ", ".join(f"{patient['n_by_class'][name]} {name}" for name in metrics["class_names"])
    return f"{count(image['n'], 'test image')} of {count(patient['n'], 'patient')} ({classes})"


def _groups(metrics: JsonDict) -> str:
    groups = [
        f"{len(metrics[key])} {noun}"
        for key, noun in (
            ("by_magnification", "magnifications"),
            ("by_class", "classes"),
            ("by_subtype", "subtypes"),
        )
        if len(metrics.get(key, ())) > 1
    ]
    return f"{', '.join([*groups, 'every patient'])}: report.html"


def _output(metrics: JsonDict) -> str:
    positive = metrics["positive_class"]
    output = f"P({positive})" if positive else f"P of {len(metrics['class_names'])} classes"
    return f"{output}; threshold: {threshold_text(metrics)}"


def threshold_text(metrics: JsonDict) -> str:
    """The threshold and how it was chosen."""
    point = metrics["operating_point"]
    if metrics["threshold"] is None:
        return "none, the likeliest class is predicted"
    how = f"by rule {point['rule']} on {point['chosen_on'] or 'no images'}" if point else "given"
    return f"{metrics['threshold']:.4g}, {how}"


def calibration_text(metrics: JsonDict) -> str:
    """The temperature and what it changed."""
    test, point = metrics["calibration"]["test"], metrics["operating_point"]
    before, after = test["before"], test["after"]
    ece = wording_for(metrics).ece
    if not after:
        return f"none; ECE {before[ece]:.3f}, Brier {before['brier']:.3f}"
    temperature = f"temperature {point['temperature']:.3g}" if point else "temperature unknown"
    changes = [
        f"{name} {before[key]:.3f} before and {after[key]:.3f} after"
        for key, name in ((ece, "ECE"), ("brier", "Brier"), ("nll", "NLL"))
    ]
    return f"{temperature}; {', '.join(changes)}"
