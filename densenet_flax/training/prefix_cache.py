"""Runs the frozen part of the network once for all epochs of a run's stages."""

# Until it is trained, the part of the network before a stage's frontier is a fixed function of the
# image. One pass over the images computes, for every stage, what enters at its cut; the epochs of
# the stage then start from there. Keras runs that part again in every epoch.

import dataclasses
import functools
import hashlib
import itertools
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jax
import numpy as np
from absl import logging
from jaxtyping import Int

from densenet_flax.common.console import progress_bar
from densenet_flax.common.errors import InputError
from densenet_flax.common.prefetch import in_flight
from densenet_flax.common.sharding import all_processes, begin_copy_to_host, replicate
from densenet_flax.common.trees import Variables
from densenet_flax.data.dataset import Dataset
from densenet_flax.inference.segments import SegmentedModel
from densenet_flax.models.frontier import Frontier
from densenet_flax.models.units import select_units
from densenet_flax.storage import feature_store
from densenet_flax.storage.feature_store import AddRows, Features, Shapes
from densenet_flax.training.input_pipeline import CachedFeatures, StageInputs, Views

_STORAGE_NAMES = {"device": "on the device", "memory": "in host memory", "disk": "in files"}


@dataclasses.dataclass
class PrefixCache:
    """What enters a run's stages: one pass of the frozen part for all stages that can share it.

    Attributes:
      frontiers: of the stages that are left.
      train: ids of the images that are augmented as `views` says.
      validation: ids of those that are not.
      mode: see `choose_storage`.
      directory: where 'disk' keeps its files, in folders named by all that they depend on.
      kept: where the other modes keep a copy for later runs if it is small; None for nowhere.
      epochs: how often the stages would run the frozen part without a cache, for the log.
      before_pass: called before a pass begins.
    """

    dataset: Dataset
    segmented: SegmentedModel
    frontiers: Sequence[Frontier]
    train: Int[np.ndarray, "T"]
    validation: Int[np.ndarray, "V"]
    batch_size: int
    mode: str = "auto"
    views: Views = dataclasses.field(default_factory=Views)
    directory: Path | None = None
    kept: Path | None = None
    epochs: int = 0
    before_pass: Callable[[], None] = lambda: None
    workers: int = 0

    def __post_init__(self):
        """Checks that mode and views are compatible."""
        self._off_reason = ""
        if self.views.mixes:
            self._off_reason = "mixup and cutmix mix other images in every epoch"
        elif not self.views.distinct:
            self._off_reason = (
                "augmentation makes a new view in every epoch; config.augment.views=8 keeps eight"
            )
        if self._off_reason and self.mode not in ("auto", "off"):
            raise InputError(
                f"config.cache={self.mode!r}: {self._off_reason}; set config.cache='auto' or 'off'"
            )
        self._can_share = can_share_pass(self.frontiers)
        self._shared: dict[str, CachedFeatures] | None = None

    def stage_inputs(self, index: int, variables: Variables) -> StageInputs:
        """The inputs of the stage of a frontier; its features are computed if they are missing.

        `variables` are those of the whole network at the start of the stage.
        """
        cut = self.frontiers[index].cut
        # Stages that can share a pass see the prefix as it is before the first of them, so features
        # of their cuts, computed in one pass now, stay valid until the last.
        if not self._can_share[index]:
            cached = self._features(variables, [cut])
        else:
            if self._shared is None:
                pairs = zip(self.frontiers, self._can_share, strict=True)
                cuts = dict.fromkeys(frontier.cut for frontier, shares in pairs if shares)
                self._shared = self._features(variables, list(cuts))
            cached = self._shared
        if cut in cached:
            return dataclasses.replace(self._uncached({}, cut), cached=cached[cut])
        return self._uncached(self._prefix(variables, cut), cut)

    def _prefix(self, variables: Variables, cut: str) -> Variables:
        """The network before a cut."""
        units = self.segmented.model.units
        units = units[: units.index(cut)]
        return {name: select_units(tree, units) for name, tree in variables.items()}

    def _uncached(self, prefix: Variables, cut: str) -> StageInputs:
        prefix = replicate(prefix, self.segmented.mesh)
        return StageInputs(
            self.dataset, self.segmented, prefix, cut, self.views, workers=self.workers
        )

    def _features(self, variables: Variables, cuts: Sequence[str]) -> dict[str, CachedFeatures]:
        """Features of all images at each cut, from one pass; {} if nothing is to be cached."""
        cuts = [unit for unit in self.segmented.cuts if unit in cuts and unit != "stem"]
        if not cuts:
            return {}
        if self._off_reason:
            logging.info("prefix cache off: %s", self._off_reason)
            return {}
        rows = len(self.train) * self.views.distinct + len(self.validation)
        image_shape = (rows, *self.dataset.images.shape[1:])
        shapes = {cut: self.segmented.input_spec(cut, image_shape) for cut in cuts}
        size = feature_store.size_in_bytes(shapes)
        storage, off_reason = feature_store.choose_storage(size, self.mode, self.directory)
        if storage == "off":
            logging.info("prefix cache off: %s; the frozen part runs in every epoch", off_reason)
            return {}
        root = self.kept if feature_store.is_kept(size) else None
        if storage == "disk":
            root = self.directory
        prefix = self._prefix(variables, cuts[-1])
        folder = root / self._key(prefix, cuts) if root else None
        arrays = feature_store.open_files(folder, shapes) if folder else None
        # The pass is a collective computation: all processes run it or none.
        is_reused = all_processes(arrays is not None)
        self._log(cuts, size, storage, is_reused)
        if not is_reused:
            self.before_pass()
            arrays = self._compute(prefix, shapes, folder, storage)
        if arrays is None:
            raise InputError(f"{folder}: cannot be read; remove it and start again")
        features = Features(arrays, storage, self.segmented.mesh)
        return dict.fromkeys(cuts, self._indexed(features))

    def _log(self, cuts: Sequence[str], size: int, storage: str, is_reused: bool) -> None:
        images = f"{len(self.train) + len(self.validation)} images"
        views = self.views.distinct
        if self.views.active:
            images += f", {views} views of those that train,"
        times = "once" if views == 1 else f"{views} times"
        if self.epochs > views:
            times += f" instead of {self.epochs} times"
        features = f"{images} at {', '.join(cuts)} {_STORAGE_NAMES[storage]}, {size / 1e9:.2f} GB"
        work = "has been run before" if is_reused else f"runs {times}"
        logging.info("prefix cache: %s; the frozen part %s", features, work)
        if self.views.active and views < self.epochs:
            message = (
                "with %d views over %d epochs each view is used again; as many views as epochs "
                "are the same as a new view in each"
            )
            logging.info(message, views, self.epochs)

    def _passes(self) -> Iterator[tuple[Int[np.ndarray, "N"], int | None]]:
        """Yields ids and their view in the order of the rows."""
        for view in range(self.views.distinct):
            yield self.train, view if self.views.active else None
        yield self.validation, None

    def _indexed(self, features: Features) -> CachedFeatures:
        """Features with the rows of each image, in the order of `_passes`."""
        n, count = len(self.train), len(self.dataset)
        row_index, first_view = np.full(count, -1), np.full(count, -1)
        first_view[self.train] = np.arange(n)
        if not self.views.active:
            row_index[self.train] = np.arange(n)
        row_index[self.validation] = n * self.views.distinct + np.arange(len(self.validation))
        return CachedFeatures(features, row_index, first_view, n)

    def _compute(
        self, prefix: Variables, shapes: Shapes, folder: Path | None, storage: str
    ) -> dict[str, np.ndarray] | None:
        """Runs the frozen part over all images and keeps the features."""
        if storage == "disk" and folder:
            with feature_store.file_writer(folder, shapes) as add:
                self._run_prefix(prefix, list(shapes), add)
            return feature_store.map_files(folder, shapes)
        arrays = {cut: np.empty(shape.shape, shape.dtype) for cut, shape in shapes.items()}
        self._run_prefix(prefix, list(shapes), feature_store.array_filler(arrays))
        if folder:
            feature_store.keep_files(folder, arrays)
        return arrays

    def _run_prefix(self, prefix: Variables, cuts: Sequence[str], add: AddRows) -> None:
        inputs = self._uncached(prefix, "stem")
        run = functools.partial(self.segmented.run, inputs.variables)
        total = sum(len(ids) for ids, _ in self._passes())

        def features() -> Iterator[tuple[int, dict[str, jax.Array]]]:
            for ids, view in self._passes():
                for _, weight, batch in inputs.fixed_batches(ids, self.batch_size, view):
                    x, start, outputs = batch["inputs"], "stem", {}
                    for cut in cuts:
                        x, start = run(x, start=start, stop=cut), cut
                        outputs[cut] = begin_copy_to_host(x)
                    yield int(weight.sum()), outputs

        with progress_bar(total, "frozen prefix") as bar:
            for count, outputs in in_flight(features()):
                for cut, output in outputs.items():
                    add(cut, np.asarray(output)[:count])
                bar.update(count)

    def _key(self, prefix: Variables, cuts: Sequence[str]) -> str:
        """A folder name that differs wherever the features could differ."""
        model = self.segmented.model
        # The head, dropout and rematerialization do not change features; everything else may.
        facts = {
            "images": self.dataset.fingerprint,
            "network": repr(model.clone(num_classes=0, hidden=(), dropout=0.0, remat="none")),
            "preprocessing": self.segmented.preprocessing,
            "cuts": list(cuts),
            "views": repr(self.views) if self.views.active else "",
            "code": package_digest(),
            "jax": [jax.__version__, jax.default_backend(), jax.devices()[0].device_kind],
            "flags": os.environ.get("XLA_FLAGS", ""),  # such as those for deterministic kernels
            "process": [jax.process_index(), jax.process_count()],
        }
        digest = hashlib.sha256(json.dumps(facts).encode())
        for ids, _ in self._passes():
            digest.update(np.ascontiguousarray(ids, np.int64).tobytes())
        for leaf in jax.tree.leaves((prefix["params"], prefix["batch_stats"])):
            digest.update(np.asarray(leaf).tobytes())
        return digest.hexdigest()[:24]


@functools.cache
def package_digest() -> str:
    """A digest of this package's code, whose other versions may compute other features."""
    files = sorted(Path(__file__).parents[1].rglob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


def can_share_pass(frontiers: Sequence[Frontier]) -> list[bool]:
    """For each of a run's stages, whether it can use features computed before the first of them."""
    # It can if no stage before it trains anything in its prefix: as long as each frontier lies at
    # or before all those before it, the usual order of unfreezing.
    first_units = [0 if frontier.cut == "stem" else frontier.index for frontier in frontiers]
    earliest_units = itertools.accumulate(first_units, min)
    return [first == earliest for first, earliest in zip(first_units, earliest_units, strict=True)]
