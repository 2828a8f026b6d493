"""A trained network as one object: images of any size in; probabilities, features and maps out.

classifier = densenet_flax.load_classifier('runs/quickstart')   # or 'model.safetensors'
classifier.predict(['tile.png']).decision
"""

import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from densenet_flax.common.errors import InputError
from densenet_flax.common.sharding import make_mesh, put_batch, replicate, to_host
from densenet_flax.data.images import decode as image_files
from densenet_flax.data.images import stain_normalization as stain
from densenet_flax.inference import tta
from densenet_flax.inference.inputs import ImageLike, list_images, read_pixels
from densenet_flax.inference.results import (
    Explanation,
    Prediction,
    class_names_of,
    decide,
    operating_point_of,
    to_probabilities,
)
from densenet_flax.inference.saliency import is_cam, next_unit, saliency_maps
from densenet_flax.inference.segments import SegmentedModel
from densenet_flax.models import frontier
from densenet_flax.models.densenet import DenseNet
from densenet_flax.storage.workdir import Workdir
from densenet_flax.weights import WeightsInfo, read_weights

IMAGE_SIZE = (224, 224)  # of weights that do not say: what DenseNets are published with
BATCH_SIZE = 32


@dataclasses.dataclass(frozen=True, eq=False)
class Output:
    """What one batch gives: probabilities [N, K], pooled features [N, C], input of the norm."""

    probability: np.ndarray
    features: np.ndarray
    entering: Any = None


class Classifier:
    """A network with all that using it takes. Make one with `load_classifier`.

    Attributes:
      class_names: in the order of the probabilities.
      image_size: (height, width) that images are brought to.
      info: what the weights say of themselves.
      point: threshold and temperature.
      tta: whether images are judged by the mean over their symmetries.
      batch_size: images, or views of them, that the network takes at a time.
    """

    def __init__(
        self,
        variables: Mapping[str, Any],
        info: WeightsInfo,
        *,
        image_size: tuple[int, int] | None = None,
        batch_size: int = BATCH_SIZE,
        cuts: Sequence[str] = (),
    ):
        """Puts a network on the devices.

        Args:
          variables: of the whole network, with a head.
          info: what they mean; `inference` holds image size, stain, dtype and operating point.
          image_size: by default that of training, or 224 × 224 where the weights do not say.
          batch_size: images, or views of them, at a time; one shape is compiled.
          cuts: units that the compiled network is cut at, as it was when it was evaluated: it is
            then found in JAX's compilation cache.

        Raises:
          InputError: there is no head, or the image size cannot be.
        """
        if not info.num_classes:
            raise InputError(
                f"{info.source or 'the weights'}: a backbone without a head, which tells no "
                "classes apart; train one with main.py --config.model.weights=…"
            )
        settings = info.inference
        height, width = image_size or settings.image_size or IMAGE_SIZE
        if min(height, width) < 32:
            raise InputError(f"image_size=({height}, {width}): expected at least 32 each way")
        if batch_size < 1:
            raise InputError(f"batch_size={batch_size}: expected at least 1")
        self.info = info
        self.class_names = class_names_of(info)
        self.image_size = (int(height), int(width))
        self.point = operating_point_of(info)
        self.tta = settings.operating_point is not None and settings.operating_point.tta
        self.batch_size = batch_size
        self._normalize = stain.make_normalizer(stain.resolve_settings(settings.stain))
        model = info.build_model(dtype=jnp.dtype(settings.dtype))
        self.pipeline = SegmentedModel(
            model, make_mesh(), cuts=cuts, preprocessing=info.preprocessing
        )
        self.variables = replicate(dict(variables), self.pipeline.mesh)

    @property
    def model(self) -> DenseNet:
        """The Flax module."""
        return self.pipeline.model

    def predict(self, images: np.ndarray | ImageLike | Sequence[ImageLike]) -> Prediction:
        """Probabilities and decisions.

        Args:
          images: uint8 [N, H, W, 3] or one [H, W, 3], RGB, 0 to 255, not preprocessed; or a list
            of images of any size: arrays, Pillow images, encoded bytes or paths.

        Raises:
          InputError: something is no image.
        """
        found = [output.probability for output, _ in self._outputs(images)]
        empty = np.empty((0, len(self.class_names)))
        return self.decide(np.concatenate([empty, *found]))

    def embed(self, images: np.ndarray | ImageLike | Sequence[ImageLike]) -> np.ndarray:
        """Features before the head, pooled: float32 [N, C], of DenseNet201 1,920.

        Args:
          images: as for `predict`.

        Raises:
          InputError: something is no image.
        """
        found = [output.features for output, _ in self._outputs(images)]
        return np.concatenate([np.empty((0, self.info.layout.features), np.float32), *found])

    def explain(
        self,
        images: np.ndarray | ImageLike | Sequence[ImageLike],
        target: int | str | Sequence[int | str] | None = None,
        *,
        unit: str = "norm",
    ) -> Explanation:
        """Where the network found what speaks for a class.

        Args:
          images: as for `predict`.
          target: a class, by name or number, or one for each image; by default what is decided.
          unit: of the line, such as 'conv4_block48': a finer map of earlier features.

        Raises:
          InputError: something is no image, no class or no unit.
        """
        next_unit(self.model, unit)
        listed = list_images(images)
        wanted = None if target is None else self._labels(target, len(listed))
        maps, labels = [np.empty((0, 1, 1), np.float32)], [np.empty(0, np.int64)]
        for output, batch in self._outputs(listed):
            count, done = len(batch), sum(map(len, labels))
            label = self.decide(output.probability).label
            label = label if wanted is None else wanted[done : done + count]
            maps.append(self.maps(batch, label, output, unit=unit))
            labels.append(label)
        method = "CAM" if is_cam(self.model, unit) else "Grad-CAM"
        return Explanation(
            np.concatenate(maps[1:] or maps), np.concatenate(labels), self.class_names, unit, method
        )

    def prepare(self, image: ImageLike, where: object = "image") -> np.ndarray:
        """One image as training saw it: decoded, stain-normalised, resized; thread-safe.

        Args:
          image: as in a list for `predict`.
          where: what messages call it.

        Returns:
          uint8 [height, width, 3].

        Raises:
          InputError: it is no image.
        """
        return image_files.resize(self._normalize(read_pixels(image, where)), self.image_size)

    def forward(self, batch: np.ndarray) -> Output:
        """Runs the network on prepared images, at most `batch_size` of them; see `prepare`.

        Args:
          batch: uint8 [N, height, width, 3]; filled up, so that one shape is compiled.
        """
        count = tta.num_views(self.image_size) if self.tta else 1
        x = self._put(batch, self.images_at_a_time)
        entering = self.pipeline.run(
            self.variables, tta.symmetric_views(x) if self.tta else x, stop="norm"
        )
        features = self.pipeline.run(self.variables, entering, start="norm", stop="head")
        logits = to_host(self.pipeline.run(self.variables, features, start="head"))
        probability = to_probabilities(logits, self.info.activation)
        if count > 1:
            probability, features = tta.mean_over_views(probability, count), features[::count]
            entering = entering[::count]
        n = len(batch)
        return Output(probability[:n], to_host(features).astype(np.float32)[:n], entering)

    def maps(
        self, batch: np.ndarray, label: np.ndarray, output: Output, *, unit: str = "norm"
    ) -> np.ndarray:
        """Maps float32 [N, h, w] of prepared images that `forward` gave this output for."""
        size = len(output.entering)
        padded = np.zeros(size, np.int64)
        padded[: len(label)] = label
        x = self._put(batch, size) if unit != "norm" else None
        found = saliency_maps(
            self.pipeline, self.variables, x, padded, unit=unit, norm_input=output.entering
        )
        return found[: len(batch)]

    def decide(self, probability: np.ndarray) -> Prediction:
        """From the network's own probabilities [N, K] to calibrated ones and decisions."""
        return decide(probability, self.class_names, self.point)

    @property
    def images_at_a_time(self) -> int:
        """How many images `forward` takes."""
        return max(1, self.batch_size // (tta.num_views(self.image_size) if self.tta else 1))

    def _outputs(self, given: Any) -> Iterator[tuple[Output, np.ndarray]]:
        """The output for each batch of images, and the batch."""
        listed = list_images(given)
        for start in range(0, len(listed), self.images_at_a_time):
            some = listed[start : start + self.images_at_a_time]
            batch = np.stack([self.prepare(x, f"image {start + i}") for i, x in enumerate(some)])
            yield self.forward(batch), batch

    def _put(self, batch: np.ndarray, size: int) -> jax.Array:
        ids = np.minimum(np.arange(size), len(batch) - 1)
        put = put_batch(
            ids, np.ones(size, np.float32), lambda i: {"x": batch[i]}, self.pipeline.mesh
        )
        return put["x"]

    def _labels(self, target: Any, count: int) -> np.ndarray:
        """The class to explain of each of `count` images."""
        listed = [target] if isinstance(target, int | str | np.integer) else list(target)
        if len(listed) not in (1, count):
            raise InputError(f"target: {len(listed)} classes for {count} images; expected one each")
        found = []
        for one in listed:
            if isinstance(one, str) and one in self.class_names:
                found.append(self.class_names.index(one))
            elif not isinstance(one, str) and 0 <= int(one) < len(self.class_names):
                found.append(int(one))
            else:
                raise InputError(
                    f"target {one!r}: expected a class, {', '.join(self.class_names)}, or its "
                    f"number from 0 to {len(self.class_names) - 1}"
                )
        return np.resize(np.array(found, np.int64), count)


def load_classifier(
    path: str | os.PathLike[str],
    *,
    image_size: tuple[int, int] | None = None,
    batch_size: int | None = None,
    dtype: str | None = None,
) -> Classifier:
    """Loads a trained network with its classes, preprocessing, threshold and temperature.

    Args:
      path: a work directory of `main.py`, or a weights file with a head: one that
        `python -m densenet_flax.weights convert RUN model.safetensors` wrote, or any of the others
        that the package reads. Of a work directory the checkpoint that was evaluated is taken.
      image_size: (height, width); by default that of training, or 224 × 224 if the file is silent.
      batch_size: images at a time; by default that of training, or 32.
      dtype: what the network computes in, 'float32' or 'bfloat16'; by default as in training.

    Raises:
      InputError: there is no network, it has no head, or the dtype is another.
    """
    place = Path(path).expanduser()
    if not place.exists():
        raise InputError(
            f"{place}: no such file or directory; expected a work directory or a weights file"
        )
    variables, info = read_weights(place)
    try:
        stain.resolve_settings(info.inference.stain)
    except InputError as error:
        raise InputError(f"{place}: {error}") from error
    if dtype not in (None, "float32", "bfloat16"):
        raise InputError(f"dtype={dtype!r}: expected 'float32' or 'bfloat16'")
    if dtype:
        inference = dataclasses.replace(info.inference, dtype=dtype)
        info = dataclasses.replace(info, inference=inference)
    config = Workdir(place).read_config()
    return Classifier(
        variables,
        info,
        image_size=image_size,
        batch_size=batch_size or config.get("batch_size", BATCH_SIZE),
        cuts=_cuts(config, info),
    )


def _cuts(config: Mapping[str, Any], info: WeightsInfo) -> list[str]:
    """Where the run's stages cut the network."""
    stages = config.get("stages", {})
    named = [stages[name] for name in config.get("stage_order", ()) if name in stages]
    return [
        frontier.resolve(stage["unfreeze_from"], info.blocks, bn_mode=stage["bn_mode"]).cut
        for stage in named
    ]
