"""MODEL_CARD.md, with a checklist of TRIPOD+AI, CLAIM and STARD-AI.

What no run can know, such as ethics and funding, an author adds through `info['card']`.
"""

from collections.abc import Mapping
from typing import Any

from densenet_flax.common.trees import JsonDict
from densenet_flax.evaluation.report import tables
from densenet_flax.evaluation.report.cautions import verdict
from densenet_flax.evaluation.report.rendering import render
from densenet_flax.evaluation.report.views import UNKNOWN
from densenet_flax.evaluation.report.wording import metric_title, wording_for, wrong_images


def model_card(metrics: JsonDict) -> bytes:
    """Renders the card from the content of metrics.json."""
    return render("model_card.md", results=index_results(metrics), **_context(metrics))


def card_body(metrics: JsonDict) -> bytes:
    """The card without its metadata and title, for a card that has its own."""
    return render("model_card_body.md", **_context(metrics))


def index_results(metrics: JsonDict) -> list[tuple[str, str, float]]:
    """Key, title and value of the metrics of images, from which model hubs make their tables."""
    return [
        (key, metric_title(key), metrics["image"][key])
        for key in wording_for(metrics).metrics
        if metrics["image"][key] is not None
    ]


def _context(metrics: JsonDict) -> JsonDict:
    run, wording = metrics["run"], wording_for(metrics)
    split = run.get("split") or {}
    seconds = (run.get("seconds") or {}).items()
    time = [f"{phase} {value:.0f} s" for phase, value in seconds if value is not None]
    return dict(
        metrics=metrics,
        run=run,
        card=run.get("card") or {},
        license=_license(run),
        split=split,
        split_rule=_split_rule(split),
        flow=tables.flow_of_cases(run),
        model=_config_value(run, "model", "name") or UNKNOWN,
        dataset=_config_value(run, "data", "name") or UNKNOWN,
        image_size=_config_value(run, "data", "image_size"),
        weights=_one_line(run.get("weights")),
        libraries=_one_line(run.get("versions")),
        stages=run.get("stages") or [],
        time=", ".join(time) or UNKNOWN,
        verdict=verdict(metrics),
        all_metrics=tables.all_metrics(metrics),
        by_class=tables.by_class(metrics),
        by_magnification=tables.by_magnification(metrics, wording.card_columns),
        threshold=_threshold(metrics),
        calibration=_calibration(metrics),
        wrong_images=wrong_images(metrics),
    )


def _config_value(run: JsonDict, section: str, key: str) -> Any:
    """A value of the run's configuration; None if the run has none, or another form of it."""
    values = (run.get("config") or {}).get(section)
    return values.get(key) if isinstance(values, Mapping) else None


def _split_rule(split: JsonDict) -> str | None:
    """How the images were split, such as 'patient, by case70, seed 0'."""
    parts = [
        str(split.get("policy") or split.get("kind") or ""),
        f"by {split['group']}" if split.get("group") else "",
        f"seed {split['seed']}" if split.get("seed") is not None else "",
    ]
    return ", ".join(filter(None, parts)) or None


def _license(run: JsonDict) -> str | None:
    """What the authors state, or the license of the weights that training started from."""
    weights = run.get("weights")
    inherited = weights.get("licence of that file") if isinstance(weights, Mapping) else None
    return (run.get("card") or {}).get("license") or inherited


def _one_line(value: object) -> str | None:
    """A mapping, or anything else, on one line; None if it is empty."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {item}" for key, item in value.items()) or None
    return str(value) if value else None


def _threshold(metrics: JsonDict) -> str:
    """The threshold and how it was chosen."""
    point = metrics["operating_point"]
    if metrics["threshold"] is None:
        return "none, the likeliest class is predicted"
    how = f"by rule {point['rule']} on {point['chosen_on'] or 'no images'}" if point else "given"
    return f"{metrics['threshold']:.4g}, {how}"


def _calibration(metrics: JsonDict) -> str:
    """The temperature and what it changed."""
    test, point = metrics["calibration"]["test"], metrics["operating_point"]
    before, after = test["before"], test["after"]
    ece = wording_for(metrics).ece
    if not after:
        return f"none; ECE {before[ece]:.3f}, Brier {before['brier']:.3f}"
    temperature = f"temperature {point['temperature']:.3g}" if point else "temperature unknown"
    if point and point.get("method") == "isotonic":
        temperature = "isotonic regression"
    elif point and point.get("shift"):
        temperature += f" and shift {point['shift']:+.3g} (Platt scaling)"
    changes = [
        f"{name} {before[key]:.3f} before and {after[key]:.3f} after"
        for key, name in ((ece, "ECE"), ("brier", "Brier"), ("nll", "NLL"))
    ]
    return f"{temperature}; {', '.join(changes)}"
