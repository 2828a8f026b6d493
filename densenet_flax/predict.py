"""A network and images in; features, logits and probabilities out."""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import scipy.special
from jax.sharding import Mesh

from densenet_flax.data.source import Dataset, batches
from densenet_flax.model import DenseNet, pool, preprocess_input, select
from densenet_flax.sharding import fetch, put_batch


@functools.partial(jax.jit, static_argnames=("model", "start", "stop", "preprocessing"))
def _forward(model: DenseNet, variables, x, *, start: str, stop: str | None, preprocessing: str):
    if start == "stem":
        x = preprocess_input(x, preprocessing)
    y: Any = model.apply(variables, x, start=start, stop=stop)
    return pool(y) if stop == "head" else y


class Pipeline:
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
        units = self.model.units
        ends: Sequence[str | None] = (*self.cuts, None)
        first, last = ends.index(start), ends.index(stop)
        for begin, end in zip(ends[first:last], ends[first + 1 : last + 1], strict=True):
            here = units[units.index(begin) : units.index(end) if end else None]
            part = {name: select(tree, here) for name, tree in variables.items()}
            x = _forward(
                self.model, part, x, start=begin, stop=end, preprocessing=self.preprocessing
            )
        return x


def predict_logits(
    pipeline: Pipeline,
    variables: Mapping[str, Any],
    dataset: Dataset,
    ids: np.ndarray,
    batch_size: int,
    *,
    start: str = "stem",
    inputs: Callable[[np.ndarray, np.ndarray], Mapping[str, Any]] | None = None,
    progress: Callable[[int], Any] | None = None,
) -> np.ndarray:
    """Logits `[len(ids), num_classes]`, one row for each id in the order given.

    Args:
      pipeline: the compiled network.
      variables: of the whole network, or from `start` on.
      dataset: where the images are.
      ids: rows of the data set.
      batch_size: any; the last batch is padded and the padding dropped.
      start: where `inputs` enter the network.
      inputs: from ids and weights to a batch whose `inputs` enter at `start`; by default images.
      progress: called with the number of images done after each batch.
    """
    found = []
    for rows, weight in batches(ids, batch_size):
        if inputs:
            batch = inputs(rows, weight)
        else:
            batch = put_batch(rows, weight, lambda i: {"inputs": dataset.images[i]}, pipeline.mesh)
        logits = pipeline.run(variables, batch["inputs"], start=start)
        count = int(weight.sum())
        found.append(fetch(logits)[:count])
        if progress:
            progress(count)
    return np.concatenate(found)


def probabilities(logits: np.ndarray) -> np.ndarray:
    """Softmax over classes, in float64 so that sure predictions stay distinguishable."""
    return scipy.special.softmax(np.asarray(logits, np.float64), axis=-1)
