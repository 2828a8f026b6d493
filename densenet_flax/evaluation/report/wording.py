"""What reports call things, for two classes and for more."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from densenet_flax.common.types import JsonDict


class MetricText(NamedTuple):
    """The key of a metric in metrics.json, its name, and its meaning in a few words."""

    key: str
    name: str
    meaning: str  # may contain {negative} and {positive}, the names of the classes


class TileText(NamedTuple):
    """A number at the top of the page."""

    level: str  # 'image' or 'patient'
    key: str
    label: str


class FigureText(NamedTuple):
    """The caption of a figure."""

    title: str
    explanation: str


@dataclass(frozen=True)
class Wording:
    """Which metrics and figures a report shows, and in which words.

    Attributes:
      metrics: every metric of images; those of patients follow from it.
      tiles: the numbers at the top of the page.
      magnification_columns: key and title of the columns by magnification, on the page.
      card_columns: the same in the model card.
      figures: caption by file name, in the order of the page.
      ece: key of the calibration error that the model card states.
      mean_probability: title of that column.
      incomplete_resamples: what is wrong with the resamples that lack a class.
    """

    metrics: Sequence[MetricText]
    tiles: Sequence[TileText]
    magnification_columns: Mapping[str, str]
    card_columns: Mapping[str, str]
    figures: Mapping[str, FigureText]
    ece: str
    mean_probability: str
    incomplete_resamples: str


_CURVES = FigureText(
    "Training curves",
    "Loss and accuracy after each epoch; a vertical line marks the start of a stage.",
)
_RELIABILITY_BARS = "Bars are intervals over patients; below, the number of images in each bin."
_PATIENT_TILES = (
    TileText("patient", "patient_recognition_rate", "patient recognition rate"),
    TileText(
        "patient", "patient_accuracy_by_mean_probability", "patient accuracy by mean probability"
    ),
)

_BINARY = Wording(
    metrics=(
        MetricText("accuracy", "Accuracy", "fraction classified correctly"),
        MetricText("balanced_accuracy", "Balanced accuracy", "mean of sensitivity and specificity"),
        MetricText("sensitivity", "Sensitivity", "fraction of {positive} classified as {positive}"),
        MetricText("specificity", "Specificity", "fraction of {negative} classified as {negative}"),
        MetricText("precision", "Precision", "fraction of {positive} predictions that are correct"),
        MetricText("f1", "F1", "harmonic mean of precision and sensitivity"),
        MetricText("mcc", "Matthews correlation", "−1 to 1; 0 is chance"),
        MetricText("roc_auc", "ROC-AUC", "over all thresholds; 0.5 is chance"),
        MetricText(
            "pr_auc", "PR-AUC", "average precision; the fraction that is {positive} is chance"
        ),
    ),
    tiles=(
        TileText("image", "accuracy", "accuracy, images"),
        TileText("image", "sensitivity", "sensitivity, images"),
        TileText("image", "specificity", "specificity, images"),
        TileText("image", "roc_auc", "ROC-AUC, images"),
        *_PATIENT_TILES,
    ),
    magnification_columns={
        "accuracy": "accuracy",
        "patient_recognition_rate": "patient rec. rate",
        "sensitivity": "sensitivity",
        "specificity": "specificity",
        "f1": "F1",
        "roc_auc": "ROC-AUC",
    },
    card_columns={"accuracy": "accuracy", "roc_auc": "ROC-AUC"},
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
    metrics=(
        MetricText("accuracy", "Accuracy", "fraction classified correctly"),
        MetricText("balanced_accuracy", "Balanced accuracy", "macro recall: mean over classes"),
        MetricText("macro_f1", "Macro F1", "mean over classes of each one's F1"),
        MetricText("mcc", "Matthews correlation", "at most 1; 0 is chance"),
        MetricText("kappa", "Cohen's kappa", "agreement beyond chance, unweighted; at most 1"),
        MetricText(
            "macro_roc_auc",
            "Macro ROC-AUC",
            "mean over classes, each against the rest; 0.5 is chance",
        ),
        MetricText(
            "top2_accuracy",
            "Top-2 accuracy",
            "fraction whose true class is one of the two likeliest",
        ),
    ),
    tiles=(
        TileText("image", "accuracy", "accuracy, images"),
        TileText("image", "balanced_accuracy", "balanced accuracy, images"),
        TileText("image", "macro_f1", "macro F1, images"),
        TileText("image", "macro_roc_auc", "macro ROC-AUC, images"),
        *_PATIENT_TILES,
    ),
    magnification_columns={
        "accuracy": "accuracy",
        "patient_recognition_rate": "patient rec. rate",
        "balanced_accuracy": "balanced accuracy",
        "macro_f1": "macro F1",
        "macro_roc_auc": "macro ROC-AUC",
        "kappa": "kappa",
    },
    card_columns={"accuracy": "accuracy", "balanced_accuracy": "balanced accuracy"},
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
# Key and title of the metrics of each class against the rest.
CLASS_COLUMNS = {
    "recall": "recall",
    "precision": "precision",
    "f1": "F1",
    "roc_auc": "ROC-AUC",
    "pr_auc": "average precision",
}


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
