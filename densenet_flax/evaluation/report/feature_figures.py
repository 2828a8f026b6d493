"""The features of images in two dimensions, by class and by patient."""

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from densenet_flax.evaluation.metrics.feature_space import FeatureSpace
from densenet_flax.evaluation.predictions import Predictions
from densenet_flax.evaluation.report.plotting import BLUE, INK, ORANGE, legend_below, plain, tidy

_MARKERS = "osD^vP*X<>"
_MAX_NAMED_PATIENTS = 40  # more names would hide the points


def features_by_class(space: FeatureSpace, predictions: Predictions) -> Figure:
    """Draws an image as a point with the color and the marker of its class."""
    figure, axes = _axes(space)
    names, label = predictions.class_names, predictions.label[space.rows]
    viridis = matplotlib.colormaps["viridis"](np.linspace(0, 0.9, len(names)))
    colors = [BLUE, ORANGE] if len(names) == 2 else viridis
    for k, name in enumerate(names):
        x, y = space.coordinates[label == k].T
        marker = _MARKERS[k % len(_MARKERS)]
        axes.plot(
            x, y, marker, color=colors[k], alpha=0.7, markersize=5, mew=0, label=plain(name, 18)
        )
    legend_below(figure, axes, ncols=3)
    return figure


def features_by_patient(space: FeatureSpace, predictions: Predictions) -> Figure:
    """Draws the same points with the color of their patient, whose name is where they are."""
    figure, axes = _axes(space)
    patient = predictions.patient[space.rows]
    # In the order of their positions, so that neighbors differ in color.
    names = sorted(
        np.unique(patient), key=lambda name: space.coordinates[patient == name].mean(0).tolist()
    )
    colors = matplotlib.colormaps["tab10"](np.arange(len(names)) % 10)
    for i, name in enumerate(names):
        points = space.coordinates[patient == name]
        # Another marker for each of the patients of one color.
        marker = _MARKERS[(i + i // 10) % len(_MARKERS)]
        axes.plot(*points.T, marker, color=colors[i], alpha=0.75, markersize=5.5, mew=0)
        if len(names) <= _MAX_NAMED_PATIENTS:
            # The image in the middle and not the mean, which may lie among other patients' images.
            x, y = points[np.square(points - np.median(points, 0)).sum(1).argmin()]
            text = axes.text(x, y, plain(name, 12), fontsize=7, color=INK, ha="center")
            text.set_bbox({"facecolor": "white", "alpha": 0.6, "linewidth": 0, "pad": 0.5})
    return figure


def _axes(space: FeatureSpace) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(5.6, 5.0), layout="constrained")
    axes = figure.subplots()
    first, second = space.summary["explained_variance"]
    axes.set_xlabel(f"first axis ({first:.0%} of the variance)")
    axes.set_ylabel(f"second axis ({second:.0%})")
    tidy(axes)
    return figure, axes
