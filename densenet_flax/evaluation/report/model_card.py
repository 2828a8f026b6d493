"""Collects what MODEL_CARD.md shows.

What no run can know, such as ethics and funding, an author adds through `info['card']`.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from densenet_flax.common.types import JsonDict
from densenet_flax.evaluation.report import tables
from densenet_flax.evaluation.report.cautions import verdict
from densenet_flax.evaluation.report.checklist import (
    calibration_text,
    checklist_table,
    threshold_text,
)
from densenet_flax.evaluation.report.run_info import (
    UNKNOWN,
    dataset_name,
    model_name,
    one_line,
    split_rule,
)
from densenet_flax.evaluation.report.sections import subset_counts
from densenet_flax.evaluation.report.views import Table
from densenet_flax.evaluation.report.wording import count, metric_title, wording_for


@dataclass(frozen=True)
class ModelCard:
    """Everything that the card shows, from top to bottom; None is shown as `unknown`."""

    license: str | None
    title: str | None
    dataset: str
    results: list[tuple[str, str, float]]  # key, name and value of the metrics of images
    verdict: str
    details: Mapping[str, str | None]
    intended_use: str | None
    warnings: list[str]
    training_data: Mapping[str, str | None]
    counts: Table
    stages: list[str]
    time: str
    images: str
    patients: str
    decision: str
    intervals: str
    metrics: Table
    by_class: tables.ClassSection | None
    by_magnification: Table
    calibration: str
    environment: str | None
    device: str | None
    citation: str | None
    checklist: Table
    unknown: str = UNKNOWN


def model_card(metrics: JsonDict) -> ModelCard:
    """Collects what the card shows from the content of metrics.json."""
    run, intervals, wording = metrics["run"], metrics["intervals"], wording_for(metrics)
    card, split = run.get("card") or {}, run.get("split") or {}
    binary = metrics["positive_class"] is not None
    return ModelCard(
        license=card.get("license"),
        title=run.get("title"),
        dataset=dataset_name(run),
        results=[
            (key, metric_title(key), metrics["image"][key])
            for key in wording.metrics
            if metrics["image"][key] is not None
        ],
        verdict=verdict(metrics),
        details={
            "Model": model_name(run),
            "Weights": one_line(run.get("weights")),
            "Developed by": card.get("authors"),
            "License": card.get("license"),
            "Libraries": one_line(run.get("versions")),
            "Device": run.get("device"),
        },
        intended_use=card.get("intended_use"),
        warnings=metrics["warnings"],
        training_data={
            "Data set": dataset_name(run),
            "Source": card.get("data_source"),
            "Split": split_rule(run),
            "Split hash": split.get("hash"),
        },
        counts=subset_counts(split),
        stages=[str(stage) for stage in run.get("stages") or []],
        time=_time(run),
        images=count(metrics["image"]["n"], "image"),
        patients=count(metrics["patient"]["n"], "patient"),
        decision=f"Threshold {threshold_text(metrics)}"
        if binary
        else "The likeliest class is predicted",
        intervals=f"{intervals['level']:.0%} intervals, {intervals['method']}, "
        f"{intervals['resamples']} resamples, seed {intervals['seed']}",
        metrics=tables.metrics_section(metrics).table,
        by_class=tables.class_section(metrics),
        by_magnification=tables.by_magnification(metrics, wording.card_columns),
        calibration=calibration_text(metrics),
        environment=card.get("environment"),
        device=run.get("device"),
        citation=card.get("citation"),
        checklist=checklist_table(metrics),
    )


def _time(run: JsonDict) -> str:
    phases = (run.get("seconds") or {}).items()
    known = [f"{name} {seconds:.0f} s" for name, seconds in phases if seconds is not None]
    return ", ".join(known) or UNKNOWN
