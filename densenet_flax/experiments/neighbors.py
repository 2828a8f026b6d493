"""Test images beside those whose features are nearest, for the report."""

from collections.abc import Mapping
from typing import TypeAlias

import numpy as np
from PIL import Image

from densenet_flax.data.augmentation.preview import choose_rows
from densenet_flax.evaluation.metrics.feature_space import FeatureSpace
from densenet_flax.evaluation.predictions import Predictions
from densenet_flax.experiments.prepare import PreparedRun
from densenet_flax.inference.overlay import to_png

Picture: TypeAlias = Mapping[str, str | bytes]  # as `write_report` takes them

_QUERIES = 4
_LENGTH = 112  # of the longer edge of a picture, in pixels: the page holds all of them


def neighbor_pictures(run: PreparedRun, table: Predictions, space: FeatureSpace) -> list[Picture]:
    """Draws images of different classes and patients, each before its nearest ones.

    Args:
      run: its test images, in the order of the table.
      table: the predictions of them.
      space: of their features.
    """
    dataset, shown = run.dataset, run.split.test[space.rows]
    group, seed = run.split.policy.group, run.experiment.seed
    queries = choose_rows(dataset, shown, group, _QUERIES, seed)
    pictures: list[Picture] = []
    for query in queries:
        position = int(np.flatnonzero(shown == query)[0])
        own = space.rows[position]
        heading = f"{table.class_names[table.label[own]]}, patient {table.patient[own]}"
        for rank, i in enumerate((position, *space.neighbors[position].tolist())):
            row = space.rows[i]
            is_same = table.patient[row] == table.patient[own]
            whose = "the same patient" if is_same else f"patient {table.patient[row]}"
            name = table.class_names[table.label[row]]
            caption = f"{rank}: {name}, {whose}, {table.file[row]}" if rank else table.file[row]
            tile = Image.fromarray(dataset.images[shown[i]])
            tile.thumbnail((_LENGTH, _LENGTH))
            pictures.append({"group": heading, "caption": str(caption), "png": to_png(tile)})
    return pictures
