"""A contact sheet of training images and their views, to look at before training."""

import itertools
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int, UInt8

from densenet_flax.common.errors import InputError
from densenet_flax.data.augmentation.settings import AugmentSettings
from densenet_flax.data.augmentation.views import augment, mix
from densenet_flax.data.dataset import Dataset
from densenet_flax.data.images.stain_normalization import separate_dyes
from densenet_flax.data.splits.sampling import count_before
from densenet_flax.storage.atomic import atomic_file

_CELL_WIDTH = 1.7  # of an image on the sheet, in inches
_TITLE_HEIGHT = 0.35  # of the text above it


def choose_rows(
    dataset: Dataset, rows: Int[np.ndarray, "rows"], group: str, count: int, seed: int
) -> list[int]:
    """Chooses at most `count` of these rows, of as many classes and patients as possible.

    The classes take turns; within a class every patient comes once before one comes again.
    """
    rng = np.random.default_rng(seed)
    patients, labels = dataset.patients(group), dataset.labels
    queues = []
    for label in np.unique(labels[rows]):
        shuffled = rng.permutation(rows[labels[rows] == label])
        order = np.argsort(count_before(patients[shuffled]), kind="stable")
        queues.append(shuffled[order].tolist())
    rounds = itertools.zip_longest(*queues)
    return [row for row in itertools.chain.from_iterable(rounds) if row is not None][:count]


def write_preview(
    path: Path,
    dataset: Dataset,
    rows: Int[np.ndarray, "rows"],
    settings: AugmentSettings,
    *,
    group: str,
    seed: int,
    images: int = 8,
    views: int = 6,
) -> None:
    """Writes a contact sheet as PNG: in each row an image, its dyes alone, and views of it.

    The views are those that training sees with the same seed and view numbers. With MixUp or CutMix
    each image is mixed with the one above it, and the share of its own class stands above the view;
    in training it is mixed with its neighbor in the batch.

    Args:
      path: where to write the sheet.
      dataset: the images, shown as they enter the network.
      rows: the rows to choose images from, such as those of training.
      settings: how far a view may be from its image.
      group: the key of `Dataset.groups` by which patients differ.
      seed: seed of the run.
      images: the most rows that the sheet has.
      views: how many views of each image to show.

    Raises:
      InputError: there are no images to show, or the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # slow to import
    from matplotlib.figure import Figure

    ids = np.array(choose_rows(dataset, rows, group, images, seed), np.int32)
    if not len(ids):
        raise InputError(f"{dataset.name}: no training images to show")
    originals, labels = dataset.images[ids], dataset.labels[ids]
    dyes = separate_dyes(originals, dataset.stain)
    columns = [(pictures, np.ones(len(ids))) for pictures in (originals, *dyes)]
    titles = ["", "hematoxylin", "eosin", "residual", *(f"view {view}" for view in range(views))]
    columns += [_make_views(originals, labels, ids, settings, seed, view) for view in range(views)]
    cell_height = _CELL_WIDTH * originals.shape[1] / originals.shape[2] + _TITLE_HEIGHT
    size = (_CELL_WIDTH * len(columns), cell_height * len(ids))
    figure = Figure(size, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(ids), len(columns), squeeze=False)
    patients = dataset.patients(group)[ids]
    for (line, column), cell in np.ndenumerate(axes):
        # The first column is the images themselves, under their class and patient.
        pictures, shares = columns[column]
        title = titles[column] if line == 0 else ""
        if column == 0:
            title = f"{dataset.class_names[labels[line]]}\n{patients[line]}"
        elif column > len(dyes) and settings.mixes:
            title = f"{title} {shares[line]:.2f}".strip()
        cell.imshow(pictures[line], interpolation="nearest")
        cell.set_axis_off()
        cell.set_title(title, fontsize=7, parse_math=False)
    with atomic_file(path) as temporary:
        figure.savefig(temporary, dpi=100, format="png", metadata={"Software": None})


def _make_views(
    originals: UInt8[np.ndarray, "N H W 3"],
    labels: Int[np.ndarray, "N"],
    ids: Int[np.ndarray, "N"],
    settings: AugmentSettings,
    seed: int,
    view: int,
) -> tuple[UInt8[np.ndarray, "N H W 3"], Float[np.ndarray, "N"]]:
    """Returns a view of each image, and the share of its own class in it."""
    views = augment(originals, ids, seed=seed, epoch=view, settings=settings)
    targets = np.eye(int(labels.max()) + 1, dtype=np.float32)[labels]
    mixed, shares = mix(views, targets, ids, seed=seed, epoch=view, settings=settings)
    own_shares = np.asarray(shares)[np.arange(len(ids)), labels]
    return np.asarray(mixed).round().astype(np.uint8), own_shares
