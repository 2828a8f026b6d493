"""What metrics count: the images of a table, and its patients.

Every metric is computed for many resamples of the patients at once. A resample is a row of
weights `[P]`, how often each patient is in it; all images of a patient come along with the patient,
so a count over a resample is a weighted sum and no row is copied. The table itself is the resample
with a weight of 1 for everyone, which is how point estimates are made by the same code.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float, Int, Shaped

from densenet_flax.evaluation.predictions import Predictions


@dataclass(frozen=True, eq=False)
class Rows:
    """Cases that a metric counts once each: images, or patients.

    Attributes:
      label: Index of the true class; -1 for a patient with images of several classes.
      probability: P(positive) `[N]`, or `[N, K]` of more than two classes.
      predicted: Index of the predicted class, as decided by the table that the row is from.
      patient: Index of the row's patient, its column in the weights of a resample.
    """

    label: Int[np.ndarray, " N"]
    probability: Float[np.ndarray, " N"] | Float[np.ndarray, "N K"]
    predicted: Int[np.ndarray, " N"]
    patient: Int[np.ndarray, " N"]

    @property
    def classes(self) -> int:
        """Number of classes."""
        return 2 if self.probability.ndim == 1 else self.probability.shape[1]

    def confusion(self, weights: Float[np.ndarray, "R P"]) -> Float[np.ndarray, "R K K"]:
        """Returns the confusion matrix of each resample: true class, predicted class."""
        k, patients = self.classes, weights.shape[1]
        cell = (self.patient * k + self.label) * k + self.predicted
        counts = np.bincount(cell, minlength=patients * k * k).reshape(patients, k * k)
        return (weights @ counts).reshape(-1, k, k)

    def sum_by_patient(
        self, values: Shaped[np.ndarray, "N *columns"], patients: int
    ) -> Float[np.ndarray, "P *columns"]:
        """Sums a column, or several, over the rows of each patient."""
        sums = np.zeros((patients, *values.shape[1:]))
        np.add.at(sums, self.patient, values)
        return sums


@dataclass(frozen=True, eq=False)
class Sample:
    """The images of one or more tables, and the patients they are from.

    Attributes:
      image: A row per image.
      patient: A row per patient, with the mean probability of the patient's images.
      patient_names: Their names, in order within a table.
      images_by_class: Number of images of each class of each patient.
      correct: Number of images per patient whose predicted class is right.
    """

    image: Rows
    patient: Rows
    patient_names: Shaped[np.ndarray, " P"]
    images_by_class: Int[np.ndarray, "P K"]
    correct: Int[np.ndarray, " P"]

    @property
    def classes(self) -> int:
        """Number of classes."""
        return self.image.classes

    @property
    def patients(self) -> int:
        """Number of patients."""
        return len(self.patient_names)

    @cached_property
    def images(self) -> Int[np.ndarray, " P"]:
        """Number of images per patient."""
        return self.images_by_class.sum(axis=1)

    @property
    def recognition_rate(self) -> Float[np.ndarray, " P"]:
        """Share of each patient's images whose predicted class is right."""
        return self.correct / self.images

    def sum_by_patient(
        self, values: Shaped[np.ndarray, "N *columns"]
    ) -> Float[np.ndarray, "P *columns"]:
        """Sums a column of the images, or several, over each patient."""
        return self.image.sum_by_patient(values, self.patients)


def sample_of(*tables: Predictions) -> Sample:
    """Gathers the images of each patient.

    Args:
      tables: One or more, of the same classes. Each decides by its own threshold, and a name of a
        patient means another patient in another table.
    """
    groups = [np.unique(table.patient, return_inverse=True) for table in tables]
    names = [table_names for table_names, _ in groups]
    starts = np.cumsum([0, *map(len, names)])
    image = Rows(
        label=np.concatenate([table.label for table in tables]),
        probability=np.concatenate([table.probability for table in tables]),
        predicted=np.concatenate([table.prediction for table in tables]),
        patient=np.concatenate(
            [start + inverse for start, (_, inverse) in zip(starts, groups, strict=False)]
        ),
    )
    k, patients = image.classes, int(starts[-1])
    counts = np.bincount(image.patient * k + image.label, minlength=patients * k)
    counts = counts.reshape(patients, k)
    mean = _mean_by_patient(image, counts.sum(axis=1))
    means = np.split(mean, starts[1:-1])
    patient = Rows(
        label=np.where((counts > 0).sum(axis=1) == 1, counts.argmax(axis=1), -1),
        probability=mean,
        predicted=np.concatenate([t.decide(part) for t, part in zip(tables, means, strict=True)]),
        patient=np.arange(patients),
    )
    correct = np.bincount(image.patient, weights=image.predicted == image.label)
    return Sample(image, patient, np.concatenate(names), counts, correct.astype(np.int64))


def _mean_by_patient(
    image: Rows, images: Int[np.ndarray, " P"]
) -> Float[np.ndarray, " P"] | Float[np.ndarray, "P K"]:
    columns = np.atleast_2d(image.probability.T)
    means = [np.bincount(image.patient, weights=column) / images for column in columns]
    return means[0] if image.probability.ndim == 1 else np.stack(means, axis=1)
