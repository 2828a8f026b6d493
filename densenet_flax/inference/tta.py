"""Test-time augmentation: an image is judged by the mean over its symmetries.

Tissue on a slide has no up and no left, so its eight symmetries (four, if the image is oblong) are
as good images of it as the one that was taken.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from densenet_flax.common.sharding import to_host
from densenet_flax.data.augmentation.pixels import sample
from densenet_flax.data.augmentation.views import SYMMETRIES
from densenet_flax.data.dataset import Dataset
from densenet_flax.inference.segments import (
    SegmentedModel,
    image_batches,
    predict_logits,
    probabilities,
)


def num_views(size: tuple[int, ...]) -> int:
    """How many symmetries an image of (height, width) has: 8 if it is square, else 4."""
    return 8 if size[0] == size[1] else 4


@jax.jit
def symmetric_views(images: jax.Array) -> jax.Array:
    """All symmetries of each image, exact to the bit.

    Args:
      images: uint8 [N, H, W, 3].

    Returns:
      uint8 [N · V, H, W, 3]: the V views of the first image, itself first, then the next's.
    """
    matrices = jnp.asarray(SYMMETRIES[: num_views(images.shape[1:3])])

    def view(image: jax.Array, matrix: jax.Array) -> jax.Array:
        return sample(image, matrix, jnp.zeros(2), "reflect", interpolate=False)

    of_all = jax.vmap(jax.vmap(view, (None, 0)), (0, None))(images, matrices)
    return of_all.reshape(-1, *images.shape[1:])


def mean_over_views(probability: np.ndarray, count: int) -> np.ndarray:
    """Mean over views: [N · V, K] to [N, K]. Probabilities are averaged, not logits."""
    return probability.reshape(-1, count, probability.shape[-1]).mean(axis=1)


def predict_probabilities(
    pipeline: SegmentedModel,
    variables: Mapping[str, Any],
    dataset: Dataset,
    ids: np.ndarray,
    batch_size: int,
    *,
    tta: bool = False,
    progress: Callable[[int], Any] | None = None,
) -> np.ndarray:
    """Probabilities [len(ids), K] in float64, of the images or of the mean over their symmetries.

    Args:
      pipeline: the compiled network.
      variables: of the whole network.
      dataset: where the images are.
      ids: rows of the data set.
      batch_size: images or views that the network takes at a time.
      tta: whether to average over symmetries.
      progress: called with the number of images done after each batch.
    """
    if not tta:
        logits = predict_logits(pipeline, variables, dataset, ids, batch_size, progress=progress)
        return probabilities(logits)
    count = num_views(dataset.images.shape[1:3])
    found = []
    # As many images as give a batch of views: the shape that the network is compiled for already.
    at_a_time = max(1, batch_size // count)
    for _, weight, batch in image_batches(dataset, ids, at_a_time, pipeline.mesh):
        logits = to_host(pipeline.run(variables, symmetric_views(batch["inputs"])))
        done = int(weight.sum())
        found.append(mean_over_views(probabilities(logits), count)[:done])
        if progress:
            progress(done)
    return np.concatenate(found)
