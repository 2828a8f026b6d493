"""What a network returns to its user: probabilities, decisions and saliency maps."""

import dataclasses

import numpy as np
import scipy  # its parts are imported when they are first used
from jaxtyping import Bool, Float, Int, Shaped
from PIL import Image

from densenet_flax.data.images.inputs import ImageLike, read_pixels
from densenet_flax.inference.overlay import draw_panel


@dataclasses.dataclass(frozen=True, eq=False)
class Prediction:
    """Probabilities and decisions for N images.

    Attributes:
      class_names: names of the K classes, in the order of the columns.
      probability: float64, the network's own probabilities; decisions are made with these.
      calibrated: float64, after temperature scaling; `probability` where no temperature is known.
      label: int64, index of the decided class. Of two classes the second where its probability
        reaches the threshold; of more the most probable, also where they are independent.
      present: of independent classes (multi-label, a sigmoid of several outputs), which of them
        reach 0.5, each by itself; None where classes exclude each other.
    """

    class_names: tuple[str, ...]
    probability: Float[np.ndarray, "N K"]
    calibrated: Float[np.ndarray, "N K"]
    label: Int[np.ndarray, "N"]
    present: Bool[np.ndarray, "N K"] | None = None

    def __len__(self) -> int:
        return len(self.label)

    @property
    def decision(self) -> Shaped[np.ndarray, "N"]:
        """The name of the decided class of each image, a string array.

        Of independent classes those that are present, as 'a|b'; '' if none is.
        """
        names = np.array(self.class_names)
        if self.present is None:
            return names[self.label]
        return np.array(["|".join(names[row]) for row in self.present], np.str_)


@dataclasses.dataclass(frozen=True, eq=False)
class Explanation:
    """Saliency maps of N images: which regions support a class.

    Attributes:
      maps: float32, at the resolution of the unit: the contribution of each position to the score
        of the class, which it increases or lowers. See `densenet_flax.inference.saliency`.
      label: int64, index of the class that is explained.
      class_names: names of the classes.
      unit: name of the unit whose channels are weighted; '' for 'occlusion'.
      method: 'CAM', which is exact, 'Grad-CAM' or 'occlusion'.
    """

    maps: Float[np.ndarray, "N h w"]
    label: Int[np.ndarray, "N"]
    class_names: tuple[str, ...]
    unit: str
    method: str

    def __len__(self) -> int:
        return len(self.maps)

    def picture(self, index: int, image: ImageLike) -> Image.Image:
        """Draws the image of a map, of any size, beside a copy with the map laid over."""
        return draw_panel(read_pixels(image, f"image {index}"), self.maps[index])


def to_probabilities(
    logits: Float[np.ndarray, "N outputs"], activation: str = "softmax"
) -> Float[np.ndarray, "N K"]:
    """Applies softmax over the outputs or sigmoid to each.

    A single output is P(positive), whatever the activation, and makes K = 2 columns: negative and
    positive. Else there is one for each output.
    """
    logits = np.asarray(logits, np.float64)  # in which confident predictions stay distinguishable
    if activation == "softmax" and logits.shape[-1] > 1:
        return scipy.special.softmax(logits, axis=-1)
    positive = scipy.special.expit(logits)
    return np.concatenate([1 - positive, positive], -1) if logits.shape[-1] == 1 else positive
