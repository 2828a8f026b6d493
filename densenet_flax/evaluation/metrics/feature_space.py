"""What the features of images have in common: with their class, and with their patient.

Two images are as near as their features point in one direction (cosine similarity), which does not
depend on how strongly an image is stained or how much tissue it shows, as lengths do.
"""

import dataclasses

import numpy as np
import scipy  # its parts are imported when they are first used
from jaxtyping import Bool, Float, Int, Shaped

from densenet_flax.common.trees import JsonDict

MAX_IMAGES = 4000  # all pairs are compared: the cost grows with the square
NEIGHBORS = 4
_CHUNK = 512  # rows of the table of similarities at a time


@dataclasses.dataclass(frozen=True, eq=False)
class FeatureSpace:
    """The features of M images of a table of predictions.

    Attributes:
      rows: the rows of the table, all or as many as MAX_IMAGES, evenly spaced.
      coordinates: along the two axes of the largest variance (PCA).
      neighbors: positions in `rows` of the nearest other images of each, nearest first.
      summary: what `metrics.json` says of them.
    """

    rows: Int[np.ndarray, " M"]
    coordinates: Float[np.ndarray, "M 2"]
    neighbors: Int[np.ndarray, "M n"]
    summary: JsonDict


def measure_features(
    features: Float[np.ndarray, "N C"],
    label: Int[np.ndarray, " N"],
    patient: Shaped[np.ndarray, " N"],
) -> FeatureSpace | None:
    """Finds the axes and the neighbors of images, and what neighbors have in common.

    `summary` has, each as 'accuracy' and 'chance' (None where there is nothing to count):

    * 'patient': how often the nearest other image is of the same patient, of images whose patient
      has others; by chance as often as another image of the same class is, drawn at random.
    * 'class': how often the nearest image of any other patient is of the same class; by chance as
      often as any image of another patient is.

    Returns None for fewer than three images or features, or features that are not finite.
    """
    rows = np.unique(np.linspace(0, len(label) - 1, min(len(label), MAX_IMAGES)).astype(int))
    if len(rows) < 3 or features.shape[1] < 3 or not np.isfinite(features[rows]).all():
        return None
    label, (_, patient) = label[rows], np.unique(patient[rows], return_inverse=True)
    x = features[rows].astype(np.float32)
    x /= np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    coordinates, explained = _principal_axes(x)

    count = min(NEIGHBORS, len(x) - 1)
    neighbors = np.empty((len(x), count), np.int64)
    nearest_of_others = np.empty(len(x), np.int64)  # leaving out all images of the same patient
    for begin in range(0, len(x), _CHUNK):
        chunk = np.arange(begin, min(begin + _CHUNK, len(x)))
        similarity = x[chunk] @ x.T
        similarity[np.arange(len(chunk)), chunk] = -np.inf
        # Sorting all of a row would take longer than all else here.
        nearest = np.argpartition(-similarity, count - 1, axis=1)[:, :count]
        order = np.argsort(-np.take_along_axis(similarity, nearest, 1), axis=1, kind="stable")
        neighbors[chunk] = np.take_along_axis(nearest, order, 1)
        similarity[patient[chunk, None] == patient] = -np.inf
        nearest_of_others[chunk] = similarity.argmax(axis=1)

    same_patient = patient[neighbors[:, 0]] == patient
    same_class = label[nearest_of_others] == label
    # For each image: the images of its patient, of its class, and of both.
    patient_size, class_size = np.bincount(patient)[patient], np.bincount(label)[label]
    size = _count_pairs(patient, label)
    with np.errstate(invalid="ignore", divide="ignore"):
        patient_chance = (size - 1) / (class_size - 1)
        class_chance = (class_size - size) / (len(x) - patient_size)
    summary = {
        "images": len(x),
        "patients": int(patient.max()) + 1,
        "features": features.shape[1],
        "explained_variance": explained,
        "patient": _rates(same_patient, patient_chance, (patient_size > 1) & (class_size > 1)),
        "class": _rates(same_class, class_chance, patient_size < len(x)),
    }
    return FeatureSpace(rows, coordinates, neighbors, summary)


def _rates(
    hits: Bool[np.ndarray, " M"], chance: Float[np.ndarray, " M"], counted: Bool[np.ndarray, " M"]
) -> JsonDict:
    if not counted.any():
        return {"accuracy": None, "chance": None, "images": 0}
    return {
        "accuracy": float(hits[counted].mean()),
        "chance": float(chance[counted].mean()),
        "images": int(counted.sum()),
    }


def _count_pairs(a: Int[np.ndarray, " M"], b: Int[np.ndarray, " M"]) -> Int[np.ndarray, " M"]:
    """For each image the number of images with both of its values."""
    _, index, counts = np.unique(np.stack([a, b]), axis=1, return_inverse=True, return_counts=True)
    return counts[index.ravel()]


def _principal_axes(x: Float[np.ndarray, "M C"]) -> tuple[Float[np.ndarray, "M 2"], list[float]]:
    """Coordinates along the two axes of the largest variance, and the share that each has of it."""
    centered = (x - x.mean(axis=0)).astype(np.float64)
    total = float(np.square(centered).sum())
    if total < 1e-9 * len(x):  # all are the same but for rounding; ARPACK fails there
        return np.zeros((len(x), 2)), [0.0, 0.0]
    # Two vectors of thousands, from a start of its own, so that a report repeats to the bit.
    start = np.random.default_rng(0).normal(size=min(centered.shape))
    vectors, values, _ = scipy.sparse.linalg.svds(centered, k=2, v0=start)
    # A vector and its negative are the same axis: the largest coordinate is positive.
    coordinates = (vectors * values)[:, ::-1]
    largest = coordinates[np.abs(coordinates).argmax(axis=0), [0, 1]]
    return coordinates * np.where(largest < 0, -1, 1), (values[::-1] ** 2 / total).tolist()
