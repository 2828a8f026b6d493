"""What enters a stage: batches of images, views of them, or features from the prefix cache."""

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from densenet_flax.common.errors import InputError
from densenet_flax.common.sharding import over_batch, process_slice, put_batch
from densenet_flax.data.augmentation.mixing import mix
from densenet_flax.data.augmentation.settings import AugmentSettings
from densenet_flax.data.augmentation.views import augment
from densenet_flax.data.batching import split_into_batches
from densenet_flax.data.dataset import Dataset
from densenet_flax.data.images.stream import prefetch_images
from densenet_flax.inference.segments import SegmentedModel
from densenet_flax.storage.feature_store import Features


@dataclasses.dataclass(frozen=True)
class Views:
    """How training images are augmented.

    Attributes:
      settings: what a view may be; as it stands, the image itself.
      count: how many views of an image there are; epoch e shows view e mod `count`. 0 for a new
        one in every epoch.
      seed: of the run.
    """

    settings: AugmentSettings = dataclasses.field(default_factory=AugmentSettings)
    count: int = 0
    seed: int = 0

    def __post_init__(self):
        if not isinstance(self.count, int) or self.count < 0:
            raise InputError(
                f"config.augment.views={self.count}: expected how many views an image has, or 0 "
                "for a new one in every epoch"
            )

    @property
    def active(self) -> bool:
        """Whether there is any augmentation."""
        return self.settings.active

    @property
    def mixes(self) -> bool:
        """Whether images are mixed with others of their batch."""
        return bool(self.settings.mixup or self.settings.cutmix)

    @property
    def reach(self) -> int:
        """Views that a cache must hold; 0 if there is no end of them."""
        return self.count if self.active else 1

    def number(self, views: np.ndarray) -> np.ndarray:
        """The number of a view among those there are."""
        return views % self.count if self.count else views

    def of(self, images: jax.Array, ids: jax.Array, views: jax.Array) -> jax.Array:
        """Views of uint8 images [B, H, W, 3], by ids and numbers of views int32 [B]."""
        return augment(images, ids, seed=self.seed, epoch=views, settings=self.settings)

    def mixed(self, batch: Mapping[str, Any], classes: int) -> dict[str, Any]:
        """A batch with mixed `inputs` and soft targets under `target`."""
        targets = jax.nn.one_hot(batch["label"], classes)
        images, targets = mix(
            batch["inputs"],
            targets,
            batch["id"],
            seed=self.seed,
            epoch=batch["view"],
            settings=self.settings,
        )
        return {**batch, "inputs": images, "target": targets}


@dataclasses.dataclass(frozen=True)
class Cached:
    """Features and where those of an image are.

    Attributes:
      features: all of them.
      places: for each id its row without augmentation; -1 if it has none.
      first_view: for each id the row of its view 0; -1 likewise.
      images: how many images have views; those of the next view begin so many rows later.
    """

    features: Features
    places: np.ndarray
    first_view: np.ndarray
    images: int

    def rows(self, ids: np.ndarray, views: np.ndarray | None) -> np.ndarray:
        """Rows of these images, or of these views of them."""
        if views is None:
            return self.places[ids]
        return self.first_view[ids] + views * self.images


@dataclasses.dataclass(frozen=True)
class StageInputs:
    """Batches of one stage, with what enters at its cut.

    Attributes:
      dataset: where the images are.
      pipeline: the compiled network, for what is not cached.
      variables: of the frozen part, likewise.
      cut: the unit where the stage begins.
      views: how training images are augmented.
      cached: features at the cut, or None.
      workers: processes that decode what is streamed.
    """

    dataset: Dataset
    pipeline: SegmentedModel
    variables: Mapping[str, Any]
    cut: str
    views: Views = dataclasses.field(default_factory=Views)
    cached: Cached | None = None
    workers: int = 0

    def batches(
        self, ids: np.ndarray, batch_size: int, views: np.ndarray | None = None
    ) -> Iterator[tuple[np.ndarray, np.ndarray, dict[str, Any]]]:
        """Cuts ids into batches on the devices, the last one filled up with weight 0.

        Args:
          ids: of images, in the order of the batches.
          batch_size: images in each.
          views: number of the view of each; None for the images as they are.

        Yields:
          The ids and weights [batch_size], and the batch: `inputs` (images, 0 to 255, if the cut
          is the stem, else features), `label`, `weight`, and `target` where images are mixed.
        """
        parts = list(split_into_batches(ids, batch_size))
        numbers: list[np.ndarray | None] = [None] * len(parts)
        if views is not None and self.views.active:
            every = self.views.number(views)
            numbers = [some for some, _ in split_into_batches(every, batch_size)]
        mesh = self.pipeline.mesh
        images: Iterator[np.ndarray] = iter(())
        if not self.cached:
            wanted = [process_slice(rows, mesh) for rows, _ in parts]
            images = prefetch_images(self.dataset.images, wanted, workers=self.workers)
        for (rows, weight), number in zip(parts, numbers, strict=True):
            take = functools.partial(self._take, rows, number, images)
            batch = put_batch(np.arange(len(rows)), weight, take, mesh)
            yield rows, weight, self._enter(batch)

    def _take(
        self,
        ids: np.ndarray,
        views: np.ndarray | None,
        images: Iterator[np.ndarray],
        places: np.ndarray,
    ) -> dict[str, Any]:
        """This process's part of a batch, on the host."""
        mine = ids[places]
        found: dict[str, Any] = {"label": self.dataset.labels[mine]}
        if self.cached:
            rows = self.cached.rows(mine, None if views is None else views[places])
            if self.cached.features.on_device:
                return {**found, "row": rows.astype(np.int32)}
            return {**found, "inputs": self.cached.features.rows(self.cut, rows)}
        found["inputs"] = next(images)
        if views is not None:
            found |= {"id": mine.astype(np.int32), "view": views[places].astype(np.int32)}
        return found

    def _enter(self, batch: dict[str, Any]) -> dict[str, Any]:
        """On the devices: from rows to features, or from images to views to the cut."""
        if "row" in batch and self.cached:
            batch["inputs"] = self.cached.features.gather(self.cut, batch.pop("row"))
        if "view" in batch:
            batch["inputs"] = self.views.of(batch["inputs"], batch["id"], batch["view"])
            if self.views.mixes:
                batch = self.views.mixed(batch, self.pipeline.model.num_classes)
            del batch["id"], batch["view"]
        if not self.cached and self.cut != "stem":
            batch["inputs"] = self.pipeline.run(self.variables, batch["inputs"], stop=self.cut)
        return batch


def batch_shapes(
    pipeline: SegmentedModel,
    cut: str,
    images: tuple[int, ...],
    batch_size: int,
    *,
    mixes: bool = False,
) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of the batches of training images that `StageInputs` gives: all that compiling needs.

    Args:
      pipeline: the network.
      cut: the unit where the stage begins.
      images: shape of all images, [N, H, W, 3].
      batch_size: images in a batch.
      mixes: whether images are mixed, and so have soft targets.
    """
    rows = batch_size + -batch_size % pipeline.mesh.size
    # Mixed images are no longer whole numbers.
    entering = jax.ShapeDtypeStruct(
        (rows, *images[1:]), np.dtype(np.float32 if mixes else np.uint8)
    )
    if cut != "stem":
        entering = pipeline.input_spec(cut, entering.shape)
    shapes = {
        "inputs": (entering.shape, entering.dtype),
        "label": ((rows,), np.int32),
        "weight": ((rows,), np.float32),
    }
    if mixes:
        shapes["target"] = ((rows, pipeline.model.num_classes), np.float32)
    sharding = over_batch(pipeline.mesh)
    return {
        name: jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)
        for name, (shape, dtype) in shapes.items()
    }
