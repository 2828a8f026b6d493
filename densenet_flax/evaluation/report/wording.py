"""What reports call things, for two classes and for more."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from densenet_flax.common.types import JsonDict
from densenet_flax.evaluation.metrics.levels import ACCURACY_BY_MEAN


class FigureText(NamedTuple):
    """The caption of a figure."""

    title: str
    explanation: str


@dataclass(frozen=True)
class Wording:
    """Which metrics and figures a report shows, and in which words.

    Attributes:
      metrics: key and meaning of every metric of images, from which those of patients follow;
        {negative} and {positive} stand for the names of the classes.
      tiles: level and key of the numbers at the top of the page.
      magnification_columns: keys of the metrics by magnification, on the page.
      card_columns: the same in the model card.
      figures: caption by file name, in the order of the page.
      ece: key of the calibration error that the model card states.
      mean_probability: title of that column.
      incomplete_resamples: what is wrong with the resamples that lack a class.
    """

    metrics: Mapping[str, str]
    tiles: Sequence[tuple[str, str]]
    magnification_columns: Sequence[str]
    card_columns: Sequence[str]
    figures: Mapping[str, FigureText]
    ece: str
    mean_probability: str
    incomplete_resamples: str


# The protocol of BreakHis (Spanhol et al., 2016): the mean over patients of the fraction of their
# images that are classified correctly.
RECOGNITION_RATE = "patient_recognition_rate"
_PATIENT_TILES = (("patient", RECOGNITION_RATE), ("patient", ACCURACY_BY_MEAN))
_CURVES = FigureText(
    "Training curves",
    "Loss and accuracy after each epoch; a vertical line marks the start of a stage.",
)
_RELIABILITY_BARS = "Bars are intervals over patients; below, the number of images in each bin."

_BINARY = Wording(
    metrics={
        "accuracy": "fraction classified correctly",
        "balanced_accuracy": "mean of sensitivity and specificity",
        "sensitivity": "fraction of {positive} classified as {positive}",
        "specificity": "fraction of {negative} classified as {negative}",
        "precision": "fraction of {positive} predictions that are correct",
        "f1": "harmonic mean of precision and sensitivity",
        "mcc": "−1 to 1; 0 is chance",
        "roc_auc": "over all thresholds; 0.5 is chance",
        "pr_auc": "average precision; the fraction that is {positive} is chance",
    },
    tiles=(
        ("image", "accuracy"),
        ("image", "sensitivity"),
        ("image", "specificity"),
        ("image", "roc_auc"),
        *_PATIENT_TILES,
    ),
    magnification_columns=(
        "accuracy",
        RECOGNITION_RATE,
        "sensitivity",
        "specificity",
        "f1",
        "roc_auc",
    ),
    card_columns=("accuracy", "roc_auc"),
    figures={
        "curves": _CURVES,
        "confusion_matrix": FigureText(
            "Confusion matrices",
            "Counts and percentages of each true class, for images and for patients by mean "
            "probability.",
        ),
        "roc": FigureText(
            "ROC curves",
            "For images and for patients by mean probability; the markers are the threshold in "
            "use.",
        ),
        "precision_recall": FigureText(
            "Precision and recall",
            "Precision is the fraction of positive predictions that are correct; the dotted lines "
            "are the fraction that is positive, which is chance.",
        ),
        "reliability": FigureText(
            "Reliability",
            "On the dotted line, the fraction that is positive equals the predicted probability. "
            f"{_RELIABILITY_BARS}",
        ),
        "patients": FigureText(
            "Probability of every image, by patient",
            "A line per patient, a dot per image, a diamond for the patient's mean; × before a "
            "name marks a patient whose mean is on the wrong side of the threshold.",
        ),
    },
    ece="ece",
    mean_probability="mean probability",
    incomplete_resamples="contained one class only",
)

_MULTICLASS = Wording(
    metrics={
        "accuracy": "fraction classified correctly",
        "balanced_accuracy": "macro recall: mean over classes",
        "macro_f1": "mean over classes of each one's F1",
        "mcc": "at most 1; 0 is chance",
        "kappa": "agreement beyond chance, unweighted; at most 1",
        "macro_roc_auc": "mean over classes, each against the rest; 0.5 is chance",
        "top2_accuracy": "fraction whose true class is one of the two likeliest",
    },
    tiles=(
        ("image", "accuracy"),
        ("image", "balanced_accuracy"),
        ("image", "macro_f1"),
        ("image", "macro_roc_auc"),
        *_PATIENT_TILES,
    ),
    magnification_columns=(
        "accuracy",
        RECOGNITION_RATE,
        "balanced_accuracy",
        "macro_f1",
        "macro_roc_auc",
        "kappa",
    ),
    card_columns=("accuracy", "balanced_accuracy"),
    figures={
        "curves": _CURVES,
        "confusion_matrix": FigureText(
            "Confusion matrix, images",
            "A row per true class: counts and percentages of that class.",
        ),
        "confusion_matrix_patients": FigureText(
            "Confusion matrix, patients",
            "The same for patients, each classified once by the mean probability of all images.",
        ),
        "roc": FigureText(
            "ROC curves, each class against the rest",
            "For images, ordered by area. The thin diagonal is chance.",
        ),
        "reliability": FigureText(
            "Reliability",
            "On the dotted line, the likeliest class is correct as often as its probability says. "
            f"{_RELIABILITY_BARS}",
        ),
    },
    ece="ece_top_label",
    mean_probability="mean P(true class)",
    incomplete_resamples="lacked a class",
)

# Every figure that any report may have.
FIGURES = tuple({**_BINARY.figures, **_MULTICLASS.figures})
# The metrics of each class against the rest.
CLASS_COLUMNS = ("recall", "precision", "f1", "roc_auc", "pr_auc")
# The names of all other metrics are their keys.
_NAMES = {
    "f1": "F1",
    "mcc": "Matthews correlation",
    "roc_auc": "ROC-AUC",
    "pr_auc": "PR-AUC",
    "macro_f1": "macro F1",
    "macro_roc_auc": "macro ROC-AUC",
    "kappa": "Cohen's kappa",
    "top2_accuracy": "top-2 accuracy",
    "confusion": "confusion matrix",
}


def metric_name(key: str) -> str:
    """Name of a metric for the middle of a sentence."""
    return _NAMES.get(key) or key.replace("_", " ")


def metric_title(key: str) -> str:
    """Name of a metric for the start of a line."""
    name = metric_name(key)
    return name[0].upper() + name[1:]


def wording_for(metrics: JsonDict) -> Wording:
    """The words for the content of a metrics.json."""
    return _BINARY if len(metrics["class_names"]) == 2 else _MULTICLASS


def class_totals(metrics: JsonDict) -> list[int]:
    """Number of images of each class."""
    cells = metrics["image"]["confusion"]
    if isinstance(cells, Mapping):
        return [cells["tn"] + cells["fp"], cells["fn"] + cells["tp"]]
    return [sum(row) for row in cells]


def majority_class(metrics: JsonDict) -> tuple[str, float]:
    """The most frequent class of the images, and its fraction: the accuracy of a constant."""
    totals = class_totals(metrics)
    largest = max(totals)
    return metrics["class_names"][totals.index(largest)], largest / metrics["image"]["n"]


def wrong_images(metrics: JsonDict) -> int:
    """Number of images whose predicted class is wrong."""
    cells = metrics["image"]["confusion"]
    if isinstance(cells, Mapping):
        return cells["fp"] + cells["fn"]
    return sum(map(sum, cells)) - sum(row[i] for i, row in enumerate(cells))


def count(n: int, noun: str) -> str:
    """'1 image', '2 images'."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def enumerate_words(words: Sequence[str]) -> str:
    """'a', 'a and b', 'a, b and c'."""
    *others, last = words
    return f"{', '.join(others)} and {last}" if others else last
