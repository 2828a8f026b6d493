"""A network and images in; features, logits and probabilities out."""

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import scipy  # its parts are imported when they are first used
from jax.sharding import Mesh

from densenet_flax.common.sharding import process_slice, put_batch, to_host
from densenet_flax.data.batching import batches as cut_batches
from densenet_flax.data.dataset import Dataset
from densenet_flax.data.images.stream import images_ahead
from densenet_flax.models.densenet import DenseNet, pool
from densenet_flax.models.preprocessing import preprocess_input
from densenet_flax.models.units import select_units


@functools.partial(jax.jit, static_argnames=("model", "start", "stop", "preprocessing"))
def _forward(model: DenseNet, variables, x, *, start: str, stop: str | None, preprocessing: str):
    if start == "stem":
        x = preprocess_input(x, preprocessing)
    y: Any = model.apply(variables, x, start=start, stop=stop)
    return pool(y) if stop == "head" else y


class SegmentedModel:
    """The network in inference mode, compiled in segments that end where stages cut it.

    Every stage's frozen prefix, its validation and the final evaluation are then chains of the
    same few compiled functions, and none is compiled twice.
    """

    def __init__(
        self, model: DenseNet, mesh: Mesh, *, cuts: Iterable[str] = (), preprocessing: str = "torch"
    ):
        """Takes the units at which stages cut the network.

        The last norm, where explanations begin, and pooled features are always a cut.

        Args:
          model: with a head.
          mesh: the devices to spread batches over.
          cuts: names of units.
          preprocessing: mode of `preprocess_input`.
        """
        self.model = model
        self.mesh = mesh
        self.preprocessing = preprocessing
        wanted = {*cuts, "stem", "norm", "head"}
        self.cuts: tuple[str, ...] = tuple(unit for unit in model.units if unit in wanted)

    def run(
        self, variables: Mapping[str, Any], x: Any, *, start: str = "stem", stop: str | None = None
    ) -> jax.Array:
        """Runs the network from one cut to another.

        Args:
          variables: at least those of the units that run.
          x: uint8 images `[N, H, W, 3]` if `start` is the stem, else what the cut before gave;
            pooled features `[N, C]` if it is the head.
          start: a cut.
          stop: a later cut; None gives logits `[N, num_classes]`.
        """
        for begin, end in self._segments(start, stop):
            part = self._part(variables, begin, end)
            x = _forward(
                self.model, part, x, start=begin, stop=end, preprocessing=self.preprocessing
            )
        return x

    def input_spec(self, cut: str, images: Sequence[int]) -> jax.ShapeDtypeStruct:
        """Shape and dtype of what enters at a cut after the stem, of images `[N, H, W, 3]`."""
        dtype = np.float32 if cut == "head" else self.model.dtype
        return jax.ShapeDtypeStruct(self.model.entering(cut, images), np.dtype(dtype))

    def _segments(self, start: str, stop: str | None) -> Iterator[tuple[str, str | None]]:
        ends: Sequence[str | None] = (*self.cuts, None)
        first, last = ends.index(start), ends.index(stop)
        for begin, end in zip(ends[first:last], ends[first + 1 : last + 1], strict=True):
            assert begin is not None
            yield begin, end

    def _part(self, variables: Mapping[str, Any], begin: str, end: str | None) -> dict[str, Any]:
        units = self.model.units
        here = units[units.index(begin) : units.index(end) if end else None]
        return {name: select_units(tree, here) for name, tree in variables.items()}


Batches = Iterable[tuple[np.ndarray, np.ndarray, Mapping[str, Any]]]


def predict_logits(
    pipeline: SegmentedModel,
    variables: Mapping[str, Any],
    dataset: Dataset,
    ids: np.ndarray,
    batch_size: int,
    *,
    start: str = "stem",
    batches: Batches | None = None,
    progress: Callable[[int], Any] | None = None,
) -> np.ndarray:
    """Logits `[len(ids), num_classes]`, one row for each id in the order given.

    Args:
      pipeline: the compiled network.
      variables: of the whole network, or from `start` on.
      dataset: where the images are.
      ids: rows of the data set.
      batch_size: any; the last batch is padded and the padding dropped.
      start: where the batches of `batches` enter the network.
      batches: ids, weights and batches with `inputs`; by default the images.
      progress: called with the number of images done after each batch.
    """
    found = []
    if batches is None:
        batches = image_batches(dataset, ids, batch_size, pipeline.mesh)
    for _, weight, batch in batches:
        logits = pipeline.run(variables, batch["inputs"], start=start)
        count = int(weight.sum())
        found.append(to_host(logits)[:count])
        if progress:
            progress(count)
    return np.concatenate(found)


def image_batches(dataset: Dataset, ids: np.ndarray, batch_size: int, mesh: Mesh) -> Batches:
    """Batches of images as they are, on the devices, read ahead of their use."""
    parts = list(cut_batches(ids, batch_size))
    images = images_ahead(dataset, [process_slice(rows, mesh) for rows, _ in parts])
    for rows, weight in parts:
        yield rows, weight, put_batch(rows, weight, lambda _: {"inputs": next(images)}, mesh)


def probabilities(logits: np.ndarray) -> np.ndarray:
    """Softmax over classes, in float64 so that sure predictions stay distinguishable."""
    return scipy.special.softmax(np.asarray(logits, np.float64), axis=-1)
