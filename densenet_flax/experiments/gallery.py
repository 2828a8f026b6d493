"""The report's gallery: test images with what the network found in them, and a check of that."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from densenet_flax.common.sharding import put_batch
from densenet_flax.data.dataset import Dataset
from densenet_flax.inference.overlay import draw_panel, to_png
from densenet_flax.inference.saliency import is_cam, saliency_maps, sanity_check
from densenet_flax.inference.segments import SegmentedModel

OF_EACH = 3
# Above this, maps of a network without anything learned look like those of ours.
_ALIKE = 0.5
_FEW = 16  # places


def show(
    pipeline: SegmentedModel,
    variables: Mapping[str, Any],
    dataset: Dataset,
    rows: np.ndarray,
    probability: np.ndarray,
    decided: np.ndarray,
    patients: np.ndarray,
    *,
    threshold: float = 0.5,
    unit: str = "norm",
    batch_size: int = 32,
) -> tuple[list[dict[str, Any]], str]:
    """Draws the surest right, the surest wrong and the least sure images with their maps.

    Args:
      pipeline: the network that was judged.
      variables: its variables, on the devices.
      dataset: where the images are.
      rows: of the test images.
      probability: float [N, K], of these.
      decided: int [N], the class that each was called.
      patients: str [N], whose they are.
      threshold: of two classes.
      unit: whose maps are shown.
      batch_size: images that the network is compiled for; as many are checked.

    Returns:
      What `info['gallery']` and `info['gallery_note']` of a report take.
    """
    labels = dataset.labels[rows]
    groups = choose(sureness(probability, threshold), decided == labels, patients)
    chosen = [index for indices in groups.values() for index in indices][:batch_size]
    others = [i for i in _spread(len(rows), batch_size) if i not in chosen]
    batch = np.array([*chosen, *others][:batch_size])
    put = put_batch(
        np.resize(rows[batch], batch_size),
        np.ones(batch_size, np.float32),
        lambda ids: {"x": dataset.images[ids]},
        pipeline.mesh,
    )
    x = put["x"]
    target = np.resize(decided[batch], len(x))
    maps = saliency_maps(pipeline, variables, x, target, unit=unit)
    if maps[0].size < 2:
        height, width = dataset.images.shape[1:3]
        return [], (
            f"No maps: at {height} × {width} pixels the unit {unit!r} has a single place. Choose "
            "an earlier one with config.explain, such as 'pool2'."
        )
    found = sanity_check(pipeline, variables, x, target, maps[: len(batch)], unit=unit)
    of_index = dict(zip(batch.tolist(), maps, strict=False))
    names = dataset.class_names
    items = [
        {
            "group": group,
            "caption": (
                f"{names[labels[i]]}, called {names[decided[i]]} "
                f"(P({names[decided[i]]}) = {probability[i, decided[i]]:.3f}); "
                f"patient {patients[i]}, {dataset.files[rows[i]]}"
            ),
            "png": to_png(draw_panel(dataset.images[rows[i]], of_index[i], stacked=True)),
        }
        for group, indices in groups.items()
        for i in indices
        if i in of_index
    ]
    return items, _note(pipeline, unit, maps, found, len(batch))


def sureness(probability: np.ndarray, threshold: float = 0.5) -> np.ndarray:
    """From 0, undecided, to 1, certain: float [N].

    Of two classes how far the probability is from the threshold, as a share of how far it could
    be; of more by how much the likeliest class leads.
    """
    if probability.shape[1] == 2:
        positive = probability[:, 1]
        above = (positive - threshold) / max(1 - threshold, 1e-12)
        below = (threshold - positive) / max(threshold, 1e-12)
        return np.where(positive >= threshold, above, below)
    top = np.sort(probability, axis=1)
    return top[:, -1] - top[:, -2]


def choose(
    sure: np.ndarray, right: np.ndarray, patients: Sequence[str] | np.ndarray
) -> dict[str, list[int]]:
    """The images of each group, another patient each as long as there are such."""
    falling = np.argsort(-sure, kind="stable")
    groups = {
        "Surest right": falling[right[falling]],
        "Surest wrong": falling[~right[falling]],
        "Least sure": falling[::-1],
    }
    found = {}
    for name, order in groups.items():
        seen: set[str] = set()
        first: list[int] = []
        rest: list[int] = []
        for index in order.tolist():
            patient = str(patients[index])
            (rest if patient in seen else first).append(index)
            seen.add(patient)
        if first:
            found[name] = [*first, *rest][:OF_EACH]
    return found


def _spread(count: int, wanted: int) -> list[int]:
    """Some of `count` images, evenly."""
    return np.unique(np.linspace(0, count - 1, min(count, wanted)).astype(int)).tolist()


def _note(
    pipeline: SegmentedModel,
    unit: str,
    maps: np.ndarray,
    found: Mapping[str, float | None],
    images: int,
) -> str:
    height, width = maps.shape[1:]
    exact = is_cam(pipeline.model, unit)
    method = "class-activation map" if exact else "Grad-CAM"
    steps = [f"{name} {value:.2f}" for name, value in found.items() if value is not None]
    last = list(found.values())[-1]
    said = (
        f"In colour: where the network found what speaks for the class that it called ({method} at "
        f"unit {unit!r}, {height} × {width} places); the line is half the strongest. "
        f"{'With so few places a map is a rough hint. ' if height * width < _FEW else ''}"
        f"Check by random weights (Adebayo et al. 2018): with all weights from the head down to a "
        f"stage put in random order, the maps of {images} test images correlate with these "
        f"(Spearman's rank correlation, mean) by {', '.join(steps)}."
    )
    if last is None:
        return said
    if abs(last) > _ALIKE:
        return f"{said} They hardly change: they show the images more than what was learned."
    return f"{said} The nearer to 0, the more the maps depend on what was learned."
