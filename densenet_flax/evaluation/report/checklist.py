"""The checklist of the model card, and what a run says about itself in a phrase.

The rows carry the item numbers of TRIPOD+AI (2024) and CLAIM (2020); None is what no run can know.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from densenet_flax.common.types import JsonDict
from densenet_flax.evaluation.report.cautions import verdict
from densenet_flax.evaluation.report.views import Table
from densenet_flax.evaluation.report.wording import wording_of, wrong_images

UNKNOWN = "not recorded"


def checklist_table(metrics: JsonDict) -> Table:
    """A row per item: its number in TRIPOD+AI and in CLAIM, and what this run says of it."""
    return Table(["item", "TRIPOD+AI", "CLAIM", "this run"], list(_rows(metrics)))


def _rows(metrics: JsonDict) -> Iterator[list[str | None]]:
    run, intervals = metrics["run"], metrics["intervals"]
    card = run.get("card") or {}
    split = run.get("split") or {}
    image, patient = metrics["image"], metrics["patient"]
    classes = ", ".join(f"{patient['n_by_class'][name]} {name}" for name in metrics["class_names"])
    disjoint: dict[Any, str] = {True: "patient-disjoint", False: "not patient-disjoint"}
    yield ["Intended use, population", "3a, 3b", "3, 4", card.get("intended_use")]
    yield ["Health inequalities, fairness", "3c, 14", "34", card.get("population")]
    yield ["Source of data", "5a", "5, 7", card.get("data_source") or dataset_of(run)]
    yield ["Dates of data", "5b", "7", card.get("data_dates")]
    yield ["Eligibility of participants", "6a, 6b", "8, 10", card.get("eligibility")]
    yield ["Preparation of images", "7", "9", _preparation(run)]
    yield ["Outcome, reference standard", "8a, 8b", "14, 15", card.get("reference_standard")]
    yield ["Sample size", "10", "19", card.get("sample_size")]
    yield ["Missing data", "11", "13", card.get("missing_data")]
    yield ["Partition of data", "12a", "20", split_of(split)]
    yield ["Level of disjointness", "12a", "21", disjoint.get(split.get("patient_disjoint"))]
    yield ["Model, libraries", "12c, 22", "22, 23", model_of(run)]
    yield ["Initial weights", "12c", "24", flat_of(run.get("weights"))]
    yield [
        "Training, choice of the model",
        "12c",
        "25, 26",
        "; ".join(run.get("stages") or []) or None,
    ]
    yield ["Performance measures", "12e", "28", "see Results; metrics.json"]
    uncertainty = f"{intervals['method']}, {intervals['resamples']} resamples"
    yield ["Uncertainty", "12e, 23a", "29, 36", uncertainty]
    yield ["Recalibration", "12f, 24", "28", calibration_of(metrics)]
    yield ["Output and threshold", "15", "28", _output(metrics)]
    yield ["Explainability", "", "31", _explained(run)]
    yield ["Evaluation on external data", "16", "32", card.get("external_validation")]
    yield ["Ethical approval", "17", "", card.get("ethics")]
    yield ["Funding, conflicts of interest", "18a, 18b", "42", _both(card, "funding", "conflicts")]
    yield ["Protocol, registration", "18c, 18d", "40, 41", card.get("protocol")]
    yield ["Availability of data", "18e", "7, 41", card.get("data_availability")]
    yield ["Patient and public involvement", "19", "", card.get("involvement")]
    test = f"{image['n']} test images of {patient['n']} patients ({classes})"
    yield ["Flow and number of participants", "20a, 21", "33", test]
    yield ["Characteristics of participants", "20b, 20c", "34", card.get("demographics")]
    yield ["Performance with intervals", "23a", "36", verdict(metrics)]
    groups = f"{len(metrics['by_magnification'])} magnifications, "
    subtypes = len(metrics["by_subtype"])
    kinds = f"{len(metrics['class_names'])} classes" if "by_class" in metrics else ""
    kinds += ", " if kinds and subtypes else ""
    kinds += f"{subtypes} subtypes" if subtypes or not kinds else ""
    groups += f"{kinds}, every patient: report.html"
    yield ["Differences between groups", "12d, 23b", "30", groups]
    wrong = f"{wrong_images(metrics)} wrong images, the surest in report.html"
    yield ["Failure analysis", "", "37", wrong]
    yield ["Limitations", "26", "38", "see Bias, risks and limitations"]


def _output(metrics: Mapping[str, Any]) -> str:
    positive = metrics["positive_class"]
    said = f"P({positive})" if positive else f"P of {len(metrics['class_names'])} classes"
    return f"{said}; {threshold_of(metrics)}"


def threshold_of(metrics: Mapping[str, Any]) -> str:
    """The threshold, and how it was chosen."""
    point = metrics["operating_point"]
    if metrics["threshold"] is None:
        return "none, the likeliest class is called"
    how = f"by rule {point['rule']} on {point['chosen_on'] or 'no images'}" if point else "given"
    return f"{metrics['threshold']:.4g}, {how}"


def calibration_of(metrics: Mapping[str, Any]) -> str:
    """The temperature, and what it changed."""
    test, point = metrics["calibration"]["test"], metrics["operating_point"]
    ece = wording_of(metrics).ece
    if not test["after"]:
        return f"none; ECE {test['before'][ece]:.3f}, Brier {test['before']['brier']:.3f}"
    temperature = f"temperature {point['temperature']:.3g}" if point else "temperature unknown"
    return f"{temperature}; " + ", ".join(
        f"{name} {test['before'][key]:.3f} before and {test['after'][key]:.3f} after"
        for key, name in ((ece, "ECE"), ("brier", "Brier"), ("nll", "NLL"))
    )


def model_of(run: Mapping[str, Any]) -> str:
    """Name of the network."""
    model = (run.get("config") or {}).get("model") or {}
    name = model.get("name") if isinstance(model, Mapping) else None
    return str(name or UNKNOWN)


def dataset_of(run: Mapping[str, Any]) -> str:
    """Name of the data set."""
    data = (run.get("config") or {}).get("data") or {}
    name = data.get("name") if isinstance(data, Mapping) else None
    return str(name or UNKNOWN)


def _preparation(run: Mapping[str, Any]) -> str | None:
    data = (run.get("config") or {}).get("data") or {}
    size = data.get("image_size") if isinstance(data, Mapping) else None
    return f"resized to {size} (height, width)" if size else None


def split_of(split: Mapping[str, Any]) -> str | None:
    """The rule of the split."""
    policy = split.get("policy") or split.get("kind")
    said = [f"{policy}" if policy else "", f"by {split['group']}" if split.get("group") else ""]
    said += [f"seed {split['seed']}" if split.get("seed") is not None else ""]
    return ", ".join(filter(None, said)) or None


def _explained(run: Mapping[str, Any]) -> str | None:
    pictures = run.get("gallery") or []
    return f"{len(pictures)} pictures in report.html" if pictures else None


def _both(card: Mapping[str, Any], *keys: str) -> str | None:
    return "; ".join(str(card[key]) for key in keys if card.get(key)) or None


def flat_of(value: Any) -> str | None:
    """A mapping or anything else on one line."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {item}" for key, item in value.items()) or None
    return str(value) if value else None
