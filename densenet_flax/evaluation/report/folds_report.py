"""The page of a cross-validation: all folds together, and each for itself."""

import json
import os
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from matplotlib.figure import Figure

from densenet_flax.evaluation.metrics.folds import cross_validation_summary
from densenet_flax.evaluation.metrics.intervals import RESAMPLES
from densenet_flax.evaluation.predictions import Predictions
from densenet_flax.evaluation.report import figures, page
from densenet_flax.evaluation.report.cautions import count
from densenet_flax.evaluation.report.page import Measured
from densenet_flax.storage.atomic import replace_files

SCHEMA = 1
FOOTER = "Research use only, not for diagnosis."
_NAMES = {
    "f1": "F1",
    "mcc": "Matthews correlation",
    "roc_auc": "ROC-AUC",
    "pr_auc": "PR-AUC",
}


def write_folds_report(
    directory: str | os.PathLike[str],
    folds: Sequence[Predictions],
    names: Sequence[str],
    info: Mapping[str, Any] | None = None,
    *,
    links: Sequence[str] = (),
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Any]:
    """Writes metrics.json, folds.png, folds.pdf and report.html of a cross-validation.

    Args:
        directory: Made if it does not exist.
        folds: The test predictions of each fold.
        names: Of the folds.
        info: 'title', 'warnings' (sentences) and 'config'; each may be missing.
        links: To the report of each fold, relative to the directory.
        resamples: For the pooled intervals.
        seed: For the same.

    Returns:
        What metrics.json holds: `cross_validation_summary(...)`, 'schema', 'class_names',
        'warnings' and 'run'.

    Raises:
        InputError: The folds do not belong together, or the directory cannot be written to.
    """
    info = dict(info or {})
    summary = cross_validation_summary(folds, names, resamples, seed)
    warnings = list(map(str, info.pop("warnings", ())))
    if summary["pooled"] is None:
        warnings.append(f"The folds are not pooled: {summary['pooled_undefined']}.")
    metrics = {
        "schema": SCHEMA,
        "kind": "cross-validation",
        "class_names": list(folds[0].class_names),
        **summary,
        "warnings": warnings,
        "run": info,
    }
    text = json.dumps(metrics, indent=2, allow_nan=False) + "\n"
    drawn = _figure(summary)
    png = figures.png(drawn)
    replace_files(
        directory,
        {
            "folds.png": png,
            "folds.pdf": figures.pdf(drawn),
            "metrics.json": text.encode(),
            "report.html": _page(metrics, png, links).encode("utf-8", "backslashreplace"),
        },
    )
    return json.loads(text)  # as a reader of the file gets it: lists for tuples


def folds_verdict(summary: Mapping[str, Any]) -> str:
    """The one sentence."""
    mean, rows = summary["mean"]["image"]["accuracy"], summary["folds"]
    spread = "" if mean["sd"] is None else f" ± {mean['sd']:.2f}"
    said = f"Accuracy {mean['mean']:.2f}{spread} over {count(len(rows), 'fold')} (mean ± SD)"
    pooled = summary["pooled"]
    if pooled is None:
        return said
    span = pooled["intervals"]["image"].get("accuracy")
    interval = (
        f", {pooled['intervals']['level']:.0%} interval {span['low']:.2f} to {span['high']:.2f}"
        if span
        else ""
    )
    return (
        f"{said}; all folds together {pooled['image']['accuracy']:.2f}{interval}, on "
        f"{count(pooled['image']['n'], 'image')} of {count(pooled['patient']['n'], 'patient')}"
    )


def _page(metrics: Mapping[str, Any], png: bytes, links: Sequence[str]) -> str:
    title = str(metrics["run"].get("title") or "Cross-validation")
    pooled = metrics["pooled"]
    soft = (
        "Each patient was tested once, by a network that had not seen any image of theirs."
        if pooled
        else "Each fold is a network of its own, tested on images that it had not seen."
    )
    if any(row["threshold"] is not None for row in metrics["folds"]):
        soft += (
            " Each image is called at the threshold of its own fold, which was chosen on that "
            "fold's validation images."
        )
    drawn = (
        f" Intervals: {pooled['intervals']['level']:.0%}, {pooled['intervals']['resamples']} "
        "resamples of patients."
        if pooled
        else ""
    )
    parts = [
        page.heading(title, folds_verdict(metrics)),
        page.paragraph(soft, "soft"),
        page.warnings(metrics["warnings"]),
        page.section(
            "In pictures",
            page.pictures(
                [
                    page.picture(
                        png,
                        "Metrics of each fold",
                        "A dot per fold, a bar at their mean; with all folds together, a diamond "
                        "with its interval over patients.",
                    )
                ]
            ),
        ),
        page.section("All metrics", *(_table(metrics, unit) for unit in metrics["mean"])),
        page.paragraph(
            "The SD tells how much folds differ. It is no standard error: folds share training "
            f"images.{drawn}",
            "soft",
        ),
        page.section("Folds", _folds(metrics), _links(metrics, links)),
    ]
    if config := metrics["run"].get("config"):
        parts.append(
            page.section("How it was made", page.folded("Configuration", page.key_values(config)))
        )
    return page.document(title, "".join(parts), FOOTER)


def _table(metrics: Mapping[str, Any], unit: str) -> str:
    pooled = metrics["pooled"]
    rows: list[list[Any]] = []
    for key, mean in metrics["mean"][unit].items():
        values = [row[unit].get(key) for row in metrics["folds"]]
        whole = None
        if pooled:
            span = pooled["intervals"][unit].get(key) or {}
            whole = Measured(pooled[unit].get(key), span.get("low"), span.get("high"))
        spread = "–" if mean["mean"] is None else f"{mean['mean']:.3f}"
        spread += "" if mean["sd"] is None else f" ± {mean['sd']:.3f}"
        rows.append([_name(key), whole, spread, *values])
    header = ["", "all folds together", "mean ± SD", *(row["name"] for row in metrics["folds"])]
    caption = "Images" if unit == "image" else "Patients, by the mean probability of their images"
    return page.table(header, rows, caption)


def _folds(metrics: Mapping[str, Any]) -> str:
    return page.table(
        ["fold", "images", "patients", "threshold"],
        [
            [row["name"], row["image"]["n"], row["patient"]["n"], row["threshold"]]
            for row in metrics["folds"]
        ],
    )


def _links(metrics: Mapping[str, Any], links: Sequence[str]) -> str:
    items = (
        f'<li><a href="{escape(link)}">Report of {escape(row["name"])}</a></li>'
        for row, link in zip(metrics["folds"], links, strict=False)
    )
    inside = "".join(items)
    return f"<ul>{inside}</ul>" if inside else ""


def _figure(summary: Mapping[str, Any]) -> Figure:
    rows = [(unit, key) for unit in summary["mean"] for key in summary["mean"][unit]]
    rows = [(unit, key) for unit, key in rows if summary["mean"][unit][key]["folds"]]
    figure = Figure(figsize=(6.4, 0.9 + 0.27 * len(rows)), layout="constrained")
    axes = figure.subplots()
    pooled = summary["pooled"]
    for place, (unit, key) in enumerate(rows):
        values = [row[unit].get(key) for row in summary["folds"]]
        known = [value for value in values if value is not None]
        axes.plot(known, [place] * len(known), "o", color=figures.BLUE, markersize=4, alpha=0.7)
        mean = summary["mean"][unit][key]["mean"]
        axes.plot([mean], [place], "|", color=figures.INK, markersize=14)
        if pooled and pooled[unit].get(key) is not None:
            span = pooled["intervals"][unit].get(key)
            if span and span["low"] is not None:
                axes.plot([span["low"], span["high"]], [place + 0.28] * 2, color=figures.ORANGE)
            axes.plot([pooled[unit][key]], [place + 0.28], "D", color=figures.ORANGE, markersize=4)
    axes.set_yticks(range(len(rows)), [f"{_name(key)}, {unit}s" for unit, key in rows], fontsize=8)
    axes.invert_yaxis()
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _name(key: str) -> str:
    words = _NAMES.get(key) or key.removeprefix("patient_").replace("_", " ")
    return words[0].upper() + words[1:]
