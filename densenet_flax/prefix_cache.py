"""Run the frozen part of the network once.

Until it is trained, the part of the network before a stage's frontier is a fixed function of the
image. One pass over the images gives, for every stage, what enters at its cut; the stage's epochs
then start from there. Keras runs that part again in every epoch.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging
from tqdm import tqdm

from densenet_flax.data.source import Dataset, batches
from densenet_flax.errors import InputError
from densenet_flax.frontier import Frontier
from densenet_flax.predict import Pipeline
from densenet_flax.sharding import agree, fetch, put_batch

CACHE_MODES = ("auto", "memory", "off")


class StageInputs:
    """Batches of a stage, with what enters at its cut: images, or features from or by the network.

    Call it with ids and weights `[B]`; it gives `inputs`, `label` and `weight` on the devices.
    """

    def __init__(
        self,
        dataset: Dataset,
        pipeline: Pipeline,
        variables: Mapping[str, Any],
        cut: str,
        cached: "Cached | None" = None,
    ):
        """Takes the cut and, where there is one, the cache that holds its features."""
        self._dataset, self._pipeline, self._variables = dataset, pipeline, variables
        self._cut, self._cached = cut, cached

    def __call__(self, ids: np.ndarray, weight: np.ndarray) -> dict[str, Any]:
        """A batch whose `inputs` are uint8 images if the cut is the stem, else features."""
        rows = self._cached.rows if self._cached else lambda some: self._dataset.images[some]
        batch = put_batch(
            ids,
            weight,
            lambda some: {"inputs": rows(some), "label": self._dataset.labels[some]},
            self._pipeline.mesh,
        )
        if not self._cached and self._cut != "stem":
            batch["inputs"] = self._pipeline.run(self._variables, batch["inputs"], stop=self._cut)
        return batch


class Cached:
    """Features of some images at one cut, in host memory."""

    def __init__(self, ids: np.ndarray, features: np.ndarray):
        """Takes the ids `[N]` and their features `[N, …]`."""
        self.features = features
        self._row = {int(i): row for row, i in enumerate(ids)}

    def rows(self, ids: np.ndarray) -> np.ndarray:
        """Features `[B, …]` of these ids."""
        return self.features[[self._row[int(i)] for i in ids]]


class SharedPass:
    """What enters a run's stages: one pass of the frozen part for all that can share it."""

    def __init__(
        self,
        dataset: Dataset,
        pipeline: Pipeline,
        frontiers: Sequence[Frontier],
        ids: np.ndarray,
        *,
        batch_size: int,
        mode: str = "auto",
    ):
        """Takes the frontiers of the coming stages and all images that they will see."""
        self._dataset, self._pipeline, self._frontiers = dataset, pipeline, frontiers
        self._ids, self._batch_size, self._mode = ids, batch_size, mode
        self._shares = share_a_pass(frontiers)
        self._cached: dict[str, Cached] | None = None

    def of(self, index: int, variables: Mapping[str, Any]) -> StageInputs:
        """The inputs of the stage with this frontier, given the network as it is now."""
        cut = self._frontiers[index].cut
        if not self._shares[index]:
            cached = self._compute(variables, [cut])
        else:
            if self._cached is None:
                pairs = zip(self._frontiers, self._shares, strict=True)
                cuts = dict.fromkeys(frontier.cut for frontier, shares in pairs if shares)
                self._cached = self._compute(variables, list(cuts))
            cached = self._cached
        return StageInputs(self._dataset, self._pipeline, variables, cut, cached.get(cut))

    def _compute(self, variables: Mapping[str, Any], cuts: Sequence[str]) -> dict[str, Cached]:
        return compute(
            self._pipeline,
            variables,
            self._dataset,
            self._ids,
            cuts,
            batch_size=self._batch_size,
            mode=self._mode,
        )


def share_a_pass(frontiers: Sequence[Frontier]) -> list[bool]:
    """Which of some coming stages find their prefix as it is now, and can share one pass over it.

    A stage does if no stage before it trains anything in its prefix: as long as each frontier lies
    at or before all those before it, which is how people unfreeze.
    """
    share = []
    earliest = None
    for frontier in frontiers:
        first = 0 if frontier.cut == "stem" else frontier.index
        share.append(earliest is None or first <= earliest)
        earliest = first if earliest is None else min(first, earliest)
    return share


def compute(
    pipeline: Pipeline,
    variables: Mapping[str, Any],
    dataset: Dataset,
    ids: np.ndarray,
    cuts: Sequence[str],
    *,
    batch_size: int,
    mode: str = "auto",
) -> dict[str, Cached]:
    """Features of the images at each cut, in one pass; empty where the mode or memory says no.

    Args:
      pipeline: the compiled network.
      variables: of the whole network.
      dataset: where the images are.
      ids: which images.
      cuts: units; the features are what enters them (pooled for 'head').
      batch_size: images at a time.
      mode: 'auto', cache if it fits in half of the free memory; 'memory', always; 'off', never.

    Raises:
      InputError: the mode is unknown.
    """
    if mode not in CACHE_MODES:
        raise InputError(f"config.cache={mode!r}: expected one of {', '.join(CACHE_MODES)}")
    order = [unit for unit in pipeline.cuts if unit in cuts and unit != "stem"]
    if mode == "off" or not order or not len(ids):
        return {}
    found: dict[str, np.ndarray] = {}
    bar = tqdm(total=len(ids), desc="frozen prefix", unit="img", disable=None)
    done = 0
    for rows, weight in batches(ids, batch_size):
        batch = put_batch(rows, weight, lambda some: {"x": dataset.images[some]}, pipeline.mesh)
        x, here, count = batch["x"], "stem", int(weight.sum())
        for cut in order:
            x, here = pipeline.run(variables, x, start=here, stop=cut), cut
            values = fetch(x)[:count]
            if cut not in found:
                found[cut] = np.empty((len(ids), *values.shape[1:]), values.dtype)
            found[cut][done : done + count] = values
        if not done and mode == "auto" and not _fits(found):
            bar.close()
            return {}
        done += count
        bar.update(count)
    bar.close()
    size = sum(features.nbytes for features in found.values())
    logging.info(
        "prefix cache: %d images at %s in host memory, %.2f GB; the frozen part runs once",
        len(ids),
        ", ".join(order),
        size / 1e9,
    )
    return {cut: Cached(ids, features) for cut, features in found.items()}


def _fits(found: Mapping[str, np.ndarray]) -> bool:
    size = sum(features.nbytes for features in found.values())
    try:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except ValueError:  # macOS does not tell
        return True
    if agree(size <= free / 2):
        return True
    logging.info(
        "prefix cache off: it would take %.1f GB of %.1f GB free memory; "
        "the frozen part runs in every epoch",
        size / 1e9,
        free / 1e9,
    )
    return False
