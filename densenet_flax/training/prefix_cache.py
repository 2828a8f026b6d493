"""Run the frozen part of the network once.

Until it is trained, the part of the network before a stage's frontier is a fixed function of the
image. One pass over the images gives, for every stage, what enters at its cut; the stage's epochs
then start from there. Keras runs that part again in every epoch.
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging
from tqdm import tqdm

from densenet_flax.common.errors import InputError
from densenet_flax.common.sharding import all_processes, replicate, to_host
from densenet_flax.data.dataset import Dataset
from densenet_flax.inference.segments import SegmentedModel
from densenet_flax.models.frontier import Frontier
from densenet_flax.models.units import select_units
from densenet_flax.storage.feature_store import (
    KEPT,
    Features,
    Shapes,
    Writer,
    check_mode,
    choose_place,
    keep_files,
    new_files,
    open_files,
    size_of,
)
from densenet_flax.training.input_pipeline import Cached, StageInputs, Views


@dataclasses.dataclass
class PrefixCache:
    """What enters a run's stages: one pass of the frozen part for all stages that can share it.

    Attributes:
      dataset: where the images are.
      pipeline: the compiled network.
      frontiers: of the coming stages.
      train: ids of the images that are augmented.
      validation: ids of those that are not.
      batch_size: images at a time.
      mode: see `choose_place`.
      views: how the training images are augmented.
      directory: where 'disk' keeps its files, in folders that are named by all they depend on.
      kept: where the others keep a copy for later runs, likewise, if it is small; None for nowhere.
      epochs: how often the stages would run the frozen part without a cache, for the log.
      before_pass: called before a pass begins.
      workers: processes that decode what is streamed.
    """

    dataset: Dataset
    pipeline: SegmentedModel
    frontiers: Sequence[Frontier]
    train: np.ndarray
    validation: np.ndarray
    batch_size: int
    mode: str = "auto"
    views: Views = dataclasses.field(default_factory=Views)
    directory: Path | None = None
    kept: Path | None = None
    epochs: int = 0
    before_pass: Callable[[], None] = lambda: None
    workers: int = 0

    def __post_init__(self):
        """Checks that mode and views go together."""
        check_mode(self.mode)
        why = ""
        if self.views.mixes:
            why = "mixup and cutmix mix the images of a batch anew in every epoch"
        elif not self.views.reach:
            why = "augmentation makes a new view in every epoch; config.augment.views=8 keeps eight"
        if why and self.mode not in ("auto", "off"):
            raise InputError(f"config.cache={self.mode!r}: {why}; set config.cache='auto' or 'off'")
        self._why_off = why
        self._shares = share_a_pass(self.frontiers)
        self._shared: dict[str, Cached] | None = None

    def of(self, index: int, variables: Mapping[str, Any]) -> StageInputs:
        """The inputs of the stage with this frontier, given the network as it is now.

        Args:
          index: of the frontier.
          variables: of the whole network.
        """
        cut = self.frontiers[index].cut
        if not self._shares[index]:
            cached = self._compute(variables, [cut])
        else:
            if self._shared is None:
                pairs = zip(self.frontiers, self._shares, strict=True)
                cuts = dict.fromkeys(frontier.cut for frontier, shares in pairs if shares)
                self._shared = self._compute(variables, list(cuts))
            cached = self._shared
        if cut in cached:
            return dataclasses.replace(self._inputs({}, cut), cached=cached[cut])
        return self._inputs(self._prefix(variables, cut), cut)

    def _prefix(self, variables: Mapping[str, Any], cut: str) -> dict[str, Any]:
        """The network before a cut, on the devices."""
        units = self.pipeline.model.units
        before = units[: units.index(cut)]
        some = {name: select_units(tree, before) for name, tree in variables.items()}
        return replicate(some, self.pipeline.mesh)

    def _inputs(self, variables: Mapping[str, Any], cut: str) -> StageInputs:
        return StageInputs(
            self.dataset, self.pipeline, variables, cut, self.views, workers=self.workers
        )

    def _compute(self, variables: Mapping[str, Any], cuts: Sequence[str]) -> dict[str, Cached]:
        """Features of all images at each cut, in one pass; empty where there is to be no cache."""
        order = [unit for unit in self.pipeline.cuts if unit in cuts and unit != "stem"]
        if not order:
            return {}
        if self._why_off:
            logging.info("prefix cache off: %s", self._why_off)
            return {}
        shapes = self._shapes(order)
        size = size_of(shapes)
        place, why = choose_place(size, self.mode, self.directory)
        if place == "off":
            logging.info("prefix cache off: %s; the frozen part runs in every epoch", why)
            return {}
        home = self.directory if place == "disk" else self.kept if size <= KEPT else None
        folder = home / self._key(variables, order) if home else None
        found = open_files(folder, shapes) if folder else None
        reused = all_processes(found is not None)
        images = f"{len(self.train) + len(self.validation)} images"
        if self.views.active:
            images += f", {self.views.reach} views of those that train,"
        logging.info(
            "prefix cache: %s at %s %s, %.2f GB; the frozen part %s",
            images,
            ", ".join(order),
            {"device": "on the device", "memory": "in host memory", "disk": "in files"}[place],
            size / 1e9,
            "has been run before" if reused else f"runs {self._times()}",
        )
        self._warn_of_few_views()
        if not reused:
            self.before_pass()
            into = folder if place == "disk" else None
            found = self._fill(self._prefix(variables, order[-1]), order, shapes, into)
            if folder and found and not into:
                keep_files(folder, found)
        if found is None:
            raise InputError(f"{folder}: cannot be read; remove it and start again")
        return dict.fromkeys(order, self._place(Features(found, place, self.pipeline.mesh)))

    def _times(self) -> str:
        times = self.views.reach
        once = "once" if times == 1 else f"{times} times"
        return f"{once} instead of {self.epochs} times" if self.epochs > times else once

    def _warn_of_few_views(self) -> None:
        if self.views.active and self.views.reach < self.epochs:
            logging.info(
                "with %d views over %d epochs each view is seen again; as many views as epochs "
                "are the same as augmenting anew in each",
                self.views.reach,
                self.epochs,
            )

    def _passes(self) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
        """Ids and views in the order in which they are stored."""
        for view in range(self.views.reach):
            number = np.full(len(self.train), view) if self.views.active else None
            yield self.train, number
        yield self.validation, None

    def _place(self, features: Features) -> Cached:
        n, count = len(self.train), len(self.dataset)
        places, first = np.full(count, -1), np.full(count, -1)
        first[self.train] = np.arange(n)
        if not self.views.active:
            places[self.train] = np.arange(n)
        places[self.validation] = n * self.views.reach + np.arange(len(self.validation))
        return Cached(features, places, first, n)

    def _fill(
        self,
        variables: Mapping[str, Any],
        order: Sequence[str],
        shapes: Shapes,
        folder: Path | None,
    ) -> dict[str, np.ndarray] | None:
        """The pass itself, into memory or into the files of a folder."""
        if folder is None:
            return self._run(variables, order, Writer(shapes, None))
        with new_files(folder) as temporary:
            self._run(variables, order, Writer(shapes, temporary))
        return open_files(folder, shapes)

    def _run(
        self, variables: Mapping[str, Any], order: Sequence[str], writer: Writer
    ) -> dict[str, np.ndarray]:
        inputs = self._inputs(variables, "stem")
        total = sum(len(ids) for ids, _ in self._passes())
        with tqdm(total=total, desc="frozen prefix", unit="img", disable=None) as bar:
            for ids, views in self._passes():
                for _, weight, batch in inputs.batches(ids, self.batch_size, views):
                    x, here, count = batch["inputs"], "stem", int(weight.sum())
                    for cut in order:
                        x, here = self.pipeline.run(variables, x, start=here, stop=cut), cut
                        writer.add(cut, to_host(x)[:count])
                    bar.update(count)
        return writer.close()

    def _shapes(self, order: Sequence[str]) -> Shapes:
        rows = len(self.train) * self.views.reach + len(self.validation)
        images = (rows, *self.dataset.images.shape[1:])
        return {cut: self.pipeline.input_spec(cut, images) for cut in order}

    def _key(self, variables: Mapping[str, Any], order: Sequence[str]) -> str:
        """A name that changes with whatever the features depend on."""
        pipeline, model = self.pipeline, self.pipeline.model
        facts = {
            "images": self.dataset.fingerprint,
            "network": repr(model.clone(num_classes=0, hidden=(), dropout=0.0, remat="none")),
            "preprocessing": pipeline.preprocessing,
            "cuts": list(order),
            "views": repr(self.views) if self.views.active else "",
            "code": _code(),
            "jax": [jax.__version__, jax.default_backend(), jax.devices()[0].device_kind],
            "process": [jax.process_index(), jax.process_count()],
        }
        digest = hashlib.sha256(json.dumps(facts).encode())
        for ids, _ in self._passes():
            digest.update(np.ascontiguousarray(ids, np.int64).tobytes())
        units = model.units[: model.units.index(order[-1])]
        for name in ("params", "batch_stats"):
            for leaf in jax.tree.leaves(select_units(variables[name], units)):
                digest.update(np.asarray(leaf).tobytes())
        return digest.hexdigest()[:24]


@functools.cache
def _code() -> str:
    """A digest of this package: features of another version are not taken for this one's."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parents[1].rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


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
