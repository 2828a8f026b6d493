"""Metrics of thousands of resamples at once.

A resample is a row of weights: how often each patient was drawn. All images of a patient come
along with the patient, so every count of a resample is a weighted sum and no row is ever copied.
The results are those of a loop that copies rows and asks scikit-learn, to rounding.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from densenet_flax.evaluation.metrics import METRICS, patient_table
from densenet_flax.evaluation.predictions import Predictions

PATIENT_METRICS = (
    "patient_recognition_rate",
    "patient_accuracy_by_mean_probability",
    *METRICS[1:],
)
# Resamples × images handled at a time: what fits into a processor's cache is fastest.
_CHUNK = 1_000_000


@dataclass(frozen=True, eq=False)
class Sample:
    """What resampling needs of a table, or of several with nobody in common.

    Attributes:
        label: 0 or 1 per image.
        probability: P(positive) per image.
        predicted: 0 or 1 per image, at the image's own table's threshold.
        patient: Number of the patient per image.
        patient_label: 0 or 1 per patient; -1 for a patient with images of both classes.
        patient_probability: Mean probability per patient.
        patient_predicted: 0 or 1 per patient, by the mean probability.
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
            [
                (found.probability >= table.threshold).astype(np.int64)
                for found, table in zip(patients, tables, strict=True)
            ]
        ),
        patient_rate=np.concatenate([table.correct / table.images for table in patients]),
    )


def draw_patients(patient_label: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """How often each patient is drawn in each resample, `[resamples, patients]`.

    Patients are drawn with replacement within their class, so that every resample has as many of
    each class as the sample. Patients with images of both classes are a class of their own here.
    """
    random = np.random.default_rng(seed)
    weights = np.zeros((resamples, len(patient_label)))
    for label in np.unique(patient_label):
        members = np.flatnonzero(patient_label == label)
        drawn = random.integers(0, len(members), (resamples, len(members)))
        cells = (drawn + np.arange(resamples)[:, None] * len(members)).ravel()
        times = np.bincount(cells, minlength=resamples * len(members))
        weights[:, members] = times.reshape(resamples, len(members))
    return weights


def image_values(
    sample: Sample, weights: np.ndarray, names: Sequence[str] = METRICS
) -> dict[str, np.ndarray]:
    """Every image-level metric of every resample; NaN where it does not exist.

    Args:
        sample: The rows.
        weights: As `draw_patients` returns them.
        names: Which; without the two areas it is faster.
    """
    cells = per_patient(sample, _cells(sample.label, sample.predicted))
    found = _threshold_values(*(weights @ cells).T)
    areas = [name for name in names if name in ("roc_auc", "pr_auc")]
    if areas:
        found |= _areas(sample.label, sample.probability, sample.patient, weights, areas)
    return {name: found[name] for name in names}


def patient_values(sample: Sample, weights: np.ndarray) -> dict[str, np.ndarray]:
    """Every patient-level metric of every resample; NaN where it does not exist."""
    rate = weights @ sample.patient_rate / weights.sum(axis=1)
    if np.any(sample.patient_label < 0):
        nothing = np.full(len(weights), np.nan)
        found = dict.fromkeys(METRICS, nothing)
    else:
        found = _threshold_values(
            *(weights @ _cells(sample.patient_label, sample.patient_predicted)).T
        )
        everyone = np.arange(len(sample.patient_label))
        found |= _areas(sample.patient_label, sample.patient_probability, everyone, weights)
    found["patient_recognition_rate"] = rate
    found["patient_accuracy_by_mean_probability"] = found["accuracy"]
    return {name: found[name] for name in PATIENT_METRICS}


def per_patient(sample: Sample, values: np.ndarray) -> np.ndarray:
    """Sums of an image column, or of several `[images, columns]`, over each patient."""
    sums = np.zeros((len(sample.patient_label), *values.shape[1:]))
    np.add.at(sums, sample.patient, values)
    return sums


def _cells(label: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """1 in the column of the row's cell: true negative, false positive, false negative, true."""
    return np.eye(4)[2 * label + predicted]


def _threshold_values(
    tn: np.ndarray, fp: np.ndarray, fn: np.ndarray, tp: np.ndarray
) -> dict[str, np.ndarray]:
    """The rules of `metrics.binary_metrics` on whole columns; 0/0 is NaN."""
    both = np.where((tn + fp > 0) & (fn + tp > 0), 1.0, np.nan)
    with np.errstate(invalid="ignore", divide="ignore"):
        sensitivity, specificity = tp / (tp + fn), tn / (tn + fp)
        product = (tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)
        return {
            "accuracy": (tn + tp) / (tn + fp + fn + tp),
            "balanced_accuracy": (sensitivity + specificity) / 2,
            "sensitivity": sensitivity,
            "specificity": specificity,
            "precision": both * tp / (tp + fp),
            "f1": both * 2 * tp / (2 * tp + fp + fn),
            "mcc": np.where(product > 0, (tp * tn - fp * fn) / np.sqrt(product), np.nan),
        }


def _areas(
    label: np.ndarray,
    probability: np.ndarray,
    patient: np.ndarray,
    weights: np.ndarray,
    names: Sequence[str] = ("roc_auc", "pr_auc"),
) -> dict[str, np.ndarray]:
    """ROC-AUC (ties count half) and average precision of every resample."""
    found: dict[str, list[np.ndarray]] = {name: [] for name in names}
    for positive, negative in _counts_by_score(label, probability, patient, weights):
        tp, fp = positive.cumsum(axis=1), negative.cumsum(axis=1)
        positives, negatives = tp[:, -1], fp[:, -1]
        with np.errstate(invalid="ignore", divide="ignore"):
            if "roc_auc" in found:
                below = negatives[:, None] - fp + negative / 2
                pairs = np.einsum("bu,bu->b", positive, below)
                found["roc_auc"].append(pairs / (positives * negatives))
            if "pr_auc" in found:
                precision = np.divide(tp, tp + fp, out=np.zeros_like(tp), where=tp + fp > 0)
                area = np.einsum("bu,bu->b", positive, precision) / positives
                found["pr_auc"].append(np.where(negatives > 0, area, np.nan))
    return {name: np.concatenate(parts) for name, parts in found.items()}


def _counts_by_score(
    label: np.ndarray, probability: np.ndarray, patient: np.ndarray, weights: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(positives, negatives) at each distinct score, highest first, for a few resamples a time."""
    order = np.argsort(-probability, kind="stable")
    label, patient, score = label[order], patient[order], probability[order]
    starts = np.flatnonzero(np.append(True, score[1:] != score[:-1]))
    step = max(1, _CHUNK // len(order))
    for begin in range(0, len(weights), step):
        drawn = weights[begin : begin + step][:, patient]
        everyone = np.add.reduceat(drawn, starts, axis=1)
        positive = np.add.reduceat(drawn * label, starts, axis=1)
        yield positive, everyone - positive
