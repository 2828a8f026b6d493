"""Occlusion maps: what the score of a class loses when a part of the image is hidden.

Zeiler and Fergus, "Visualizing and Understanding Convolutional Networks", ECCV 2014, with the score
of `saliency`: the class's logit minus the mean of the others. Nothing is derived from gradients or
from the network's inside, so a map shows what the network does without that part; it costs a pass
through the whole network for each position.
"""

import itertools
from collections.abc import Iterator

import numpy as np
from jaxtyping import Array, Int, UInt8

from densenet_flax.common.prefetch import in_flight
from densenet_flax.common.sharding import begin_copy_to_host, put_batch
from densenet_flax.common.trees import Variables
from densenet_flax.inference.saliency import Maps, contrast
from densenet_flax.inference.segments import SegmentedModel

STRIDE, WINDOW = 16, 32  # pixels of the image as the network sees it


def occlusion_maps(
    segmented: SegmentedModel,
    variables: Variables,
    images: UInt8[np.ndarray, "N H W 3"],
    target: Int[np.ndarray, "N"],
    *,
    batch_size: int,
) -> Maps:
    """Computes how much the score of a class falls when the surroundings of a position are hidden.

    The window is filled with the mean color of its image, which keeps the stain; a flat square is
    still something that no training image shows.

    Args:
      segmented: the compiled network.
      variables: those of the whole network, on the devices.
      images: as they enter the network.
      target: index of the class to explain, for each image.
      batch_size: of each pass; all are padded to it.

    Returns:
      float32, a position for each STRIDE pixels: positive where the image is evidence for the
      class, negative where it lowers the score.
    """
    n, height, width, _ = images.shape
    rows, columns = (max(2, round(length / STRIDE)) for length in (height, width))
    # The whole image comes first: the scores are compared with its.
    windows = [None, *itertools.product(_windows(height, rows), _windows(width, columns))]
    fill = images.mean(axis=(1, 2)).round().astype(np.uint8)

    def hidden() -> Iterator[UInt8[np.ndarray, "H W 3"]]:
        for image, color in zip(images, fill, strict=True):
            for window in windows:
                copy = image.copy()
                if window:
                    copy[window] = color
                yield copy

    def begin() -> Iterator[tuple[int, Array]]:
        copies = hidden()
        while batch := list(itertools.islice(copies, batch_size)):
            ids = np.minimum(np.arange(batch_size), len(batch) - 1)
            pixels, weight = np.stack(batch), np.ones(batch_size, np.float32)
            x = put_batch(ids, weight, lambda rows: {"x": pixels[rows]}, segmented.mesh)["x"]  # noqa: B023
            yield len(batch), begin_copy_to_host(segmented.run(variables, x))

    parts = [np.asarray(logits, np.float64)[:count] for count, logits in in_flight(begin())]
    outputs = segmented.model.num_classes
    logits = np.concatenate([np.empty((0, outputs)), *parts]).reshape(n, len(windows), outputs)
    scores = np.einsum("npk,nk->np", logits, np.asarray(contrast(target, outputs)))
    return (scores[:, :1] - scores[:, 1:]).reshape(n, rows, columns).astype(np.float32)


def _windows(length: int, count: int) -> list[slice]:
    """A window around each of `count` evenly spaced centers, cut off at the borders."""
    centers = (np.arange(count) + 0.5) * length / count
    begins = np.rint(centers - WINDOW / 2).astype(int).tolist()
    return [slice(max(begin, 0), begin + WINDOW) for begin in begins]
