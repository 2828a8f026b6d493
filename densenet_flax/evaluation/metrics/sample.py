"""What metrics count: the images of a table, and its patients.

Every metric is computed for many resamples of the patients at once. A resample is a row of
weights `[P]`, how often each patient is in it; all images of a patient come along with the patient,
so a count over a resample is a weighted sum and no row is copied. The table itself is the resample
with a weight of 1 for everyone, which is how point estimates are made by the same code.
"""

from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
from jaxtyping import Float, Int, Shaped

from densenet_flax.evaluation.predictions import Predictions, Probability

Weights: TypeAlias = Float[np.ndarray, "R P"]
# The values of a metric, one per resample.
Values: TypeAlias = Float[np.ndarray, " R"]


@dataclass(frozen=True, eq=False)
class Rows:
    """Cases that a metric counts once each: images, or patients.

    Attributes:
      label: Index of the true class; -1 for a patient with images of several classes.
      probability: P(positive), or a column per class of more than two.
      predicted: Index of the predicted class, as decided by the table that the row is from.
      patient: Index of the row's patient, its column in the weights of a resample.
      patients: Number of patients.
    """

    label: Int[np.ndarray, " N"]
    probability: Probability
    predicted: Int[np.ndarray, " N"]
    patient: Int[np.ndarray, " N"]
    patients: int

    @property
    def classes(self) -> int:
        """Number of classes."""
        return 2 if self.probability.ndim == 1 else self.probability.shape[1]

    @property
    def once(self) -> Weights:
        """The table itself as a resample: every patient once."""
        return np.ones((1, self.patients))

    def confusion(self, weights: Weights) -> Float[np.ndarray, "R K K"]:
        """Returns the confusion matrix of each resample: true class, predicted class."""
        k = self.classes
        counts = self.confusion_by_patient.reshape(self.patients, k * k)
        return (weights @ counts).reshape(-1, k, k)

    @property
    def confusion_by_patient(self) -> Int[np.ndarray, "P K K"]:
        """The confusion matrix of each patient's rows."""
        k = self.classes
        # One number per patient, true and predicted class, so that one bincount fills all matrices;
        # the sums over patients are then a single product for all resamples.
        cell = (self.patient * k + self.label) * k + self.predicted
        counts = np.bincount(cell, minlength=self.patients * k * k)
        return counts.reshape(self.patients, k, k)

    def sum_by_patient(
        self, values: Shaped[np.ndarray, "N *columns"]
    ) -> Float[np.ndarray, "P *columns"]:
        """Sums a column, or several, over the rows of each patient."""
        return _sum_by_patient(values, self.patient, self.patients)


@dataclass(frozen=True, eq=False)
class Sample:
    """The images of one or more tables, and the patients they are from.

    Attributes:
      image: A row per image.
      patient: A row per patient, with the mean probability of the patient's images.
      patient_names: In order within each table.
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
        return self.image.patients

    @property
    def images(self) -> Int[np.ndarray, " P"]:
        """Number of images per patient."""
        return self.images_by_class.sum(axis=1)

    @property
    def recognition_rate(self) -> Float[np.ndarray, " P"]:
        """Share of each patient's images whose predicted class is right."""
        return self.correct / self.images


def _sum_by_patient(
    values: Shaped[np.ndarray, "N *columns"], patient: Int[np.ndarray, " N"], patients: int
) -> Float[np.ndarray, "P *columns"]:
    # `np.add.at` and not `+=`, which would add only one row of each patient.
    sums = np.zeros((patients, *values.shape[1:]))
    np.add.at(sums, patient, values)
    return sums


def mean_by_patient(
    probability: Probability, patient: Int[np.ndarray, " N"], patients: int
) -> Float[np.ndarray, "P *K"]:
    """Returns the mean probability of each patient's images, by which a patient is decided."""
    images = np.bincount(patient, minlength=patients)
    # Transposed twice, so that it divides one column as well as a column per class.
    return (_sum_by_patient(probability, patient, patients).T / images).T


def sample_of(*tables: Predictions) -> Sample:
    """Gathers the images of each patient in one or more tables of the same classes.

    Each table decides by its own threshold, and a name means another patient in another table.
    """
    groups = [np.unique(table.patient, return_inverse=True) for table in tables]
    names = [table_names for table_names, _ in groups]
    starts = np.cumsum([0, *map(len, names)])
    patients = int(starts[-1])
    index = [start + inverse for start, (_, inverse) in zip(starts[:-1], groups, strict=True)]
    image = Rows(
        label=np.concatenate([table.label for table in tables]),
        probability=np.concatenate([table.probability for table in tables]),
        predicted=np.concatenate([table.prediction for table in tables]),
        patient=np.concatenate(index),
        patients=patients,
    )
    counts = image.sum_by_patient(np.eye(image.classes)[image.label]).astype(np.int64)
    mean = mean_by_patient(image.probability, image.patient, patients)
    means = np.split(mean, starts[1:-1])
    patient = Rows(
        label=np.where((counts > 0).sum(axis=1) == 1, counts.argmax(axis=1), -1),
        probability=mean,
        predicted=np.concatenate([t.decide(part) for t, part in zip(tables, means, strict=True)]),
        patient=np.arange(patients),
        patients=patients,
    )
    correct = image.sum_by_patient(image.predicted == image.label).astype(np.int64)
    return Sample(image, patient, np.concatenate(names), counts, correct)


def patient_means(predictions: Predictions) -> Predictions | None:
    """Returns a table with a row per patient: the mean probability of the patient's images.

    None if a patient has images of several classes, and so no class.
    """
    sample = sample_of(predictions)
    if np.any(sample.patient.label < 0):
        return None
    calibrated = None
    if predictions.calibrated is not None:
        uncalibrated = replace(predictions, calibrated=None, probability=predictions.calibrated)
        calibrated = sample_of(uncalibrated).patient.probability
    return Predictions(
        file=sample.patient_names,
        patient=sample.patient_names,
        label=sample.patient.label,
        probability=sample.patient.probability,
        class_names=predictions.class_names,
        threshold=predictions.threshold,
        calibrated=calibrated,
    )
