"""The report of a comparison: networks beside each other, and how they differ."""

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from densenet_flax.common.errors import InputError
from densenet_flax.common.trees import JsonDict
from densenet_flax.evaluation.metrics.binary import roc_curve
from densenet_flax.evaluation.metrics.bootstrap import LEVEL, RESAMPLES
from densenet_flax.evaluation.metrics.comparison import compare_networks
from densenet_flax.evaluation.metrics.levels import metric_set
from densenet_flax.evaluation.metrics.sample import sample_of
from densenet_flax.evaluation.predictions import Predictions
from densenet_flax.evaluation.report import plotting
from densenet_flax.evaluation.report.headline import not_better_than_chance
from densenet_flax.evaluation.report.rendering import render
from densenet_flax.evaluation.report.run_info import to_json
from densenet_flax.evaluation.report.views import Cell, Measured, Table, format_number, measured
from densenet_flax.evaluation.report.wording import (
    count,
    enumerate_words,
    metric_name,
    title_in_level,
)
from densenet_flax.storage.atomic import replace_files

SCHEMA = 1
_LINE_STYLES = ("-", "--", "-.", ":")
_MAX_PATIENTS = 30


def write_comparison_report(
    directory: str | os.PathLike[str],
    tables: Mapping[str, Predictions],
    baseline: str = "",
    metric: str = "",
    *,
    info: Mapping[str, Any] | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
    level: float = LEVEL,
) -> JsonDict:
    """Writes metrics.json, the figures (PNG and PDF) and report.html of several networks.

    Args:
      directory: made if it does not exist.
      tables: predictions of the same test images, by the names of the networks.
      baseline: see `compare_networks`; so are the metric, resamples and seed.
      metric: of the verdict.
      info: 'title' and 'warnings' (sentences); each may be missing.
      resamples: number of bootstrap resamples for the intervals of each network.
      seed: of the resampling.
      level: of all intervals.

    Returns:
      The content of metrics.json: what `compare_networks` returns, 'schema', 'warnings' and 'run'.

    Raises:
      InputError: as `compare_networks`; or the directory cannot be written to, or has another
        report.
    """
    _refuse_other_report(Path(directory))
    run = to_json(info or {})
    warnings = [str(line) for line in run.pop("warnings", None) or ()]
    result = compare_networks(tables, baseline, metric, resamples=resamples, seed=seed, level=level)
    metrics: JsonDict = {
        "schema": SCHEMA,
        "kind": "comparison",
        **result,
        "warnings": warnings,
        "run": run,
    }
    figures = {"networks": _networks_figure(metrics), "differences": _differences_figure(metrics)}
    if len(metrics["class_names"]) == 2:
        figures["roc"] = _roc_figure(metrics, tables)
    pngs = {name: plotting.png(figure) for name, figure in figures.items()}
    replace_files(
        directory,
        {
            **{f"{name}.png": data for name, data in pngs.items()},
            **{f"{name}.pdf": plotting.pdf(figure) for name, figure in figures.items()},
            "metrics.json": (json.dumps(metrics, indent=2, allow_nan=False) + "\n").encode(),
            "report.html": _page(metrics, tables, pngs),
        },
    )
    return metrics


def _refuse_other_report(directory: Path) -> None:
    """Raises InputError where the files of a run's own report would be replaced."""
    path, kind = directory / "metrics.json", None
    if path.is_file():
        with contextlib.suppress(OSError, ValueError, AttributeError):
            kind = json.loads(path.read_bytes()).get("kind")
    if path.exists() and kind != "comparison":
        raise InputError(f"{path}: is not of a comparison; choose another directory")


def comparison_verdict(metrics: JsonDict) -> str:
    """The one sentence at the top of the page."""
    level, name = metrics["metric"]["level"], metrics["metric"]["name"]
    subject = f"{title_in_level(name)} of {level}s"
    values = {row["name"]: row[level][name] for row in metrics["networks"]}
    known = {network: value for network, value in values.items() if value is not None}
    if not known:
        return f"{subject}: undefined, so nothing is compared"
    best = max(known, key=lambda network: known[network])
    if metrics["baseline"]:
        best = metrics["baseline"]
    groups: dict[str, list[str]] = {"better": [], "worse": [], "open": []}
    for pair in metrics["pairs"]:
        if best not in (pair["a"], pair["b"]):
            continue
        other = pair["b"] if pair["a"] == best else pair["a"]
        row = pair[level][name]
        sign = 0 if row is None else int(row["low"] > 0) - int(row["high"] < 0)
        sign = sign if pair["a"] == best else -sign
        groups[{1: "better", -1: "worse", 0: "open"}[sign]].append(other)
    row = next(row for row in metrics["networks"] if row["name"] == best)
    ends = _ends(measured(row[level], row["intervals"][level], name))
    chance = not_better_than_chance(
        {**row, "class_names": metrics["class_names"]}, row["intervals"]
    )
    chance = f"{chance}, with {best}. " if chance else ""
    start = f"{chance}{subject}: {format_number(known.get(best))}{ends} with {best}"
    findings = {
        "better": "shown to be better",
        "worse": "shown to be worse",
        "open": "not shown to differ from it",
    }
    phrases = [
        f"{enumerate_words(groups[key])} {finding}"
        for key, finding in findings.items()
        if groups[key]
    ]
    return f"{start}; {'; '.join(phrases)}"


def _ends(value: Measured) -> str:
    return "" if value.low is None else f" ({value.low:.2f} to {value.high:.2f})"


def _page(metrics: JsonDict, tables: Mapping[str, Predictions], pngs: Mapping[str, bytes]) -> bytes:
    name = metrics["metric"]["name"]  # which one of the levels may lack
    return render(
        "comparison.html",
        metrics=metrics,
        title=str(metrics["run"].get("title") or "Comparison"),
        verdict=comparison_verdict(metrics),
        pngs=pngs,
        networks=[_networks(metrics, level) for level in ("patient", "image")],
        pairs=[
            _pairs(metrics, level, name)
            for level in ("patient", "image")
            if name in metrics["pairs"][0][level]
        ],
        patients=_patients(tables),
        metric=title_in_level(name),
    )


def _networks(metrics: JsonDict, level: str) -> Table:
    keys = metric_set(len(metrics["class_names"])).levels[level]
    rows: list[list[Cell]] = [
        [
            title_in_level(key),
            *(measured(row[level], row["intervals"][level], key) for row in metrics["networks"]),
        ]
        for key in keys
    ]
    caption = "Images" if level == "image" else "Patients, by the mean probability of their images"
    return Table(["", *(row["name"] for row in metrics["networks"])], rows, caption)


def _pairs(metrics: JsonDict, level: str, name: str) -> Table:
    rows: list[list[Cell]] = []
    for pair in metrics["pairs"]:
        row = pair[level][name]
        cells: list[Cell] = [None, None]
        if row:
            difference = Measured(row["difference"], row["low"], row["high"])
            cells = [difference, _p(row["p_corrected"])]
        rows.append([f"{pair['b']} − {pair['a']}", *cells])
    caption = f"{title_in_level(name)} of {level}s"
    return Table(["", "difference", "p, corrected"], rows, caption)


def _p(value: float) -> str:
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def _patients(tables: Mapping[str, Predictions]) -> Table:
    """Patients whom a network got wrong: those wrong in most networks first."""
    samples = {name: sample_of(table) for name, table in tables.items()}
    first, names = next(iter(samples.values())), next(iter(tables.values())).class_names
    label = first.patient.label
    wrong = {name: (s.patient.predicted != label) & (label >= 0) for name, s in samples.items()}
    times = np.sum([*wrong.values()], axis=0)
    order = np.argsort(-times, kind="stable")
    rows: list[list[Cell]] = [
        [
            str(first.patient_names[i]),
            names[label[i]],
            f"{times[i]} of {len(tables)}",
            *(
                f"{'×' if wrong[name][i] else '✓'} {names[sample.patient.predicted[i]]}"
                for name, sample in samples.items()
            ),
        ]
        for i in order[:_MAX_PATIENTS]
        if times[i]
    ]
    caption = f"{count(int((times > 0).sum()), 'patient')} wrong in at least one network, "
    caption += f"{int((times == len(tables)).sum())} in all"
    return Table(["patient", "true class", "wrong in", *tables], rows, caption)


def _networks_figure(metrics: JsonDict) -> Figure:
    name, rows = metrics["metric"]["name"], metrics["networks"]
    figure = Figure(figsize=(6.4, 1.6 + 0.5 * len(rows)), layout="constrained")
    axes = figure.subplots()
    for y, row in enumerate(rows):
        for level, shift, color, marker in (
            ("patient", -0.12, plotting.ORANGE, "s"),
            ("image", 0.12, plotting.BLUE, "o"),
        ):
            value, span = row[level].get(name), row["intervals"][level].get(name)
            label = f"{level}s" if y == 0 else None
            if span:
                axes.plot([span["low"], span["high"]], [y + shift] * 2, color=color, linewidth=1.6)
            if value is not None:
                axes.plot([value], [y + shift], marker, color=color, label=label)
    _name_rows(figure, [row["name"] for row in rows], f"{metric_name(name)}, with its interval")
    plotting.legend_below(figure, axes, ncols=2)
    return figure


def _differences_figure(metrics: JsonDict) -> Figure:
    level, name = metrics["metric"]["level"], metrics["metric"]["name"]
    pairs = metrics["pairs"]
    figure = Figure(figsize=(6.4, 1.2 + 0.36 * len(pairs)), layout="constrained")
    axes = figure.subplots()
    axes.axvline(0, color=plotting.GREY, linewidth=1)
    for y, pair in enumerate(pairs):
        if row := pair[level][name]:
            is_clear = row["low"] > 0 or row["high"] < 0
            color = plotting.INK if is_clear else plotting.GREY
            axes.plot([row["low"], row["high"]], [y, y], color=color, linewidth=1.8)
            axes.plot([row["difference"]], [y], "D" if is_clear else "o", color=color)
    titles = [f"{pair['b']} − {pair['a']}" for pair in pairs]
    _name_rows(figure, titles, f"difference in {metric_name(name)} of {level}s")
    return figure


def _name_rows(figure: Figure, titles: list[str], xlabel: str) -> None:
    (axes,) = figure.axes
    axes.set_yticks(range(len(titles)), [plotting.plain(title, 40) for title in titles])
    axes.set(ylim=(len(titles) - 0.5, -0.5), xlabel=xlabel)  # the first on top
    plotting.tidy(axes)


def _roc_figure(metrics: JsonDict, tables: Mapping[str, Predictions]) -> Figure:
    level = metrics["metric"]["level"]
    figure, axes = plotting.unit_square("1 − specificity", "sensitivity")
    plotting.dotted_diagonal(axes)
    colors = matplotlib.colormaps["viridis"](np.linspace(0, 0.85, len(tables)))
    for i, (row, table) in enumerate(zip(metrics["networks"], tables.values(), strict=True)):
        sample = sample_of(table)
        rows = sample.patient if level == "patient" else sample.image
        if row[level]["roc_auc"] is None:
            continue
        axes.plot(
            *roc_curve(rows.label == 1, rows.probability),
            _LINE_STYLES[i % len(_LINE_STYLES)],
            color=colors[i],
            label=f"{plotting.plain(row['name'], 24)}: {row[level]['roc_auc']:.3f}",
        )
    if axes.get_legend_handles_labels()[0]:
        plotting.legend_below(figure, axes, ncols=2, title=f"AUC of {level}s")
    return figure
