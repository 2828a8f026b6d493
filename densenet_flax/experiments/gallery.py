"""The report's gallery: test images with their saliency maps, and a check of the maps."""

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from densenet_flax.common.sharding import put_batch
from densenet_flax.common.trees import Variables
from densenet_flax.evaluation.predictions import Predictions
from densenet_flax.evaluation.report.views import format_number
from densenet_flax.experiments.prepare import PreparedRun
from densenet_flax.inference.overlay import draw_panel, to_png
from densenet_flax.inference.saliency import is_cam, saliency_maps, sanity_check
from densenet_flax.inference.segments import SegmentedModel

# With 'group', 'caption' and 'png', as `write_report` takes them.
Picture: TypeAlias = Mapping[str, str | bytes]

IMAGES_PER_GROUP = 3
_FEW_POSITIONS = 16
# Maps that correlate more with those of shuffled weights show the image and not the network.
_HIGH_CORRELATION = 0.5


def make_gallery(
    run: PreparedRun, network: SegmentedModel, variables: Variables, table: Predictions
) -> tuple[list[Picture], str]:
    """Draws the most confident correct, most confident wrong and least confident test images.

    Args:
      run: says which unit's maps are shown.
      network: the network that was evaluated.
      variables: its variables, on the devices.
      table: its predictions of the test images, with the threshold that decides.

    Returns:
      The pictures, and a note on how to read the maps and on the result of the check.
    """
    dataset, rows, unit = run.dataset, run.split.test, run.experiment.evaluation.explain
    predicted, probability = table.prediction, table.probability
    if probability.ndim == 1:  # of two classes the table has that of the second one
        probability = np.stack([1 - probability, probability], axis=1)
    groups = choose_images(
        confidence(probability, table.threshold), predicted == table.label, table.patient
    )
    batch_size = run.experiment.batch_size
    batch = _batch_to_explain(groups, len(rows), batch_size)
    # The network is compiled for whole batches, so a short one is filled up by repetition.
    ids, weight = np.resize(rows[batch], batch_size), np.ones(batch_size, np.float32)
    images = put_batch(ids, weight, lambda ids: {"x": dataset.images[ids]}, network.mesh)["x"]
    target = np.resize(predicted[batch], len(images))
    maps = saliency_maps(network, variables, images, target, unit=unit)
    if maps[0].size < 2:
        height, width = dataset.images.shape[1:3]
        return [], (
            f"No maps: at {height} × {width} pixels the unit {unit!r} has a single position. "
            "Choose an earlier one with config.explain, such as 'pool2'."
        )
    maps = maps[: len(batch)]
    correlations = sanity_check(network, variables, images, target, maps, unit=unit)
    map_of_index = dict(zip(batch.tolist(), maps, strict=True))
    names = table.class_names
    pictures: list[Picture] = [
        {
            "group": group,
            "caption": (
                f"{names[table.label[i]]}, predicted {names[predicted[i]]} "
                f"({_reason(probability[i], names, int(predicted[i]), table.threshold)}); "
                f"patient {table.patient[i]}, {table.file[i]}"
            ),
            "png": to_png(draw_panel(dataset.images[rows[i]], map_of_index[i], stacked=True)),
        }
        for group, indices in groups.items()
        for i in indices
        if i in map_of_index  # a small batch may not hold all groups
    ]
    return pictures, _note(network, unit, maps, correlations)


def _reason(
    probability: Float[np.ndarray, " K"], names: Sequence[str], predicted: int, threshold: float
) -> str:
    """Why a class was predicted; of two classes the probability that the threshold decides on."""
    if len(names) > 2:
        return f"P({names[predicted]}) = {format_number(float(probability[predicted]))}"
    sign = "at least" if predicted else "below"
    value = format_number(float(probability[1]))
    return f"P({names[1]}) = {value}, {sign} the threshold {threshold:.3g}"


def confidence(
    probability: Float[np.ndarray, "N K"], threshold: float = 0.5
) -> Float[np.ndarray, " N"]:
    """From 0, undecided, to 1, certain.

    Of two classes the distance of the probability from the threshold, as a share of the largest
    possible one; of more the lead of the most probable class.
    """
    if probability.shape[1] == 2:
        positive = probability[:, 1]
        # A threshold of 0 or 1 leaves no room on one of its sides.
        above = (positive - threshold) / max(1 - threshold, 1e-12)
        below = (threshold - positive) / max(threshold, 1e-12)
        return np.where(positive >= threshold, above, below)
    ascending = np.sort(probability, axis=1)
    return ascending[:, -1] - ascending[:, -2]


def choose_images(
    confidence: Float[np.ndarray, " N"],
    is_correct: Bool[np.ndarray, " N"],
    patients: Shaped[np.ndarray, " N"] | Sequence[str],
) -> dict[str, list[int]]:
    """The images of each group, of different patients as far as possible; no empty groups."""
    descending = np.argsort(-confidence, kind="stable")
    rankings = {
        "Most confident, correct": descending[is_correct[descending]],
        "Most confident, wrong": descending[~is_correct[descending]],
        "Least confident": descending[::-1],
    }
    groups = {}
    for name, ranking in rankings.items():
        # The best image of each patient comes before the second best of any.
        _, first = np.unique(np.asarray(patients)[ranking], return_index=True)
        is_first = np.isin(np.arange(len(ranking)), first)
        chosen = np.concatenate([ranking[is_first], ranking[~is_first]])[:IMAGES_PER_GROUP]
        if len(chosen):
            groups[name] = chosen.tolist()
    return groups


def _batch_to_explain(
    groups: Mapping[str, list[int]], count: int, batch_size: int
) -> Int[np.ndarray, " N"]:
    """The images of the groups, and others evenly spaced over the test subset."""
    # The check of the maps rests on more images than are shown.
    shown = [index for indices in groups.values() for index in indices][:batch_size]
    spaced = np.linspace(0, count - 1, min(count, batch_size)).astype(int)
    others = [index for index in np.unique(spaced).tolist() if index not in shown]
    return np.array([*shown, *others][:batch_size])


def _note(
    network: SegmentedModel,
    unit: str,
    maps: Float[np.ndarray, "N h w"],
    correlations: Mapping[str, float | None],
) -> str:
    height, width = maps.shape[1:]
    method = "class-activation map" if is_cam(network.model, unit) else "Grad-CAM"
    steps = [f"{name} {value:.2f}" for name, value in correlations.items() if value is not None]
    *_, last = correlations.values()
    is_coarse = height * width < _FEW_POSITIONS
    note = (
        f"In color: the regions that support the predicted class ({method} at unit {unit!r}, "
        f"{height} × {width} positions); the line is at half the maximum. "
        f"{'With so few positions a map is a rough hint. ' if is_coarse else ''}"
        "Check by random weights (Adebayo et al. 2018): with all weights from the head down to a "
        f"dense block put in random order, the maps of {len(maps)} test images correlate with "
        f"these (Spearman's rank correlation, mean) by {', '.join(steps)}."
    )
    if last is None:
        return note
    if abs(last) > _HIGH_CORRELATION:
        return f"{note} They hardly change: they show the images more than what was learned."
    return f"{note} The nearer to 0, the more the maps depend on what was learned."
