"""The report's pictures, each a matplotlib Figure.

Object-oriented throughout: pyplot keeps global state and may look for a display. Colours are
Okabe and Ito's, and no meaning hangs on colour alone.
"""

import io
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from densenet_flax.evaluation.metrics.binary import precision_recall_curve, roc_curve
from densenet_flax.evaluation.metrics.point_metrics import image_metrics, patient_metrics
from densenet_flax.evaluation.metrics.sample import sample_of
from densenet_flax.evaluation.predictions import Predictions

BLUE, ORANGE, INK, GREY = "#0072B2", "#D55E00", "#222222", "#8a8a8a"
WHITE_TO_BLUE = LinearSegmentedColormap.from_list("blue", ["#ffffff", BLUE])
# Beyond this many rows the names are unreadable, and dots tell more without them.
_NAMED_PATIENTS = 120


def png(figure: Figure, dpi: int = 160) -> bytes:
    """The figure as PNG; without a date inside, so the same figure is the same bytes."""
    FigureCanvasAgg(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    return buffer.getvalue()


def pdf(figure: Figure) -> bytes:
    """The figure as PDF, its letters as letters; without a date inside."""
    buffer = io.BytesIO()
    with matplotlib.rc_context({"pdf.fonttype": 42}):
        figure.savefig(buffer, format="pdf", metadata={"CreationDate": None, "Producer": None})
    return buffer.getvalue()


def training_curves(history: Sequence[Mapping[str, Any]]) -> Figure:
    """Loss and accuracy over all epochs, training and validation, with the stages marked.

    Args:
        history: One mapping per epoch with 'stage', 'global_epoch', 'train_loss',
            'train_accuracy', 'validation_loss' and 'validation_accuracy'; a missing or None
            value leaves a gap.
    """
    figure = Figure(figsize=(5.6, 5.4), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True)
    epochs = [int(row.get("global_epoch", i)) + 1 for i, row in enumerate(history)]
    for axes, name in ((top, "loss"), (bottom, "accuracy")):
        for side, colour, style in (("train", BLUE, "o-"), ("validation", ORANGE, "s--")):
            values = [_number(row.get(f"{side}_{name}")) for row in history]
            if np.isfinite(values).any():
                axes.plot(epochs, values, style, color=colour, label=side, markersize=4)
        _tidy(axes)
        axes.set_ylabel(name)
    bottom.set_xlabel("epoch")
    bottom.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    if epochs:
        bottom.set_xlim(min(epochs) - 0.5, max(epochs) + 0.5)
    if top.lines:
        bottom.legend(frameon=False, loc="best")
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
            rotation=0 if len(starts) <= 3 else 35,  # many short stages: no name over the next
            rotation_mode="anchor",
        )


def confusion_matrix(predictions: Predictions) -> Figure:
    """Counts and row percentages, shaded by the percentage: images, and patients if they exist."""
    levels = [("images", image_metrics(predictions)), ("patients", patient_metrics(predictions))]
    levels = [(unit, found) for unit, found in levels if found["confusion"]]
    names = [plain(name, 18) for name in predictions.class_names]
    figure = Figure(figsize=(3.0 * len(levels) + 0.5, 3.5), layout="constrained")
    panels = figure.subplots(1, len(levels), squeeze=False)[0]
    for axes, (unit, found) in zip(panels, levels, strict=True):
        cells = found["confusion"]
        counts = np.array([[cells["tn"], cells["fp"]], [cells["fn"], cells["tp"]]])
        totals = counts.sum(axis=1, keepdims=True)
        share = np.divide(counts, totals, out=np.zeros((2, 2)), where=totals > 0)
        axes.imshow(share, cmap=WHITE_TO_BLUE, vmin=0, vmax=1)
        for row, column in np.ndindex(2, 2):
            percent = f"{share[row, column]:.1%}" if totals[row, 0] else f"no {unit}"
            colour = "white" if share[row, column] > 0.5 else INK
            number = axes.text(column, row, f"{counts[row, column]}", va="bottom", fontsize=22)
            share_text = axes.text(column, row + 0.08, percent, va="top", fontsize=12)
            for text in (number, share_text):
                text.set(color=colour, horizontalalignment="center")
        axes.set_xticks([0, 1], names, fontsize=11)
        rows = [f"{name}\n{n} {unit}" for name, n in zip(names, totals[:, 0], strict=True)]
        axes.set_yticks(
            [0, 1], rows, fontsize=11, rotation=90, va="center", multialignment="center"
        )
        how = "" if unit == "images" else "mean "
        axes.set_xlabel(f"predicted ({how}P ≥ {predictions.threshold:.3g})", fontsize=11)
        axes.axhline(0.5, color="white", linewidth=4)
        axes.axvline(0.5, color="white", linewidth=4)
        axes.tick_params(length=0)
        axes.spines[:].set_color("#bbbbbb")
    panels[0].set_ylabel("true", fontsize=11)
    return figure


def roc(predictions: Predictions, intervals: Mapping[str, Any] | None = None) -> Figure:
    """ROC of images and of patients (mean probability), with the threshold's own point.

    Args:
        predictions: The table.
        intervals: As `intervals.intervals` returns them, for the legend.
    """
    figure, axes = unit_square("1 − specificity", "sensitivity")
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle=":")
    for unit, found, label, probability, style in _levels(predictions):
        if not _exists(axes, unit, found, "roc_auc", "ROC"):
            continue
        false, true = roc_curve(label == 1, probability)
        name = f"{found['n']} {unit}: AUC {found['roc_auc']:.3f}"
        axes.plot(false, true, label=name + _span(intervals, unit, "roc_auc"), **style)
        _mark(axes, 1 - found["specificity"], found["sensitivity"], style)
    return _with_legend(figure, axes, predictions, "lower right")


def precision_recall(
    predictions: Predictions, intervals: Mapping[str, Any] | None = None
) -> Figure:
    """Precision over sensitivity, with the threshold's own point; arguments as for `roc`."""
    figure, axes = unit_square("sensitivity (recall)", "precision")
    for unit, found, label, probability, style in _levels(predictions):
        if not _exists(axes, unit, found, "pr_auc", "precision"):
            continue
        axes.axhline(np.mean(label), color=style["color"], linewidth=1, linestyle=":")
        precision, recall = precision_recall_curve(label == 1, probability)
        name = f"{found['n']} {unit}: AP {found['pr_auc']:.3f}"
        name += _span(intervals, unit, "pr_auc")
        axes.plot(recall, precision, drawstyle="steps-post", label=name, **style)
        if found["precision"] is not None:
            _mark(axes, found["sensitivity"], found["precision"], style)
    return _with_legend(figure, axes, predictions, "lower left")


def reliability(calibration: Mapping[str, Any], positive: str | None) -> Figure:
    """Share that is positive over the probability said, before and after, and how many images.

    Args:
        calibration: As 'calibration' in metrics.json.
        positive: Name of the positive class; None of more than two classes, where it is the
            share that is right over the probability of the likeliest class.
    """
    test, of = calibration["test"], "" if positive else "_top_label"
    event = plain(positive, 24) if positive else "right"
    said = f"P({event})" if positive else "probability of the likeliest class"
    sides = [("before", "as the network says", BLUE, "o-"), ("after", "calibrated", ORANGE, "s--")]
    sides = [side for side in sides if test[side[0]]]
    figure = Figure(figsize=(5.4, 6.2), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    top.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle=":")
    for shift, (side, name, colour, style) in zip((-0.004, 0.004), sides, strict=False):
        found = test[side]
        rows = [row for row in found[f"bins{of}"] if row["count"]]
        x = [row["confidence"] for row in rows]
        label = f"{name}: ECE {found[f'ece{of}']:.3f}"
        top.plot(x, [row["accuracy"] for row in rows], style, color=colour, label=label)
        for row in rows:
            if row.get("accuracy_interval"):
                at = row["confidence"] + shift
                top.plot([at, at], row["accuracy_interval"], color=colour, alpha=0.45, zorder=1)
        edges = [row["lower_edge"] for row in found[f"bins{of}"]] + [1.0]
        heights = [row["count"] for row in found[f"bins{of}"]]
        bottom.stairs(heights, edges, color=colour, linestyle=style[1:], linewidth=1.6)
    top.set_ylabel(f"share that is {event}")
    bottom.set_ylabel("images")
    bottom.set_xlabel(f"{said}, {calibration['bins']} bins")
    top.set_xlim(-0.02, 1.02)
    top.set_ylim(-0.02, 1.02)
    top.legend(frameon=False, loc="best")
    for axes in (top, bottom):
        _tidy(axes)
    return figure


def _levels(predictions: Predictions) -> list[tuple[str, Any, np.ndarray, np.ndarray, Any]]:
    """What the two curves have in common: (unit, metrics, label, probability, line style)."""
    patient = sample_of(predictions).patient
    blue = {"color": BLUE, "linestyle": "-", "linewidth": 2}
    orange = {"color": ORANGE, "linestyle": "--", "linewidth": 2}
    images, patients = image_metrics(predictions), patient_metrics(predictions)
    return [
        ("images", images, predictions.label, predictions.probability, blue),
        ("patients", patients, patient.label, patient.probability, orange),
    ]


def unit_square(x: str, y: str) -> tuple[Figure, Axes]:
    """Axes from 0 to 1 both ways."""
    figure = Figure(figsize=(5.2, 5.0), layout="constrained")
    axes = figure.subplots()
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(-0.02, 1.02)
    axes.set_aspect("equal")
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    _tidy(axes)
    return figure, axes


def _exists(axes: Axes, unit: str, found: Mapping[str, Any], name: str, curve: str) -> bool:
    if found[name] is None:
        reason = plain(f"{unit}: no {curve}, {found['undefined'][name]}", 60)
        axes.plot([], [], linestyle="none", label=reason)
    return found[name] is not None


def _span(intervals: Mapping[str, Any] | None, unit: str, name: str) -> str:
    span = intervals and intervals[unit[:-1]][name]
    return f" ({span['low']:.3f}–{span['high']:.3f})" if span else ""


def _mark(axes: Axes, x: float, y: float, style: Mapping[str, Any]) -> None:
    marker = "o" if style["color"] == BLUE else "s"
    axes.plot(x, y, marker, color=style["color"], markersize=8, markeredgecolor="white")


def _with_legend(
    figure: Figure,
    axes: Axes,
    predictions: Predictions,
    where: Literal["lower right", "lower left"],
) -> Figure:
    if len(np.unique(predictions.label)) == 2:
        axes.plot([], [], "o", color="#555555", label=f"at P ≥ {predictions.threshold:.3g}")
    axes.legend(loc=where, frameon=False)
    return figure


def patient_dots(predictions: Predictions) -> Figure:
    """Every image's probability, a line per patient, the mean as a diamond."""
    sample = sample_of(predictions)
    patient = sample.patient
    order = np.lexsort((patient.probability, patient.label))
    named = len(order) <= _NAMED_PATIENTS
    figure = Figure(
        figsize=(5.6, 1.6 + min(0.24, 14 / len(order)) * len(order)), layout="constrained"
    )
    axes = figure.subplots()
    axes.axvline(predictions.threshold, color=GREY, linewidth=1)
    labels = []
    for row, i in enumerate(order):
        mine = predictions.probability[predictions.patient == sample.patient_names[i]]
        colour = {0: BLUE, 1: ORANGE}.get(int(patient.label[i]), GREY)
        marker = {0: "o", 1: "s"}.get(int(patient.label[i]), "^")
        axes.plot(
            mine, np.full(len(mine), row), marker, color=colour, alpha=0.4, markersize=4, zorder=2
        )
        axes.plot(patient.probability[i], row, "D", color=INK, markersize=4.5, zorder=3)
        wrong = (patient.probability[i] >= predictions.threshold) != bool(patient.label[i])
        mark = "× " if wrong and patient.label[i] >= 0 else ""
        labels.append(mark + plain(sample.patient_names[i]))
    for boundary in np.flatnonzero(np.diff(patient.label[order])):
        axes.axhline(boundary + 0.5, color=GREY, linewidth=0.8, linestyle=":")
    size = 9 if len(order) <= 50 else 6
    axes.set_yticks(np.arange(len(order)) if named else [], labels if named else [], fontsize=size)
    axes.set_ylim(-0.7, len(order) - 0.3)
    axes.set_xlim(-0.02, 1.02)
    axes.set_xlabel(f"P({plain(predictions.class_names[1], 24)})")
    for label, colour, marker in (
        (plain(predictions.class_names[0], 18), BLUE, "o"),
        (plain(predictions.class_names[1], 18), ORANGE, "s"),
        ("patient's mean", INK, "D"),
    ):
        axes.plot([], [], marker, color=colour, markersize=5, label=label)
    figure.legend(
        *axes.get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False
    )
    _tidy(axes)
    axes.grid(axis="y", visible=False)
    return figure


def _tidy(axes: Axes) -> None:
    axes.grid(color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _number(value: Any) -> float:
    return float("nan") if value is None else float(value)


def plain(text: str, longest: int = 28) -> str:
    """Makes outside text harmless to matplotlib, which reads $…$ as mathematics."""
    text = str(text).encode("utf-8", "replace").decode()
    text = "".join(c if c.isprintable() else "?" for c in text)
    text = text if len(text) <= longest else text[: longest - 1] + "…"
    return text.replace("$", r"\$")
