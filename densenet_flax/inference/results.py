"""What using a network gives: from logits to decisions, and maps to look at."""

import dataclasses

import numpy as np
import scipy  # its parts are imported when they are first used
from PIL import Image

from densenet_flax.evaluation.metrics.operating_point import OperatingPoint
from densenet_flax.inference.inputs import ImageLike, read_pixels
from densenet_flax.inference.overlay import draw_panel
from densenet_flax.inference.segments import probabilities
from densenet_flax.weights import WeightsInfo


@dataclasses.dataclass(frozen=True, eq=False)
class Prediction:
    """What a network says of some images.

    Attributes:
      class_names: in the order of the columns.
      probability: float64 [N, K], the network's own; decisions are made with these.
      calibrated: float64 [N, K], after temperature scaling; the same if no temperature is known.
      label: int64 [N], the decision: of two classes the second where its probability reaches the
        threshold; of more the likeliest.
    """

    class_names: tuple[str, ...]
    probability: np.ndarray
    calibrated: np.ndarray
    label: np.ndarray

    def __len__(self) -> int:
        return len(self.label)

    @property
    def decision(self) -> np.ndarray:
        """The name of the class that was decided on, str [N]."""
        return np.array(self.class_names)[self.label]


@dataclasses.dataclass(frozen=True, eq=False)
class Explanation:
    """Where a network found what speaks for a class.

    Attributes:
      maps: float32 [N, h, w] at the resolution of the unit; what each position adds to the score
        of the class, negative where it lowers it. See `inference.saliency.explain`.
      label: int64 [N], the class that is explained.
      class_names: names of the classes.
      unit: whose channels are weighed.
      method: 'CAM', exact, or 'Grad-CAM'.
    """

    maps: np.ndarray
    label: np.ndarray
    class_names: tuple[str, ...]
    unit: str
    method: str

    def __len__(self) -> int:
        return len(self.maps)

    def picture(self, index: int, image: ImageLike) -> Image.Image:
        """An image beside itself with its map laid over, and the scale.

        Args:
          index: which map.
          image: the image that it is of, at any size.
        """
        return draw_panel(read_pixels(image, f"image {index}"), self.maps[index])


def class_names_of(info: WeightsInfo) -> tuple[str, ...]:
    """The names of the classes; numbers where the weights have no names."""
    names = info.class_names
    if info.num_classes == 1:  # one output that says yes or no
        name = names[0] if names else "positive"
        return (f"not {name}", name)
    return names or tuple(f"class {number}" for number in range(info.num_classes))


def operating_point_of(info: WeightsInfo) -> OperatingPoint:
    """Threshold and temperature that came with the weights; 0.5 and 1 if none did."""
    stored = info.inference.operating_point
    if stored is None:
        return OperatingPoint()
    threshold = 0.5 if stored.threshold is None else stored.threshold  # None: more than two classes
    return OperatingPoint(
        threshold, stored.temperature, stored.rule, stored.chosen_on, stored.notes
    )


def to_probabilities(logits: np.ndarray, activation: str) -> np.ndarray:
    """float64 [N, K], K = 2 also of one output that says yes or no."""
    if activation == "softmax" and logits.shape[-1] > 1:
        return probabilities(logits)
    positive = scipy.special.expit(np.asarray(logits, np.float64))
    return np.concatenate([1 - positive, positive], -1) if logits.shape[-1] == 1 else positive


def decide(
    probability: np.ndarray, class_names: tuple[str, ...], point: OperatingPoint
) -> Prediction:
    """From the network's own probabilities [N, K] to calibrated ones and decisions."""
    if len(class_names) == 2:
        positive = probability[:, 1]
        calibrated = point.calibrate(positive)
        calibrated = np.stack([1 - calibrated, calibrated], axis=1)
        label = point.decide(positive)
    else:
        calibrated, label = probability, probability.argmax(axis=1)
        if point.temperature != 1:
            with np.errstate(divide="ignore"):
                scores = np.log(probability) / point.temperature
            calibrated = scipy.special.softmax(scores, axis=1)
    return Prediction(class_names, probability, calibrated, label)
