"""A trained network as one object: images of any size in; probabilities, features and maps out."""

import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import scipy  # its parts are imported when they are first used
from jaxtyping import Array, Float, Int, UInt8

from densenet_flax.common.errors import InputError
from densenet_flax.common.prefetch import in_flight, prefetch
from densenet_flax.common.sharding import begin_copy_to_host, make_mesh, put_batch, replicate
from densenet_flax.common.trees import JsonDict, Variables
from densenet_flax.data.images.decode import resize
from densenet_flax.data.images.inputs import ImageLike, ImagesLike, list_images, read_pixels
from densenet_flax.data.images.stain_normalization import make_normalizer, resolve_settings
from densenet_flax.evaluation.metrics.operating_point import OperatingPoint
from densenet_flax.inference.occlusion import occlusion_maps
from densenet_flax.inference.results import Explanation, Prediction, to_probabilities
from densenet_flax.inference.saliency import is_cam, next_unit, saliency_maps
from densenet_flax.inference.segments import SegmentedModel
from densenet_flax.inference.tta import mean_over_views, num_views, symmetric_views
from densenet_flax.models.densenet import DenseNet, global_average_pool
from densenet_flax.weights.inference_settings import StoredOperatingPoint
from densenet_flax.weights.info import WeightsInfo

DEFAULT_IMAGE_SIZE = (224, 224)  # of most published DenseNets; for weights that do not state it
DEFAULT_BATCH_SIZE = 32
_DEFAULT_BATCH_PIXELS = 32 * 512**2

ImageBatch: TypeAlias = UInt8[np.ndarray, "N H W 3"]  # images as `Classifier.prepare` returns them
MAP_METHODS = ("cam", "occlusion")
_Output = TypeVar("_Output")
Target: TypeAlias = int | str | Sequence[int | str]  # a class, or one for each image


@dataclasses.dataclass(frozen=True, eq=False)
class ForwardOutput:
    """The output of the network for one batch of N images.

    Attributes:
      probability: float64, the network's own probabilities.
      features: float32, the pooled output of the last unit, or of the one that was asked for.
      norm_input: the input of the last norm, on the devices and with the padding of the batch, so
        M ≥ N rows; saliency maps are computed from it.
    """

    probability: Float[np.ndarray, "N K"]
    features: Float[np.ndarray, "N C"]
    norm_input: Float[Array, "M h w C"]


class Classifier:
    """A trained network with its classes, preprocessing, threshold and temperature.

    Make one with `load_classifier`:

        classifier = densenet_flax.load_classifier("runs/quickstart")  # or "model.safetensors"
        prediction = classifier.predict(["a.png", "b.jpg"])
        prediction.decision  # array(['benign', 'malignant'])
        prediction.probability  # float64 [2, 2], columns as in classifier.class_names
        classifier.embed(["a.png"])  # float32 [1, 1920]; of another unit with unit="pool4"
        classifier.explain(["a.png"]).picture(0, "a.png").save("a-map.png")

    The first call compiles the network, for one shape: every batch is padded to it.

    Attributes:
      class_names: names of the K classes, in the order of the probabilities.
      image_size: (height, width) in pixels that images are resized to.
      info: what the weights file says about the network.
      operating_point: threshold and temperature.
      tta: whether probabilities are averaged over the symmetric views of each image.
      images_per_batch: number of images that `forward` takes at most.
      network: the compiled network.
      variables: its variables, on the devices.
    """

    def __init__(
        self,
        variables: Variables,
        info: WeightsInfo,
        *,
        image_size: tuple[int, int] | None = None,
        batch_size: int = DEFAULT_BATCH_SIZE,
        cuts: Sequence[str] = (),
    ):
        """Puts a network on the devices; the sizes and errors are those of `load_classifier`.

        Args:
          variables: those of the whole network, with a head.
          info: which network it is and how to use it.
          image_size: (height, width).
          batch_size: images, or views of them, that the network takes at a time.
          cuts: names of the units at which the run's stages cut the network.
        """
        if not info.num_classes:
            raise InputError(
                f"{info.source or 'the weights'}: a backbone without a head cannot classify; train "
                "one with main.py --config.model.weights=…"
            )
        settings, point = info.inference, info.inference.operating_point
        height, width = image_size or settings.image_size or DEFAULT_IMAGE_SIZE
        if min(height, width) < 32:  # the network halves an image five times
            raise InputError(f"image_size=({height}, {width}): expected at least 32 each way")
        if batch_size < 1:
            raise InputError(f"batch_size={batch_size}: expected at least 1")
        self._set_info(info, (int(height), int(width)))
        self.tta = point is not None and point.tta
        self._views = num_views(self.image_size) if self.tta else 1
        self.images_per_batch = max(1, batch_size // self._views)
        self._normalize = make_normalizer(resolve_settings(settings.stain))
        model, mode = info.build_model(dtype=jnp.dtype(settings.dtype)), info.preprocessing
        # With the cuts of the run the segments are the run's, which JAX's compilation cache holds.
        self.network = SegmentedModel(model, make_mesh(), cuts=cuts, preprocessing=mode)
        self.variables = replicate(dict(variables), self.network.mesh)

    def _set_info(self, info: WeightsInfo, image_size: tuple[int, int]) -> None:
        self.info, self.image_size = info, image_size
        self.class_names = _class_names(info)
        self.operating_point = _operating_point(info.inference.operating_point)
        self.tta = False

    @property
    def model(self) -> DenseNet:
        """The Flax module."""
        return self.network.model

    @property
    def num_features(self) -> int:
        """Number of pooled features that enter the head."""
        return self.info.layout.features

    def describe(self) -> JsonDict:
        """What decides the outputs, apart from the variables; as JSON values."""
        return {
            **self.info.to_dict(),
            "image_size": list(self.image_size),
            "tta": self.tta,
        }

    @property
    def is_multilabel(self) -> bool:
        """Whether classes are independent: a sigmoid of several outputs."""
        return self.info.activation == "sigmoid" and self.info.num_classes > 1

    def predict(self, images: ImagesLike) -> Prediction:
        """Computes probabilities and decisions.

        Args:
          images: uint8 [N, H, W, 3] or one [H, W, 3], RGB from 0 to 255, not preprocessed; or
            one or several of any size: arrays, Pillow images, bytes of image files, or paths.

        Raises:
          InputError: something cannot be read as an image.
        """
        batches = self._batches(list_images(images), self.begin_forward)
        outputs = [output.probability for _, _, output in batches]
        return self.decide(np.concatenate([np.empty((0, len(self.class_names))), *outputs]))

    def embed(self, images: ImagesLike, *, unit: str = "norm") -> Float[np.ndarray, "N C"]:
        """Computes the mean over all positions of the output of a unit, float32.

        Args:
          images: as for `predict`. Symmetric views are not averaged.
          unit: a unit of the backbone, such as 'conv4_block48' or 'pool3'. Those of the last one,
            'norm', enter the head; DenseNet201 has C = 1,920 of them. Earlier units have fewer
            features, of smaller parts of the image, and inside a dense block all that its layers
            have added so far, before the norm that the next layer begins with.

        Raises:
          InputError: something cannot be read as an image, or there is no such unit.
        """
        width = self.count_features(unit)
        batches = self._batches(list_images(images), lambda batch: self.begin_embed(batch, unit))
        outputs = [features for _, _, features in batches]
        return np.concatenate([np.empty((0, width), np.float32), *outputs])

    def count_features(self, unit: str) -> int:
        """The number of features that `embed` returns of a unit; InputError if there is none."""
        after = next_unit(self.model, unit)
        return self.model.input_shape(after, (1, *self.image_size, 3))[-1]

    def explain(
        self,
        images: ImagesLike,
        target: Target | None = None,
        *,
        unit: str = "norm",
        method: str = "cam",
    ) -> Explanation:
        """Computes saliency maps: which regions of the images are evidence for a class.

        Args:
          images: as for `predict`.
          target: a class, by name or index, or one for each image; by default the decided class.
          unit: a unit of the backbone, such as 'conv4_block48'. Earlier units give maps of more
            positions, of features that determine the decision less. The last one has 7 × 7 at
            224 × 224 pixels.
          method: 'cam', a CAM or Grad-CAM of the unit; or 'occlusion', what the score loses when a
            part of the image is hidden, of no unit: 14 × 14 positions at 224 × 224 pixels, and a
            pass through the network for each.

        Raises:
          InputError: something cannot be read as an image, or there is no such class, unit or
            method.
        """
        next_unit(self.model, unit)  # rejects an unknown unit before the images are read
        if method not in MAP_METHODS:
            raise InputError(f"method={method!r}: expected one of {', '.join(MAP_METHODS)}")
        images = list_images(images)
        targets = None if target is None else _class_indices(target, self.class_names, len(images))
        maps, labels = [], []
        for rows, batch, output in self._batches(images, self.begin_forward):
            decided = self.decide(output.probability).label
            labels.append(decided if targets is None else targets[rows])
            maps.append(self.explain_batch(batch, labels[-1], output, unit=unit, method=method))
        all_maps = np.concatenate(maps) if maps else np.empty((0, 1, 1), np.float32)
        label = np.concatenate([np.empty(0, np.int64), *labels])
        if method == "occlusion":
            return Explanation(all_maps, label, self.class_names, "", "occlusion")
        method = "CAM" if is_cam(self.model, unit) else "Grad-CAM"
        return Explanation(all_maps, label, self.class_names, unit, method)

    def prepare(self, image: ImageLike, name: object = "image") -> UInt8[np.ndarray, "H W 3"]:
        """Decodes, stain-normalizes and resizes an image as in training. Safe to call from threads.

        Raises InputError with `name` for an image that cannot be read.
        """
        # In the order of training: the stain is estimated before pixels are averaged.
        return resize(
            self._normalize(read_pixels(image, name, self.info.inference.bits)), self.image_size
        )

    def forward(self, batch: ImageBatch) -> ForwardOutput:
        """Runs the network on 1 to `images_per_batch` images that `prepare` returned.

        Raises InputError for another number of them.
        """
        return self.begin_forward(batch)()

    def begin_forward(
        self, batch: ImageBatch, *, unit: str = "norm"
    ) -> Callable[[], ForwardOutput]:
        """Begins what `forward` does; the function that it returns waits for the output.

        `unit` is the one whose features are returned. One in the middle cuts the network once more,
        which may round the probabilities differently.
        """
        if not 0 < len(batch) <= self.images_per_batch:
            raise InputError(
                f"a batch of {len(batch)} images: expected 1 to {self.images_per_batch}"
            )
        # In three segments, because the input of the norm and the features are returned as well.
        # They are the segments of the evaluation, so the compilation cache of the run has them.
        x = self._to_devices(batch, self.images_per_batch)
        x = symmetric_views(x) if self.tta else x
        after = next_unit(self.model, unit)
        network, features, start = self.network.with_cut(after), None, "stem"
        if unit != "norm":
            x, start = network.run(self.variables, x, stop=after), after
            features = _pool(x)
        norm_input = network.run(self.variables, x, start=start, stop="norm")
        last = network.run(self.variables, norm_input, start="norm", stop="head")
        logits = begin_copy_to_host(network.run(self.variables, last, start="head"))
        features = last if features is None else features
        if self._views > 1:  # features and maps are those of the first view, the image itself
            features, norm_input = features[:: self._views], norm_input[:: self._views]
        features, n = begin_copy_to_host(features), len(batch)

        def output() -> ForwardOutput:
            probability = to_probabilities(np.asarray(logits), self.info.activation)
            if self._views > 1:
                probability = mean_over_views(probability, self._views)
            on_host = np.asarray(features).astype(np.float32)
            return ForwardOutput(probability[:n], on_host[:n], norm_input)

        return output

    def begin_embed(self, batch: ImageBatch, unit: str) -> Callable[[], Float[np.ndarray, "N C"]]:
        """Begins to compute the features of a unit alone; the function that it returns waits."""
        # The shape of `forward`, with room for views, which is compiled already.
        x = self._to_devices(batch, self.images_per_batch * self._views)
        after = next_unit(self.model, unit)
        x = self.network.with_cut(after).run(self.variables, x, stop=after)
        features = begin_copy_to_host(_pool(x))
        return lambda: np.asarray(features)[: len(batch)]

    def explain_batch(
        self,
        batch: ImageBatch,
        label: Int[np.ndarray, "N"],
        output: ForwardOutput,
        *,
        unit: str,
        method: str = "cam",
    ) -> Float[np.ndarray, "N h w"]:
        """Computes the maps of prepared images from the output of `forward` for them."""
        if method == "occlusion":
            passes = self.images_per_batch * self._views  # of the shape that is compiled already
            return occlusion_maps(self.network, self.variables, batch, label, batch_size=passes)
        size = len(output.norm_input)  # with the padding: a shape that is compiled already
        target = np.zeros(size, np.int64)
        target[: len(label)] = label
        x = self._to_devices(batch, size) if unit != "norm" else None
        maps = saliency_maps(
            self.network, self.variables, x, target, unit=unit, norm_input=output.norm_input
        )
        return maps[: len(batch)]

    def decide(self, probability: Float[np.ndarray, "N K"]) -> Prediction:
        """Calibrates the network's own probabilities and decides, at the operating point."""
        point = self.operating_point
        if self.is_multilabel:
            # Each output is a question of its own, which an operating point of one does not answer.
            calibrated = probability
            if point.temperature != 1:
                scores = scipy.special.logit(probability) / point.temperature
                calibrated = scipy.special.expit(scores)
            label, present = probability.argmax(axis=1), probability >= 0.5
            return Prediction(self.class_names, probability, calibrated, label, present)
        if len(self.class_names) == 2:
            label = point.decide(probability[:, 1])
            positive = point.calibrate(probability[:, 1])
            calibrated = np.stack([1 - positive, positive], axis=1)
        else:
            label, calibrated = probability.argmax(axis=1), probability
            if point.temperature != 1:
                with np.errstate(divide="ignore"):  # log(0) is -inf, whose softmax is 0 again
                    scores = np.log(probability) / point.temperature
                calibrated = scipy.special.softmax(scores, axis=1)
        return Prediction(self.class_names, probability, calibrated, label)

    def _batches(
        self, images: Sequence[ImageLike], begin: Callable[[ImageBatch], Callable[[], _Output]]
    ) -> Iterator[tuple[slice, ImageBatch, _Output]]:
        """Yields the rows of each batch, its prepared images and the output for them."""
        size = self.images_per_batch

        def prepare(numbered: tuple[int, ImageLike]) -> UInt8[np.ndarray, "H W 3"]:
            return self.prepare(numbered[1], f"image {numbered[0]}")

        def begun() -> Iterator[tuple[slice, ImageBatch, Callable[[], _Output]]]:
            # Two batches ahead: one that the network takes next, and one that is being decoded.
            prepared = prefetch(prepare, enumerate(images), depth=2 * size)
            with contextlib.closing(prepared):
                for start in range(0, len(images), size):
                    batch = np.stack(list(itertools.islice(prepared, size)))
                    yield slice(start, start + size), batch, begin(batch)

        for rows, batch, output in in_flight(begun()):
            yield rows, batch, output()

    def _to_devices(self, batch: ImageBatch, size: int) -> UInt8[Array, "M H W 3"]:
        """Pads a batch to `size` with its last image and splits it over the devices."""
        ids, weight = np.minimum(np.arange(size), len(batch) - 1), np.ones(size, np.float32)
        return put_batch(ids, weight, lambda rows: {"x": batch[rows]}, self.network.mesh)["x"]


_pool = jax.jit(global_average_pool)


def _class_names(info: WeightsInfo) -> tuple[str, ...]:
    """Names of the classes of the probabilities; made up where the weights have none."""
    names = info.class_names
    if info.num_classes == 1:  # a single output is P(positive): there are two classes
        positive = names[0] if names else "positive"
        return (f"not {positive}", positive)
    return names or tuple(f"class {index}" for index in range(info.num_classes))


def _operating_point(point: StoredOperatingPoint | None) -> OperatingPoint:
    """Threshold and temperature of the evaluation; 0.5 and 1 if there was none."""
    if point is None:
        return OperatingPoint()
    threshold = 0.5 if point.threshold is None else point.threshold  # None: more than two classes
    values = {name: getattr(point, name) for name in OperatingPoint.__dataclass_fields__}
    return OperatingPoint(**{**values, "threshold": threshold})


def _class_indices(target: Target, class_names: tuple[str, ...], n: int) -> Int[np.ndarray, "N"]:
    """The index of the target class of each of `n` images."""
    targets = [target] if isinstance(target, int | str | np.integer) else list(target)
    if len(targets) not in (1, n):
        raise InputError(
            f"target: {len(targets)} classes for {n} images; expected one for each, or one"
        )
    index_of: dict[int | str, int] = {i: i for i in range(len(class_names))}
    index_of |= {name: i for i, name in enumerate(class_names)}
    for name in targets:
        if name not in index_of:
            raise InputError(
                f"target {name!r}: expected a class, {', '.join(class_names)}, or its index from "
                f"0 to {len(class_names) - 1}"
            )
    return np.resize(np.array([index_of[name] for name in targets], np.int64), n)
