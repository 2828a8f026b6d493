"""A contact sheet of images and their views: look before you train."""

from pathlib import Path

import numpy as np

from densenet_flax.common.errors import InputError
from densenet_flax.data.augmentation.views import AugmentSettings, augment, mix
from densenet_flax.data.dataset import Dataset
from densenet_flax.storage.atomic import atomic_file

_WIDTH = 1.7  # of a picture, in inches


def choose_rows(dataset: Dataset, rows: np.ndarray, group: str, count: int, seed: int) -> list[int]:
    """Images of as many classes and patients as there is room for.

    Args:
      dataset: whose labels and patients to look at.
      rows: to choose among.
      group: who is one patient.
      count: how many images.
      seed: of the choice.

    Returns:
      At most `count` ids, the classes taking turns, each with another patient as long as it has
      one, then with another image.
    """
    rng = np.random.default_rng(seed)
    patients, labels = dataset.patients(group), dataset.labels
    queues = []
    for label in np.unique(labels[rows]):
        turn: dict[str, int] = {}
        mine = rng.permutation(rows[labels[rows] == label])
        ranked = []
        for row in mine.tolist():
            owner = str(patients[row])
            turn[owner] = turn.get(owner, -1) + 1
            ranked.append((turn[owner], row))
        queues.append([row for _, row in sorted(ranked, key=lambda pair: pair[0])])
    longest = max(map(len, queues), default=0)
    turns = [queue[i] for i in range(longest) for queue in queues if i < len(queue)]
    return turns[:count]


def write_preview(
    path: Path,
    dataset: Dataset,
    rows: np.ndarray,
    settings: AugmentSettings,
    *,
    group: str,
    seed: int,
    images: int = 8,
    views: int = 6,
    dpi: int = 100,
) -> None:
    """Writes a contact sheet as PNG: an image in each row, first itself, then views of it.

    The views are those that training sees under the same seed and numbers. With MixUp or CutMix
    each image is mixed with the one above it, and how much of its own class is left stands
    above the view; in training it is mixed with its neighbour in the batch.

    Args:
      path: of the PNG.
      dataset: where the images are; they are shown as they enter the network, after stain
        normalisation and resizing.
      rows: to choose images from, such as the training side.
      settings: of the views.
      group: who is one patient.
      seed: of the run.
      images: how many rows the sheet has at most.
      views: how many views each image gets.
      dpi: dots per inch.

    Raises:
      InputError: there is nothing to show, or the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # slow to import
    from matplotlib.figure import Figure

    ids = np.array(choose_rows(dataset, rows, group, images, seed), np.int32)
    if not len(ids):
        raise InputError(f"{dataset.name}: no training images to show")
    originals = dataset.images[ids]
    columns = [(originals, np.ones(len(ids)))]
    for view in range(views):
        columns.append(_view(originals, dataset.labels[ids], ids, settings, seed, view))
    height = _WIDTH * originals.shape[1] / originals.shape[2]
    figure = Figure((_WIDTH * len(columns), (height + 0.35) * len(ids)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(ids), len(columns), squeeze=False)
    patients = dataset.patients(group)
    mixes = bool(settings.mixup or settings.cutmix)
    for line, row in enumerate(ids):
        for column, (pictures, shares) in enumerate(columns):
            cell = axes[line, column]
            cell.imshow(pictures[line], interpolation="nearest")
            cell.set_axis_off()
            title = f"view {column - 1}" if line == 0 else ""
            if column == 0:
                title = f"{dataset.class_names[dataset.labels[row]]}\n{patients[row]}"
            elif mixes:
                title = f"{title} {shares[line]:.2f}".strip()
            cell.set_title(title, fontsize=7, parse_math=False)
    with atomic_file(path) as temporary:
        figure.savefig(temporary, dpi=dpi, format="png", metadata={"Software": None})


def _view(
    originals: np.ndarray,
    labels: np.ndarray,
    ids: np.ndarray,
    settings: AugmentSettings,
    seed: int,
    view: int,
) -> tuple[np.ndarray, np.ndarray]:
    """A view of each image, and how much of its own class is left in it."""
    found = augment(originals, ids, seed=seed, epoch=view, settings=settings)
    targets = np.eye(int(labels.max()) + 1, dtype=np.float32)[labels]
    mixed, left = mix(found, targets, ids, seed=seed, epoch=view, settings=settings)
    return np.asarray(mixed).round().astype(np.uint8), np.asarray(left)[np.arange(len(ids)), labels]
