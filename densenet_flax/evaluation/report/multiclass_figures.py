"""The figures of more than two classes."""

from collections.abc import Sequence

import matplotlib
import numpy as np
from jaxtyping import Int
from matplotlib.figure import Figure

from densenet_flax.common.trees import JsonDict
from densenet_flax.evaluation.metrics.binary import roc_curve
from densenet_flax.evaluation.predictions import Predictions
from densenet_flax.evaluation.report.plotting import (
    INK,
    dotted_diagonal,
    legend_below,
    plain,
    shade_shares,
    unit_square,
)

# Larger matrices are too dense for a percentage below every count.
_MAX_CLASSES_WITH_PERCENTAGES = 12
_MAX_CLASSES_IN_LEGEND = 20
_LINE_STYLES = ("-", "--", "-.", (0, (1, 1)))


def confusion_matrix(counts: Int[np.ndarray, "K K"], names: Sequence[str], level: str) -> Figure:
    """Draws counts and row percentages, shaded by the percentage.

    Args:
      counts: a row per true class, a column per predicted class.
      names: of the classes; long ones are shortened.
      level: 'images' or 'patients'.
    """
    classes, totals = len(counts), counts.sum(axis=1)
    size = min(2.4 + 0.53 * classes, 14)
    figure = Figure(figsize=(size, size - 0.5), layout="constrained")
    axes = figure.subplots()
    shares = shade_shares(axes, counts)
    with_percentages = classes <= _MAX_CLASSES_WITH_PERCENTAGES
    count_size, percent_size = (14, 9) if classes <= 6 else (11, 7.5)
    label_size = 10
    if not with_percentages:
        count_size, label_size = max(4, 130 // classes), max(5, 150 // classes)
    for row, column in np.ndindex(classes, classes):
        if not counts[row, column] and row != column:
            continue  # an empty cell is white, and a 0 in every one would hide the rest
        color = "white" if shares[row, column] > 0.65 else INK
        percent = f"{shares[row, column]:.0%}" if with_percentages and totals[row] else ""
        va = "bottom" if percent else "center"
        count = f"{counts[row, column]}"
        axes.text(column, row, count, va=va, ha="center", fontsize=count_size, color=color)
        if percent:
            y = row + 0.06  # a gap between the two lines of text
            axes.text(column, y, percent, va="top", ha="center", fontsize=percent_size, color=color)
    labels = [plain(name.replace("_", " "), 26) for name in names]
    axes.set_xticks(
        range(classes), labels, fontsize=label_size, rotation=40, ha="right", rotation_mode="anchor"
    )
    with_totals = [f"{label} ({n})" for label, n in zip(labels, totals, strict=True)]
    axes.set_yticks(range(classes), with_totals, fontsize=label_size)
    suffix = "" if level == "images" else ", by mean probability"
    axes.set_xlabel(f"predicted{suffix}", fontsize=11)
    axes.set_ylabel(f"true (number of {level})", fontsize=11)
    # Minor ticks between the cells carry the grid.
    axes.set_xticks(np.arange(classes - 1) + 0.5, minor=True)
    axes.set_yticks(np.arange(classes - 1) + 0.5, minor=True)
    axes.grid(which="minor", color="#dddddd", linewidth=0.8)
    return figure


def roc(predictions: Predictions, by_class: Sequence[JsonDict]) -> Figure:
    """Draws the ROC of each class against the rest, on images.

    Args:
      predictions: the table.
      by_class: as in metrics.json, for the areas.
    """
    figure, axes = unit_square("1 − specificity", "recall")
    dotted_diagonal(axes)
    colors = matplotlib.colormaps["viridis"](np.linspace(0, 0.9, len(by_class)))
    # Neighbors in the legend have similar curves; color and line style then differ between them.
    order = sorted(range(len(by_class)), key=lambda k: -(by_class[k]["roc_auc"] or 0))
    for rank, k in enumerate(order):
        name, auc = plain(by_class[k]["class"].replace("_", " "), 22), by_class[k]["roc_auc"]
        if auc is None:
            reason = by_class[k]["undefined"]["roc_auc"]
            axes.plot([], [], linestyle="none", label=f"{name}: {reason}")
            continue
        axes.plot(
            *roc_curve(predictions.label == k, predictions.probability[:, k]),
            linestyle=_LINE_STYLES[rank % len(_LINE_STYLES)],
            color=colors[rank],
            linewidth=1.8,
            label=f"{name}: {auc:.3f}",
        )
    if len(by_class) <= _MAX_CLASSES_IN_LEGEND:
        legend_below(figure, axes, ncols=2, fontsize=8.5, title="AUC")
    return figure
