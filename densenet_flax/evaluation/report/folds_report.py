"""The report of a cross-validation: the pooled folds, and each fold on its own."""

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from densenet_flax.common.trees import JsonDict
from densenet_flax.evaluation.metrics.bootstrap import RESAMPLES
from densenet_flax.evaluation.metrics.folds import cross_validation_summary
from densenet_flax.evaluation.predictions import Predictions
from densenet_flax.evaluation.report import plotting
from densenet_flax.evaluation.report.headline import headline
from densenet_flax.evaluation.report.rendering import render
from densenet_flax.evaluation.report.run_info import to_json
from densenet_flax.evaluation.report.views import Cell, Table, measured
from densenet_flax.evaluation.report.wording import count, title_in_level
from densenet_flax.storage.atomic import replace_files

SCHEMA = 1


def write_folds_report(
    directory: str | os.PathLike[str],
    folds: Sequence[Predictions],
    names: Sequence[str],
    info: Mapping[str, Any] | None = None,
    *,
    links: Sequence[str] = (),
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> JsonDict:
    """Writes metrics.json, folds.png, folds.pdf and report.html of a cross-validation.

    Args:
      directory: made if it does not exist.
      folds: the test predictions of each fold.
      names: of the folds.
      info: 'title', 'warnings' (sentences) and 'config'; each may be missing.
      links: to the report of each fold, relative to the directory.
      resamples: number of bootstrap resamples for the pooled intervals.
      seed: of the resampling.

    Returns:
      The content of metrics.json: what `cross_validation_summary` returns, 'schema',
      'class_names', 'warnings' and 'run'.

    Raises:
      InputError: there are no folds, their classes differ, or the directory cannot be written to.
    """
    run = to_json(info or {})
    summary = cross_validation_summary(folds, names, resamples, seed)
    warnings = [str(line) for line in run.pop("warnings", None) or ()]
    if summary["pooled"] is None:
        warnings.append(f"The folds are not pooled: {summary['pooled_undefined']}.")
    metrics: JsonDict = {
        "schema": SCHEMA,
        "kind": "cross-validation",
        "class_names": list(folds[0].class_names),
        **summary,
        "warnings": warnings,
        "run": run,
    }
    text = json.dumps(metrics, indent=2, allow_nan=False) + "\n"
    figure = _figure(metrics)
    png = plotting.png(figure)
    replace_files(
        directory,
        {
            "folds.png": png,
            "folds.pdf": plotting.pdf(figure),
            "metrics.json": text.encode(),
            "report.html": _page(metrics, png, links),
        },
    )
    return json.loads(text)  # as a reader of the file gets it: lists for tuples


def folds_verdict(summary: JsonDict) -> str:
    """The one sentence at the top of the page."""
    mean, pooled = summary["mean"]["image"]["accuracy"], summary["pooled"]
    folds = count(len(summary["folds"]), "fold")
    over_folds = f"Accuracy {_mean_sd(mean, 2)} over {folds} (mean ± SD)"
    if pooled is None:
        return over_folds
    whole = headline({**pooled, "class_names": summary["class_names"]}, pooled["intervals"])
    return f"{whole} (folds pooled). {over_folds}"


def _page(metrics: JsonDict, png: bytes, links: Sequence[str]) -> bytes:
    folds = metrics["folds"]
    return render(
        "folds.html",
        metrics=metrics,
        title=str(metrics["run"].get("title") or "Cross-validation"),
        verdict=folds_verdict(metrics),
        png=png,
        level_tables=[_table(metrics, level) for level in metrics["mean"]],
        folds=Table.from_records(
            [
                {
                    "fold": row["name"],
                    "images": row["image"]["n"],
                    "patients": row["patient"]["n"],
                    "threshold": row["threshold"],
                }
                for row in folds
            ]
        ),
        # Without links, as for tables of another tool, there is no list.
        links=[(row["name"], link) for row, link in zip(folds, links, strict=False)],
    )


def _table(metrics: JsonDict, level: str) -> Table:
    pooled = metrics["pooled"]
    rows: list[list[Cell]] = []
    for key, mean in metrics["mean"][level].items():
        whole = measured(pooled[level], pooled["intervals"][level], key) if pooled else None
        values = [row[level].get(key) for row in metrics["folds"]]
        rows.append([title_in_level(key), whole, _mean_sd(mean, 3), *values])
    names = [row["name"] for row in metrics["folds"]]
    caption = "Images" if level == "image" else "Patients, by the mean probability of their images"
    return Table(["", "pooled", "mean ± SD", *names], rows, caption)


def _mean_sd(mean: JsonDict, digits: int) -> str:
    if mean["mean"] is None:
        return "–"
    sd = "" if mean["sd"] is None else f" ± {mean['sd']:.{digits}f}"
    return f"{mean['mean']:.{digits}f}{sd}"


def _figure(summary: JsonDict) -> Figure:
    rows = [(level, key) for level in summary["mean"] for key in summary["mean"][level]]
    # A metric that no fold has would be an empty line.
    rows = [(level, key) for level, key in rows if summary["mean"][level][key]["folds"]]
    figure = Figure(figsize=(6.4, 0.9 + 0.27 * len(rows)), layout="constrained")
    axes = figure.subplots()
    pooled = summary["pooled"]
    for y, (level, key) in enumerate(rows):
        # The folds on the line, the pooled value and its interval a little below it.
        values = [row[level].get(key) for row in summary["folds"]]
        known = [value for value in values if value is not None]
        axes.plot(known, [y] * len(known), "o", color=plotting.BLUE, markersize=4, alpha=0.7)
        mean = summary["mean"][level][key]["mean"]
        axes.plot([mean], [y], "|", color=plotting.INK, markersize=14)
        if pooled and pooled[level].get(key) is not None:
            interval = pooled["intervals"][level].get(key)
            if interval and interval["low"] is not None:
                ends = [interval["low"], interval["high"]]
                axes.plot(ends, [y + 0.28] * 2, color=plotting.ORANGE)
            axes.plot([pooled[level][key]], [y + 0.28], "D", color=plotting.ORANGE, markersize=4)
    labels = [f"{title_in_level(key)}, {level}s" for level, key in rows]
    axes.set_yticks(range(len(rows)), labels, fontsize=8)
    axes.invert_yaxis()
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    return figure
