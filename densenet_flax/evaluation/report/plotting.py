"""What all figures share: colors, axes, safe text, and files whose bytes depend on nothing else.

Object-oriented throughout: pyplot keeps global state and may look for a display. The colors are
Okabe and Ito's, and no meaning depends on color alone.
"""

import io
from typing import Any

import matplotlib
import numpy as np
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.legend import Legend

BLUE, ORANGE, INK, GREY = "#0072B2", "#D55E00", "#222222", "#8a8a8a"
WHITE_TO_BLUE = LinearSegmentedColormap.from_list("blue", ["#ffffff", BLUE])


def png(figure: Figure, dpi: int = 160) -> bytes:
    """The figure as PNG; without a date inside, so the same figure is the same bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    return buffer.getvalue()


def pdf(figure: Figure) -> bytes:
    """The figure as PDF, its letters as letters (TrueType); without a date inside."""
    buffer = io.BytesIO()
    with matplotlib.rc_context({"pdf.fonttype": 42}):
        figure.savefig(buffer, format="pdf", metadata={"CreationDate": None, "Producer": None})
    return buffer.getvalue()


def plain(text: str, max_length: int = 28) -> str:
    """Makes text from outside harmless to matplotlib, which reads $…$ as mathematics."""
    # A lone surrogate, from a file name that is not UTF-8, cannot be drawn.
    text = str(text).encode("utf-8", "replace").decode()
    text = "".join(c if c.isprintable() else "?" for c in text)
    text = text if len(text) <= max_length else text[: max_length - 1] + "…"
    return text.replace("$", r"\$")


def tidy(axes: Axes) -> None:
    """A light grid behind the data, and no frame at the top and on the right."""
    axes.grid(color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def unit_square(xlabel: str, ylabel: str) -> tuple[Figure, Axes]:
    """A square figure with axes from 0 to 1, for curves of two rates."""
    figure = Figure(figsize=(5.2, 5.6), layout="constrained")
    axes = figure.subplots()
    axes.set(xlabel=xlabel, ylabel=ylabel, aspect="equal")
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))  # room for lines along the edges
    tidy(axes)
    return figure, axes


def legend_below(figure: Figure, axes: Axes, **style: Any) -> Legend:
    """The legend of these axes under the figure, where it hides no data."""
    entries = axes.get_legend_handles_labels()
    return figure.legend(*entries, loc="outside lower center", frameon=False, **style)


def dotted_diagonal(axes: Axes) -> None:
    """The line from (0, 0) to (1, 1): chance of a ROC, or perfect calibration."""
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle=":")


def shade_shares(axes: Axes, counts: Int[np.ndarray, "K K"]) -> Float[np.ndarray, "K K"]:
    """Shades each cell of a confusion matrix by its share of its row, and returns the shares."""
    totals = counts.sum(axis=1, keepdims=True)
    # A class without images has no shares; its row stays white.
    shares = np.divide(counts, totals, out=np.zeros(counts.shape), where=totals > 0)
    axes.imshow(shares, cmap=WHITE_TO_BLUE, vmin=0, vmax=1)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_color("#bbbbbb")
    return shares
