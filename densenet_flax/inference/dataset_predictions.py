"""Logits and probabilities of a data set's images, in batches of one shape."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TypeAlias

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Int

from densenet_flax.common.prefetch import in_flight, prefetch
from densenet_flax.common.sharding import begin_copy_to_host, process_rows, put_batch
from densenet_flax.common.trees import Variables
from densenet_flax.data.batching import BatchRows, split_into_batches
from densenet_flax.data.dataset import Dataset
from densenet_flax.data.images.stream import prefetch_images
from densenet_flax.inference.results import to_probabilities
from densenet_flax.inference.segments import SegmentedModel
from densenet_flax.inference.tta import mean_over_views, num_views, symmetric_views

# Row ids, weights (0 for padding) and arrays on the devices, of which `inputs` enter the network.
Batch: TypeAlias = tuple[Int[np.ndarray, "N"], Float[np.ndarray, "N"], Mapping[str, jax.Array]]


def predict_logits(
    segmented: SegmentedModel,
    variables: Variables,
    dataset: Dataset,
    ids: Int[np.ndarray, "N"],
    batch_size: int,
    *,
    start: str = "stem",
    batches: Iterable[Batch] | None = None,
    progress: Callable[[int], object] | None = None,
    features: Callable[[Float[np.ndarray, "n C"]], object] | None = None,
) -> Float[np.ndarray, "N K"]:
    """Computes the logits of these rows of a data set, in the order of `ids`.

    Args:
      segmented: the compiled network.
      variables: those of the whole network, or from `start` on; on the devices.
      dataset: the images.
      ids: row numbers.
      batch_size: of each batch; the last one is padded and the padding dropped.
      start: the unit that the inputs of `batches` enter.
      batches: batches of `ids` whose `inputs` enter at `start`, such as cached features; by
        default the images of the data set.
      progress: called after each batch with the number of images done in it.
      features: called with the pooled features of each batch, which enter the head on the way to
        the logits; None if they are not needed.
    """
    if batches is None:
        batches = image_batches(dataset, ids, batch_size, segmented.mesh)

    def begin(batch: Mapping[str, jax.Array]) -> list[jax.Array]:
        if features is None:
            outputs = [segmented.run(variables, batch["inputs"], start=start)]
        else:
            pooled = segmented.run(variables, batch["inputs"], start=start, stop="head")
            outputs = [segmented.run(variables, pooled, start="head"), pooled]
        return [begin_copy_to_host(output) for output in outputs]

    logits = []
    # The padding comes last.
    for count, outputs in in_flight((int(w.sum()), begin(batch)) for _, w, batch in batches):
        logits.append(np.asarray(outputs[0])[:count])
        if features is not None:
            features(np.asarray(outputs[1])[:count])
        if progress:
            progress(count)
    return np.concatenate(logits)


def predict_probabilities(
    segmented: SegmentedModel,
    variables: Variables,
    dataset: Dataset,
    ids: Int[np.ndarray, "N"],
    batch_size: int,
    *,
    tta: bool = False,
    progress: Callable[[int], object] | None = None,
    features: Callable[[Float[np.ndarray, "n C"]], object] | None = None,
) -> Float[np.ndarray, "N K"]:
    """Computes float64 probabilities of these rows of a data set, in the order of `ids`.

    Args are those of `predict_logits`, and `tta`: whether to average the probabilities over each
    image's symmetric views. `batch_size` counts the views; `features` are of the image itself.
    """
    if not tta:
        logits = predict_logits(
            segmented, variables, dataset, ids, batch_size, progress=progress, features=features
        )
        return to_probabilities(logits)
    views = num_views(dataset.images.shape[1:3])
    # As many images as give one batch of views: a shape that is compiled already.
    images_per_batch = max(1, batch_size // views)
    # The views of an image follow each other, so those of the padding are last again.
    batches = (
        (rows, np.repeat(weight, views), {"inputs": symmetric_views(batch["inputs"])})
        for rows, weight, batch in image_batches(dataset, ids, images_per_batch, segmented.mesh)
    )

    def count_images(views_done: int) -> None:
        if progress:
            progress(views_done // views)

    def keep_first_view(batch: Float[np.ndarray, "n C"]) -> None:
        if features:
            features(batch[::views].copy())  # which does not hold the other views in memory

    logits = predict_logits(
        segmented,
        variables,
        dataset,
        ids,
        batch_size,
        batches=batches,
        progress=count_images,
        features=keep_first_view if features else None,
    )
    return mean_over_views(to_probabilities(logits), views)


def image_batches(
    dataset: Dataset, ids: Int[np.ndarray, "N"], batch_size: int, mesh: Mesh
) -> Iterator[Batch]:
    """Yields batches of images without augmentation, on the devices; the next are read ahead."""
    batches = [BatchRows(*batch) for batch in split_into_batches(ids, batch_size)]
    # Each process reads its own rows of every batch.
    images = prefetch_images(dataset.images, [process_rows(b.ids, mesh) for b in batches])

    def put(batch: BatchRows) -> dict[str, jax.Array]:
        read = lambda _: {"inputs": next(images)}  # noqa: E731
        return put_batch(batch.ids, batch.weight, read, mesh)

    # One thread: images come in the order of the batches.
    on_devices = prefetch(put, batches, depth=2, threads=1)
    for rows, batch in zip(batches, on_devices, strict=True):
        yield rows.ids, rows.weight, batch
