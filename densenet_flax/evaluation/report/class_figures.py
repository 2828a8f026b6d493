"""Pictures of more than two classes; what they share with two is in `figures`."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from densenet_flax.evaluation.metrics.binary import roc_curve
from densenet_flax.evaluation.predictions import Predictions
from densenet_flax.evaluation.report.figures import (
    GREY,
    INK,
    WHITE_TO_BLUE,
    plain,
    unit_square,
)

# Larger matrices are too dense for a share below every count.
_SHARES_UP_TO = 12
_STYLES = ("-", "--", "-.", (0, (1, 1)))


def confusion_matrix(counts: Sequence[Sequence[int]], names: Sequence[str], unit: str) -> Figure:
    """Counts and row percentages, shaded by the percentage.

    Args:
        counts: A row per true class.
        names: Of the classes; long ones are shortened.
        unit: 'images' or 'patients'.
    """
    cells = np.array(counts)
    classes = len(cells)
    totals = cells.sum(axis=1, keepdims=True)
    share = np.divide(cells, totals, out=np.zeros(cells.shape), where=totals > 0)
    side = min(2.4 + 0.53 * classes, 14)
    figure = Figure(figsize=(side, side - 0.5), layout="constrained")
    axes = figure.subplots()
    axes.imshow(share, cmap=WHITE_TO_BLUE, vmin=0, vmax=1)
    large, small = (14, 9) if classes <= 6 else (11, 7.5)
    if classes > _SHARES_UP_TO:
        large = max(4, 130 // classes)
    for row, column in np.ndindex(classes, classes):
        count = cells[row, column]
        if not count and row != column:
            continue  # an empty cell is white, and 0 in every one hides the rest
        colour = "white" if share[row, column] > 0.65 else INK
        with_share = classes <= _SHARES_UP_TO and totals[row, 0] > 0
        at = "bottom" if with_share else "center"
        axes.text(column, row, f"{count}", va=at, ha="center", fontsize=large, color=colour)
        if with_share:
            percent = f"{share[row, column]:.0%}"
            axes.text(column, row + 0.06, percent, va="top", ha="center", fontsize=small).set_color(
                colour
            )
    size = 10 if classes <= _SHARES_UP_TO else max(5, 150 // classes)
    spoken = [plain(name.replace("_", " "), 26) for name in names]
    axes.set_xticks(
        range(classes), spoken, fontsize=size, rotation=40, ha="right", rotation_mode="anchor"
    )
    rows = [f"{name} ({n})" for name, n in zip(spoken, totals[:, 0], strict=True)]
    axes.set_yticks(range(classes), rows, fontsize=size)
    how = "" if unit == "images" else ", by mean probability"
    axes.set_xlabel(f"called{how}", fontsize=11)
    axes.set_ylabel(f"true (number of {unit})", fontsize=11)
    axes.set_xticks(np.arange(classes - 1) + 0.5, minor=True)
    axes.set_yticks(np.arange(classes - 1) + 0.5, minor=True)
    axes.grid(which="minor", color="#dddddd", linewidth=0.8)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_color("#bbbbbb")
    return figure


def roc(predictions: Predictions, rows: Sequence[Mapping[str, Any]]) -> Figure:
    """ROC of each class against the rest, on images.

    Args:
        predictions: The table.
        rows: 'by_class' of metrics.json, for the areas.
    """
    figure, axes = unit_square("1 − specificity", "recall")
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle=":")
    colours = matplotlib.colormaps["viridis"](np.linspace(0, 0.9, len(rows)))
    order = sorted(range(len(rows)), key=lambda k: -(rows[k]["roc_auc"] or 0))
    for place, k in enumerate(order):
        name, area = plain(rows[k]["class"].replace("_", " "), 22), rows[k]["roc_auc"]
        if area is None:
            axes.plot([], [], linestyle="none", label=f"{name}: {rows[k]['undefined']['roc_auc']}")
            continue
        false, true = roc_curve(predictions.label == k, predictions.probability[:, k])
        style = _STYLES[place % len(_STYLES)]
        axes.plot(
            false,
            true,
            linestyle=style,
            color=colours[place],
            linewidth=1.8,
            label=f"{name}: {area:.3f}",
        )
    if len(rows) <= 20:
        axes.legend(loc="lower right", frameon=False, fontsize=8.5, title="AUC")
    return figure
