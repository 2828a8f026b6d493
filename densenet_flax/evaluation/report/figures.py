"""The figures of two classes, the training curves and the reliability diagram."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Int
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from densenet_flax.common.trees import JsonDict
from densenet_flax.evaluation.metrics.binary import precision_recall_curve, roc_curve
from densenet_flax.evaluation.metrics.levels import level_metrics
from densenet_flax.evaluation.metrics.sample import Rows, sample_of
from densenet_flax.evaluation.predictions import Predictions
from densenet_flax.evaluation.report.plotting import (
    BLUE,
    GREY,
    INK,
    ORANGE,
    dotted_diagonal,
    legend_below,
    plain,
    shade_shares,
    tidy,
    unit_square,
)
from densenet_flax.evaluation.report.wording import confusion_counts

# With more rows the names are unreadable, and without them the dots have more room.
_MAX_NAMED_PATIENTS = 120


def training_curves(history: Sequence[Mapping[str, Any]]) -> Figure:
    """Draws loss, accuracy and validation AUC over all epochs, and marks the stages.

    Args:
      history: one mapping per epoch with 'stage', 'global_epoch', 'train_loss', 'train_accuracy',
        'validation_loss', 'validation_accuracy' and 'validation_auc'; a missing or None value
        leaves a gap.
    """
    figure = Figure(figsize=(5.6, 5.4), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True)
    # Counted from 1 on the axis, and through all stages.
    epochs = [int(row.get("global_epoch", i)) + 1 for i, row in enumerate(history)]
    for axes, quantity in ((top, "loss"), (bottom, "accuracy")):
        # Color, marker and line style all tell the two apart, also in print.
        for subset, color, style in (("train", BLUE, "o-"), ("validation", ORANGE, "s--")):
            # As floats, None is NaN, which leaves a gap in the line.
            values = np.array([row.get(f"{subset}_{quantity}") for row in history], np.float64)
            if np.isfinite(values).any():
                axes.plot(epochs, values, style, color=color, label=subset, markersize=4)
        tidy(axes)
        axes.set_ylabel(quantity)
    areas = np.array([row.get("validation_auc") for row in history], np.float64)
    if np.isfinite(areas).any():
        bottom.plot(epochs, areas, "^:", color=INK, label="validation AUC", markersize=4)
        bottom.set_ylabel("accuracy, AUC")
    bottom.set_xlabel("epoch")
    bottom.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    if epochs:
        bottom.set_xlim(min(epochs) - 0.5, max(epochs) + 0.5)
    if top.lines:
        legend_below(figure, top, ncols=2)
    _mark_stages([str(row.get("stage", "")) for row in history], epochs, (top, bottom))
    return figure


def _mark_stages(stages: list[str], epochs: list[int], panels: Sequence[Axes]) -> None:
    starts = [i for i, stage in enumerate(stages) if i == 0 or stage != stages[i - 1]]
    for i in starts:
        if i > 0:
            for axes in panels:
                axes.axvline((epochs[i - 1] + epochs[i]) / 2, color=GREY, linewidth=1)
        panels[0].annotate(
            plain(stages[i], 22),
            (epochs[i] - 0.5, 1),
            xycoords=("data", "axes fraction"),
            xytext=(3, 3),
            textcoords="offset points",
            fontsize=9,
            color="#555555",
            rotation=0 if len(starts) <= 3 else 35,  # names of many short stages would overlap
            rotation_mode="anchor",
        )


def confusion_matrix(predictions: Predictions) -> Figure:
    """Draws counts and row percentages of images, and of patients if they have one class each."""
    points = level_metrics(sample_of(predictions), predictions.class_names)
    levels = [("images", points["image"]), ("patients", points["patient"])]
    levels = [(level, metrics) for level, metrics in levels if metrics["confusion"]]
    names = [plain(name, 18) for name in predictions.class_names]
    figure = Figure(figsize=(3.0 * len(levels) + 0.5, 3.5), layout="constrained")
    panels = figure.subplots(1, len(levels), squeeze=False)[0]
    for axes, (level, metrics) in zip(panels, levels, strict=True):
        _draw_confusion(axes, confusion_counts(metrics), names, level)
        mean = "" if level == "images" else "mean "
        axes.set_xlabel(f"predicted ({mean}P ≥ {predictions.threshold:.3g})", fontsize=11)
    panels[0].set_ylabel("true", fontsize=11)
    return figure


def _draw_confusion(
    axes: Axes, counts: Int[np.ndarray, "2 2"], names: list[str], level: str
) -> None:
    totals, shares = counts.sum(axis=1), shade_shares(axes, counts)
    for row, column in np.ndindex(2, 2):
        percent = f"{shares[row, column]:.1%}" if totals[row] else f"no {level}"
        color = "white" if shares[row, column] > 0.5 else INK
        style: dict[str, Any] = {"color": color, "ha": "center"}
        axes.text(column, row, f"{counts[row, column]}", va="bottom", fontsize=22, **style)
        axes.text(column, row + 0.08, percent, va="top", fontsize=12, **style)
    axes.set_xticks([0, 1], names, fontsize=11)
    rows = [f"{name}\n{n} {level}" for name, n in zip(names, totals, strict=True)]
    axes.set_yticks([0, 1], rows, fontsize=11, rotation=90, va="center", multialignment="center")
    axes.axhline(0.5, color="white", linewidth=4)
    axes.axvline(0.5, color="white", linewidth=4)


@dataclass(frozen=True)
class _Level:
    """One of the two curves of a figure: that of images or that of patients."""

    name: Literal["images", "patients"]
    metrics: JsonDict
    rows: Rows
    marker: str
    style: dict[str, Any]

    def explain_missing(self, axes: Axes, key: str, curve: str) -> None:
        """An entry of the legend that says why there is no curve."""
        reason = plain(f"{self.name}: no {curve}, {self.metrics['undefined'][key]}", 60)
        axes.plot([], [], linestyle="none", label=reason)

    def legend(self, key: str, area: str, intervals: JsonDict | None) -> str:
        """The entry of the legend: the area under the curve, with its interval if there is one."""
        interval = intervals and intervals[self.name.removesuffix("s")][key]
        limits = f" ({interval['low']:.3f}–{interval['high']:.3f})" if interval else ""
        return f"{self.metrics['n']} {self.name}: {area} {self.metrics[key]:.3f}{limits}"

    def mark_threshold(self, axes: Axes, x: float, y: float) -> None:
        """Marks where the threshold in use is on the curve."""
        color = self.style["color"]
        axes.plot(x, y, self.marker, color=color, markersize=8, markeredgecolor="white")


def _levels(predictions: Predictions) -> list[_Level]:
    sample = sample_of(predictions)
    points = level_metrics(sample, predictions.class_names)
    # Line style and marker differ as well: no meaning depends on color alone.
    solid = {"color": BLUE, "linestyle": "-", "linewidth": 2}
    dashed = {"color": ORANGE, "linestyle": "--", "linewidth": 2}
    return [
        _Level("images", points["image"], sample.image, "o", solid),
        _Level("patients", points["patient"], sample.patient, "s", dashed),
    ]


def roc(predictions: Predictions, intervals: JsonDict | None = None) -> Figure:
    """Draws the ROC of images and of patients (mean probability), and marks the threshold.

    Args:
      predictions: the table.
      intervals: as in metrics.json, for the legend.
    """
    figure, axes = unit_square("1 − specificity", "sensitivity")
    dotted_diagonal(axes)
    for level in _levels(predictions):
        metrics, rows = level.metrics, level.rows
        if metrics["roc_auc"] is None:
            level.explain_missing(axes, "roc_auc", "ROC")
            continue
        label = level.legend("roc_auc", "AUC", intervals)
        axes.plot(*roc_curve(rows.label == 1, rows.probability), label=label, **level.style)
        level.mark_threshold(axes, 1 - metrics["specificity"], metrics["sensitivity"])
    _add_legend(figure, axes, predictions)
    return figure


def precision_recall(predictions: Predictions, intervals: JsonDict | None = None) -> Figure:
    """Draws precision over sensitivity, and marks the threshold; arguments as for `roc`."""
    figure, axes = unit_square("sensitivity (recall)", "precision")
    for level in _levels(predictions):
        metrics, rows = level.metrics, level.rows
        if metrics["pr_auc"] is None:
            level.explain_missing(axes, "pr_auc", "precision")
            continue
        # The precision of a classifier that guesses: the fraction that is positive.
        axes.axhline(np.mean(rows.label), color=level.style["color"], linewidth=1, linestyle=":")
        precision, recall = precision_recall_curve(rows.label == 1, rows.probability)
        label = level.legend("pr_auc", "AP", intervals)
        # Steps, because average precision is the area under steps and not under straight lines.
        axes.plot(recall, precision, drawstyle="steps-post", label=label, **level.style)
        if metrics["precision"] is not None:
            level.mark_threshold(axes, metrics["sensitivity"], metrics["precision"])
    _add_legend(figure, axes, predictions)
    return figure


def decision_curve(curve: JsonDict) -> Figure:
    """Draws net benefit over the probability at which a reader would act.

    Args:
      curve: as 'decision_curve' in metrics.json.
    """
    figure = Figure(figsize=(5.4, 4.6), layout="constrained")
    axes = figure.subplots()
    thresholds = np.array(curve["threshold"])
    top = 0.0
    for level, color, style in (("image", BLUE, "-"), ("patient", ORANGE, "--")):
        if curve[level] is None:
            continue
        share, benefit = curve[level]["prevalence"], curve[level]["net_benefit"]
        top = max(top, share, *benefit)
        everyone = share - (1 - share) * thresholds / (1 - thresholds)
        axes.plot(thresholds, benefit, style, color=color, linewidth=2, label=f"{level}s")
        axes.plot(thresholds, everyone, ":", color=color, label=f"all {level}s positive")
    axes.axhline(0, color=GREY, linewidth=1, label="none positive")
    axes.set(xlim=(0, 1), ylim=(-0.05, 1.08 * top))
    axes.set(xlabel=f"threshold on the {curve['probability']} probability", ylabel="net benefit")
    tidy(axes)
    legend_below(figure, axes, ncols=2)
    return figure


def _add_legend(figure: Figure, axes: Axes, predictions: Predictions) -> None:
    # Without both classes there is no curve on which a threshold could be marked.
    if len(np.unique(predictions.label)) == 2:
        axes.plot([], [], "o", color="#555555", label=f"at P ≥ {predictions.threshold:.3g}")
    legend_below(figure, axes)


def reliability(calibration: JsonDict, positive: str | None) -> Figure:
    """Draws observed frequency over predicted probability, and how many images are in a bin.

    Args:
      calibration: as 'calibration' in metrics.json.
      positive: name of the positive class. None if there are more than two classes: then it is
        how often the likeliest class is correct over its probability.
    """
    test, suffix = calibration["test"], "" if positive else "_top_label"
    event = plain(positive, 24) if positive else "correct"
    probability = f"P({event})" if positive else "probability of the likeliest class"
    figure = Figure(figsize=(5.4, 6.2), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    dotted_diagonal(top)
    for state, name, color, style, shift in (
        ("before", "uncalibrated", BLUE, "o-", -0.004),
        ("after", "calibrated", ORANGE, "s--", 0.004),
    ):
        if test[state] is None:
            continue
        bins = test[state][f"bins{suffix}"]
        # An empty bin has no frequency; its count is a gap in the lower panel.
        occupied = [row for row in bins if row["count"]]
        top.plot(
            [row["confidence"] for row in occupied],
            [row["accuracy"] for row in occupied],
            style,
            color=color,
            label=f"{name}: ECE {test[state][f'ece{suffix}']:.3f}",
        )
        for row in occupied:
            if row.get("accuracy_interval"):
                x = row["confidence"] + shift  # so that the bars of both stay apart
                top.plot([x, x], row["accuracy_interval"], color=color, alpha=0.45, zorder=1)
        edges = [row["lower_edge"] for row in bins] + [1.0]
        counts = [row["count"] for row in bins]
        bottom.stairs(counts, edges, color=color, linestyle=style[1:], linewidth=1.6)
    top.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), ylabel=f"fraction that is {event}")
    bottom.set(ylabel="images", xlabel=f"{probability}, {calibration['bins']} bins")
    legend_below(figure, top, ncols=2)
    for axes in (top, bottom):
        tidy(axes)
    return figure


def patient_dots(predictions: Predictions) -> Figure:
    """Draws every image's probability, a line per patient, with the mean as a diamond."""
    sample = sample_of(predictions)
    patients = sample.patient
    # By class, and within a class by the mean: wrong patients are next to the boundary.
    order = np.lexsort((patients.probability, patients.label))
    n = len(order)
    figure = Figure(figsize=(5.6, 1.6 + min(0.24, 14 / n) * n), layout="constrained")
    axes = figure.subplots()
    axes.axvline(predictions.threshold, color=GREY, linewidth=1)
    # −1 is the label of a patient with images of both classes, who cannot be wrong.
    styles = {0: (BLUE, "o"), 1: (ORANGE, "s"), -1: (GREY, "^")}
    names = []
    for row, i in enumerate(order):
        label, mean = int(patients.label[i]), patients.probability[i]
        probability = predictions.probability[predictions.patient == sample.patient_names[i]]
        color, marker = styles[label]
        y = np.full(len(probability), row)
        axes.plot(probability, y, marker, color=color, alpha=0.4, markersize=4, zorder=2)
        axes.plot(mean, row, "D", color=INK, markersize=4.5, zorder=3)
        wrong = label >= 0 and (mean >= predictions.threshold) != bool(label)
        names.append(("× " if wrong else "") + plain(sample.patient_names[i]))
    for boundary in np.flatnonzero(np.diff(patients.label[order])):
        axes.axhline(boundary + 0.5, color=GREY, linewidth=0.8, linestyle=":")
    if n <= _MAX_NAMED_PATIENTS:
        axes.set_yticks(np.arange(n), names, fontsize=9 if n <= 50 else 6)
    else:
        axes.set_yticks([])
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.7, n - 0.3))
    axes.set_xlabel(f"P({plain(predictions.class_names[1], 24)})")
    # Entries of their own: the lines above would give one entry per patient.
    for text, color, marker in (
        (plain(predictions.class_names[0], 18), BLUE, "o"),
        (plain(predictions.class_names[1], 18), ORANGE, "s"),
        ("patient's mean", INK, "D"),
    ):
        axes.plot([], [], marker, color=color, markersize=5, label=text)
    legend_below(figure, axes, ncols=3)
    tidy(axes)
    axes.grid(axis="y", visible=False)
    return figure
