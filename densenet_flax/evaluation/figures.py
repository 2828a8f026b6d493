"""The report's pictures, each a matplotlib Figure.

Object-oriented throughout: pyplot keeps global state and may look for a display. Colours are
Okabe and Ito's, and no meaning hangs on colour alone.
"""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from sklearn.metrics import roc_curve

from densenet_flax.evaluation.metrics import image_metrics, patient_metrics, patient_table
from densenet_flax.evaluation.predictions import Predictions

BLUE, ORANGE, INK, GREY = "#0072B2", "#D55E00", "#222222", "#8a8a8a"
_WHITE_TO_BLUE = LinearSegmentedColormap.from_list("blue", ["#ffffff", BLUE])
# Beyond this many rows the names are unreadable, and dots tell more without them.
_NAMED_PATIENTS = 120


def png(figure: Figure, dpi: int = 160) -> bytes:
    """The figure as PNG; without a date inside, so the same figure is the same bytes."""
    FigureCanvasAgg(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
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
            _plain(stages[i], 22),
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
    """Counts and row percentages, shaded by the percentage."""
    cells = image_metrics(predictions)["confusion"]
    counts = np.array([[cells["tn"], cells["fp"]], [cells["fn"], cells["tp"]]])
    totals = counts.sum(axis=1, keepdims=True)
    share = np.divide(counts, totals, out=np.zeros((2, 2)), where=totals > 0)
    names = [_plain(name, 18) for name in predictions.class_names]

    figure = Figure(figsize=(5.0, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.imshow(share, cmap=_WHITE_TO_BLUE, vmin=0, vmax=1)
    for row, column in np.ndindex(2, 2):
        percent = f"{share[row, column]:.1%}" if totals[row, 0] else "no images"
        colour = "white" if share[row, column] > 0.5 else INK
        number = axes.text(column, row, f"{counts[row, column]}", va="bottom", fontsize=22)
        share_text = axes.text(column, row + 0.08, percent, va="top", fontsize=12)
        for text in (number, share_text):
            text.set(color=colour, horizontalalignment="center")
    axes.set_xticks([0, 1], names, fontsize=11)
    axes.set_yticks(
        [0, 1],
        [f"{name}\n{total} images" for name, total in zip(names, totals[:, 0], strict=True)],
        fontsize=11,
    )
    axes.set_xlabel(f"predicted (at P ≥ {predictions.threshold:.3g})", fontsize=11)
    axes.set_ylabel("true", fontsize=11)
    axes.axhline(0.5, color="white", linewidth=4)
    axes.axvline(0.5, color="white", linewidth=4)
    axes.tick_params(length=0)
    axes.spines[:].set_color("#bbbbbb")
    return figure


def roc(predictions: Predictions) -> Figure:
    """ROC of images and of patients (mean probability), with the threshold's own point."""
    figure = Figure(figsize=(5.2, 5.0), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle=":")
    images = image_metrics(predictions)
    patients = patient_metrics(predictions)
    table = patient_table(predictions)
    for unit, result, label, probability, colour, style, marker in (
        ("images", images, predictions.label, predictions.probability, BLUE, "-", "o"),
        ("patients", patients, table.label, table.probability, ORANGE, "--", "s"),
    ):
        if result["roc_auc"] is None:
            reason = _plain(f"{unit}: no ROC, {result['undefined']['roc_auc']}", 60)
            axes.plot([], [], linestyle="none", label=reason)
            continue
        false, true, _ = roc_curve(label, probability)
        name = f"{result['n']} {unit}: AUC {result['roc_auc']:.3f}"
        axes.plot(false, true, color=colour, linestyle=style, linewidth=2, label=name)
        point = (1 - result["specificity"], result["sensitivity"])
        axes.plot(*point, marker=marker, color=colour, markersize=8, markeredgecolor="white")
    if images["roc_auc"] is not None:
        axes.plot([], [], "o", color="#555555", label=f"at P ≥ {predictions.threshold:.3g}")
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(-0.02, 1.02)
    axes.set_aspect("equal")
    axes.set_xlabel("1 − specificity")
    axes.set_ylabel("sensitivity")
    axes.legend(loc="lower right", frameon=False)
    _tidy(axes)
    return figure


def patient_dots(predictions: Predictions) -> Figure:
    """Every image's probability, a line per patient, the mean as a diamond."""
    table = patient_table(predictions)
    order = np.lexsort((table.probability, table.label))
    named = len(order) <= _NAMED_PATIENTS
    figure = Figure(
        figsize=(5.6, 1.6 + min(0.24, 14 / len(order)) * len(order)), layout="constrained"
    )
    axes = figure.subplots()
    axes.axvline(predictions.threshold, color=GREY, linewidth=1)
    labels = []
    for row, i in enumerate(order):
        mine = predictions.probability[predictions.patient == table.patient[i]]
        colour = {0: BLUE, 1: ORANGE}.get(int(table.label[i]), GREY)
        marker = {0: "o", 1: "s"}.get(int(table.label[i]), "^")
        axes.plot(
            mine, np.full(len(mine), row), marker, color=colour, alpha=0.4, markersize=4, zorder=2
        )
        axes.plot(table.probability[i], row, "D", color=INK, markersize=4.5, zorder=3)
        wrong = (table.probability[i] >= predictions.threshold) != bool(table.label[i])
        labels.append(("× " if wrong and table.label[i] >= 0 else "") + _plain(table.patient[i]))
    for boundary in np.flatnonzero(np.diff(table.label[order])):
        axes.axhline(boundary + 0.5, color=GREY, linewidth=0.8, linestyle=":")
    size = 9 if len(order) <= 50 else 6
    axes.set_yticks(np.arange(len(order)) if named else [], labels if named else [], fontsize=size)
    axes.set_ylim(-0.7, len(order) - 0.3)
    axes.set_xlim(-0.02, 1.02)
    axes.set_xlabel(f"P({_plain(predictions.class_names[1], 24)})")
    for label, colour, marker in (
        (_plain(predictions.class_names[0], 18), BLUE, "o"),
        (_plain(predictions.class_names[1], 18), ORANGE, "s"),
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


def _plain(text: str, longest: int = 28) -> str:
    """Makes outside text harmless to matplotlib, which reads $…$ as mathematics."""
    text = str(text).encode("utf-8", "replace").decode()
    text = "".join(c if c.isprintable() else "?" for c in text)
    text = text if len(text) <= longest else text[: longest - 1] + "…"
    return text.replace("$", r"\$")
