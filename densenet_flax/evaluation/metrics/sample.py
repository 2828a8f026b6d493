"""Who the patients of a table are, and thousands of resamples of them.

A resample is a row of weights: how often each patient was drawn. All images of a patient come
along with the patient, so every count of a resample is a weighted sum and no row is ever copied.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from densenet_flax.evaluation.predictions import Predictions


@dataclass(frozen=True, eq=False)
class PatientTable:
    """One row per patient, in the order of their names.

    Attributes:
        patient: Names.
        label: Index of the class; -1 for a patient with images of several.
        images: Number of images.
        correct: Number of images whose predicted class is right.
        probability: Mean over the patient's images, `[patients]` or `[patients, classes]`.
    """

    patient: np.ndarray
    label: np.ndarray
    images: np.ndarray
    correct: np.ndarray
    probability: np.ndarray


def patient_table(predictions: Predictions) -> PatientTable:
    """Gathers the images of each patient."""
    names, index = np.unique(predictions.patient, return_inverse=True)
    images = np.bincount(index)
    lowest = np.full(len(names), len(predictions.class_names))
    highest = np.full(len(names), -1)
    np.minimum.at(lowest, index, predictions.label)
    np.maximum.at(highest, index, predictions.label)
    right = predictions.prediction == predictions.label
    columns = np.atleast_2d(predictions.probability.T)
    means = np.array([np.bincount(index, weights=column) / images for column in columns])
    return PatientTable(
        patient=names,
        label=np.where(lowest == highest, lowest, -1),
        images=images,
        correct=np.bincount(index, weights=right).astype(np.int64),
        probability=means[0] if predictions.probability.ndim == 1 else means.T,
    )


@dataclass(frozen=True, eq=False)
class Sample:
    """What resampling needs of a table, or of several with nobody in common.

    Attributes:
        label: Index of the class per image.
        probability: Per image P(positive), or `[images, classes]` of more than two classes.
        predicted: Index of the class called per image, as the image's own table decides.
        patient: Number of the patient per image.
        patient_label: Index of the class per patient; -1 for a patient with images of several.
        patient_probability: Mean probability per patient.
        patient_predicted: Index of the class called per patient, by the mean probability.
        patient_rate: Share of right images per patient.
    """

    label: np.ndarray
    probability: np.ndarray
    predicted: np.ndarray
    patient: np.ndarray
    patient_label: np.ndarray
    patient_probability: np.ndarray
    patient_predicted: np.ndarray
    patient_rate: np.ndarray


def sample_of(tables: Sequence[Predictions]) -> Sample:
    """Lines the tables up; a name of a patient means another patient in another table."""
    patients = [patient_table(table) for table in tables]
    starts = np.cumsum([0, *(len(table.patient) for table in patients)])
    return Sample(
        label=np.concatenate([table.label for table in tables]),
        probability=np.concatenate([table.probability for table in tables]),
        predicted=np.concatenate([table.prediction for table in tables]),
        patient=np.concatenate(
            [
                start + np.unique(table.patient, return_inverse=True)[1]
                for start, table in zip(starts, tables, strict=False)
            ]
        ),
        patient_label=np.concatenate([table.label for table in patients]),
        patient_probability=np.concatenate([table.probability for table in patients]),
        patient_predicted=np.concatenate(
            [table.decide(found.probability) for found, table in zip(patients, tables, strict=True)]
        ),
        patient_rate=np.concatenate([table.correct / table.images for table in patients]),
    )


class Basis(NamedTuple):
    """How many patients a metric rests on: how much a resample of them can tell.

    Attributes:
        patients: Of the rarer class that it looks at; of several classes the number that, drawn
            alone, would spread as they do together.
        freedom: Degrees of freedom, None for one less than there are patients.
        reason: Why resampling can say nothing, or ''. Drawing one patient of one gives that
            patient every time: an interval without width where there is the most doubt.
    """

    patients: float
    freedom: float | None = None
    reason: str = ""


def draw_patients(stratum: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """How often each patient is drawn in each resample, `[resamples, patients]`.

    Patients are drawn with replacement within their stratum, which is their class as a rule, so
    that every resample has as many of each class as the sample.
    """
    random = np.random.default_rng(seed)
    weights = np.zeros((resamples, len(stratum)))
    for one in np.unique(stratum):
        members = np.flatnonzero(stratum == one)
        drawn = random.integers(0, len(members), (resamples, len(members)))
        cells = (drawn + np.arange(resamples)[:, None] * len(members)).ravel()
        times = np.bincount(cells, minlength=resamples * len(members))
        weights[:, members] = times.reshape(resamples, len(members))
    return weights


def per_patient(sample: Sample, values: np.ndarray) -> np.ndarray:
    """Sums of an image column, or of several `[images, columns]`, over each patient."""
    return sums_by_patient(values, sample.patient, len(sample.patient_label))


def sums_by_patient(values: np.ndarray, patient: np.ndarray, patients: int) -> np.ndarray:
    """The same of any column, given whose each row is and how many patients there are."""
    sums = np.zeros((patients, *values.shape[1:]))
    np.add.at(sums, patient, values)
    return sums
