"""What enters a stage: batches of images, of views of them, or of cached features."""

import contextlib
import dataclasses
import functools
from collections.abc import Generator, Iterator, Mapping, Sequence

import jax
import numpy as np
from jaxtyping import Array, Int, UInt8

from densenet_flax.common.errors import InputError
from densenet_flax.common.prefetch import prefetch
from densenet_flax.common.sharding import over_batch, process_rows, put_batch
from densenet_flax.common.trees import Variables
from densenet_flax.data.augmentation.settings import AugmentSettings
from densenet_flax.data.augmentation.views import augment, mix
from densenet_flax.data.batching import BatchRows, EpochBatches
from densenet_flax.data.dataset import Dataset
from densenet_flax.data.images.stream import prefetch_images
from densenet_flax.inference.dataset_predictions import Batch
from densenet_flax.inference.segments import SegmentedModel
from densenet_flax.storage.feature_store import Features


@dataclasses.dataclass(frozen=True)
class Views:
    """How training images are augmented.

    Attributes:
      settings: what a view may be; by default the image itself.
      count: views of an image; epoch e shows view e mod `count`. 0 for a new one in every epoch.
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
    def distinct(self) -> int:
        """How many views of an image differ, so that a cache must hold them; 0 for no limit."""
        return self.count if self.active else 1

    def augment(
        self, images: UInt8[Array, "N H W 3"], ids: Int[Array, "N"], views: Int[Array, "N"]
    ) -> UInt8[Array, "N H W 3"]:
        """Views of images, by the ids of the images and the numbers of the views."""
        return augment(images, ids, seed=self.seed, epoch=views, settings=self.settings)

    def mix(self, batch: Mapping[str, jax.Array], num_classes: int) -> dict[str, jax.Array]:
        """A batch with mixed `inputs` and soft labels as `target`."""
        images, targets = mix(
            batch["inputs"],
            jax.nn.one_hot(batch["label"], num_classes),
            batch["id"],
            seed=self.seed,
            epoch=batch["view"],
            settings=self.settings,
        )
        return {**batch, "inputs": images, "target": targets}


@dataclasses.dataclass(frozen=True)
class CachedFeatures:
    """Features of all images and their views, and the row of each.

    Attributes:
      row_index: for each id its row without augmentation; -1 if there is none.
      first_view: for each id the row of its view 0; -1 if there is none.
      augmented: how many images have views; the rows of one view follow those of the view before.
    """

    features: Features
    row_index: Int[np.ndarray, "N"]
    first_view: Int[np.ndarray, "N"]
    augmented: int

    def rows(
        self, ids: Int[np.ndarray, "B"], views: Int[np.ndarray, "B"] | None
    ) -> Int[np.ndarray, "B"]:
        """Rows of these images, or of these views of them."""
        if views is None:
            return self.row_index[ids]
        return self.first_view[ids] + views * self.augmented


@dataclasses.dataclass(frozen=True)
class LocalIds(Sequence[Int[np.ndarray, "b"]]):
    """The ids at some positions of each batch."""

    rows: EpochBatches
    positions: Int[np.ndarray, "b"]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Int[np.ndarray, "b"]:  # type: ignore[override]
        """Those of one batch."""
        return self.rows[index].ids[self.positions]


@dataclasses.dataclass(frozen=True)
class StageInputs:
    """Batches of one stage, with what enters at its cut.

    Attributes:
      segmented: the compiled network, which computes what is not cached.
      variables: of the network before the cut, for the same.
      cut: the unit where the stage begins.
      cached: features at the cut; None without a cache.
      workers: processes that decode streamed images.
    """

    dataset: Dataset
    segmented: SegmentedModel
    variables: Variables
    cut: str
    views: Views = dataclasses.field(default_factory=Views)
    cached: CachedFeatures | None = None
    workers: int = 0

    def fixed_batches(
        self, ids: Int[np.ndarray, "N"], batch_size: int, view: int | None = None
    ) -> Iterator[Batch]:
        """The batches of images in this order, as they are or in one view of each."""
        views = None if view is None else np.full(len(ids), view)
        return self.batches(EpochBatches(lambda _: (ids, views), len(ids), batch_size))

    def batches(self, rows: EpochBatches) -> Generator[Batch, None, None]:
        """Puts batches of images on the devices, two of them ahead of their use.

        Args:
          rows: the images of each batch, and the numbers of their views if they have any.

        Yields:
          The ids and weights [B], and the batch: `inputs` (images [B, H, W, 3], 0 to 255, if the
          cut is the stem, else features), `label`, `weight`, and `target` where images are mixed.
        """
        mesh = self.segmented.mesh
        images: Iterator[np.ndarray] = iter(())
        if not self.cached:
            # All batches have one size, so this process reads the same positions of each.
            local = process_rows(np.arange(rows.batch_size), mesh)
            images = prefetch_images(
                self.dataset.images, LocalIds(rows, local), workers=self.workers
            )

        def put(part: BatchRows) -> dict[str, jax.Array]:
            read = functools.partial(self._read_local, part, images)
            return put_batch(np.arange(rows.batch_size), part.weight, read, mesh)

        # One thread, which reads and copies while the devices compute. What may be a collective
        # operation stays in this one, because all processes must launch those in one order.
        on_devices = prefetch(put, rows, depth=2, threads=1)
        with contextlib.closing(on_devices):
            for part, batch in zip(rows, on_devices, strict=True):
                yield part.ids, part.weight, self._compute_inputs(batch)

    def _read_local(
        self,
        part: BatchRows,
        images: Iterator[UInt8[np.ndarray, "b H W 3"]],
        positions: Int[np.ndarray, "b"],
    ) -> dict[str, np.ndarray]:
        """This process's part of a batch, the examples at `positions`, on the host."""
        ids, views = part.ids[positions], None
        if part.views is not None and self.views.active:
            views = part.views[positions]
            if self.views.count:
                views = views % self.views.count
        local = {"label": self.dataset.labels[ids]}
        if self.cached:
            rows = self.cached.rows(ids, views)
            if self.cached.features.on_device:
                return {**local, "row": rows.astype(np.int32)}
            return {**local, "inputs": self.cached.features.take(self.cut, rows)}
        local["inputs"] = next(images)
        if views is not None:
            local |= {"id": ids.astype(np.int32), "view": views.astype(np.int32)}
        return local

    def _compute_inputs(self, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """On the devices: from rows to features, or from images to views to features."""
        if self.cached and "row" in batch:
            batch["inputs"] = self.cached.features.gather(self.cut, batch.pop("row"))
        if "view" in batch:
            batch["inputs"] = self.views.augment(batch["inputs"], batch["id"], batch["view"])
            if self.views.mixes:
                batch = self.views.mix(batch, self.segmented.model.num_classes)
            del batch["id"], batch["view"]
        if not self.cached and self.cut != "stem":
            batch["inputs"] = self.segmented.run(self.variables, batch["inputs"], stop=self.cut)
        return batch


def training_batch_specs(
    segmented: SegmentedModel, cut: str, image_shape: tuple[int, ...], batch_size: int, mixes: bool
) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes, dtypes and shardings of the batches of training images of `StageInputs.batches`.

    `image_shape` is that of all images, [N, H, W, 3]; with `mixes` labels are soft.
    """
    rows = batch_size + -batch_size % segmented.mesh.size
    spec = functools.partial(jax.ShapeDtypeStruct, sharding=over_batch(segmented.mesh))
    # Pixels of mixed images are no longer whole numbers.
    inputs = spec((rows, *image_shape[1:]), np.float32 if mixes else np.uint8)
    if cut != "stem":
        features = segmented.input_spec(cut, inputs.shape)
        inputs = spec(features.shape, features.dtype)
    labels, weights = spec((rows,), np.int32), spec((rows,), np.float32)
    specs = {"inputs": inputs, "label": labels, "weight": weights}
    if mixes:
        specs["target"] = spec((rows, segmented.model.num_classes), np.float32)
    return specs
