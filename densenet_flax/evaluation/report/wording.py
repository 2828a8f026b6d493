"""What reports call things, for two classes and for more."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_CURVES = (
    "Training curves",
    "Loss and accuracy after each epoch; a vertical line is where a stage begins.",
)
_RELIABILITY = (
    "On the dotted line it does. Bars are intervals over patients; below, how many images are in a "
    "bin."
)


@dataclass(frozen=True)
class Wording:
    """Names and choices of what is shown.

    Attributes:
        metrics: (key, name, what it is), of every metric; {negative} and {positive} are filled in.
        tiles: (unit, key, name) of the numbers at the top of the page.
        magnification: Key and heading of the columns by magnification, on the page.
        card: The same in the model card.
        pictures: Name of the file, title and explanation.
        ece: Key of the calibration error that is spoken of.
        mean_probability: Heading of that column.
        gap: What resamples are short of.
    """

    metrics: tuple[tuple[str, str, str], ...]
    tiles: tuple[tuple[str, str, str], ...]
    magnification: Mapping[str, str]
    card: Mapping[str, str]
    pictures: Mapping[str, tuple[str, str]]
    ece: str
    mean_probability: str
    gap: str


_PATIENT_TILES = (
    ("patient", "patient_recognition_rate", "patient recognition rate"),
    (
        "patient",
        "patient_accuracy_by_mean_probability",
        "patient accuracy by mean probability",
    ),
)
_TWO = Wording(
    metrics=(
        ("accuracy", "Accuracy", "share that is right"),
        ("balanced_accuracy", "Balanced accuracy", "mean of sensitivity and specificity"),
        ("sensitivity", "Sensitivity", "share of {positive} that is found"),
        ("specificity", "Specificity", "share of {negative} that is left alone"),
        ("precision", "Precision", "share of {positive} calls that are right"),
        ("f1", "F1", "harmonic mean of precision and sensitivity"),
        ("mcc", "Matthews correlation", "−1 to 1; 0 is chance"),
        ("roc_auc", "ROC-AUC", "over all thresholds; 0.5 is chance"),
        ("pr_auc", "PR-AUC", "average precision; the share of {positive} is chance"),
    ),
    tiles=(
        ("image", "accuracy", "accuracy, images"),
        ("image", "sensitivity", "sensitivity, images"),
        ("image", "specificity", "specificity, images"),
        ("image", "roc_auc", "ROC-AUC, images"),
        *_PATIENT_TILES,
    ),
    magnification={
        "accuracy": "accuracy",
        "patient_recognition_rate": "patient rec. rate",
        "sensitivity": "sensitivity",
        "specificity": "specificity",
        "f1": "F1",
        "roc_auc": "ROC-AUC",
    },
    card={"accuracy": "accuracy", "roc_auc": "ROC-AUC"},
    pictures={
        "curves": _CURVES,
        "confusion_matrix": (
            "Confusion matrices",
            "Counts, and shares of each true class: images, and patients by mean probability.",
        ),
        "roc": (
            "ROC curves",
            "Images, and patients by their mean probability; the marks are the threshold in use.",
        ),
        "precision_recall": (
            "Precision and recall",
            "Of what is called positive, how much is; dotted is the share that is positive.",
        ),
        "reliability": (
            "Reliability",
            f"Does a probability mean what it says? {_RELIABILITY}",
        ),
        "patients": (
            "Probability of every image, by patient",
            "A line per patient, a dot per image, a diamond for the patient's mean; × before a "
            "name is a patient whose mean is on the wrong side.",
        ),
    },
    ece="ece",
    mean_probability="mean probability",
    gap="had one class only",
)
_MORE = Wording(
    metrics=(
        ("accuracy", "Accuracy", "share that is right"),
        ("balanced_accuracy", "Balanced accuracy", "macro recall: mean over classes"),
        ("macro_f1", "Macro F1", "mean over classes of each one's F1"),
        ("mcc", "Matthews correlation", "at most 1; 0 is chance"),
        ("kappa", "Cohen's kappa", "agreement beyond chance, unweighted; at most 1"),
        (
            "macro_roc_auc",
            "Macro ROC-AUC",
            "mean over classes, each against the rest; 0.5 is chance",
        ),
        ("top2_accuracy", "Top-2 accuracy", "share whose class is one of the two likeliest"),
    ),
    tiles=(
        ("image", "accuracy", "accuracy, images"),
        ("image", "balanced_accuracy", "balanced accuracy, images"),
        ("image", "macro_f1", "macro F1, images"),
        ("image", "macro_roc_auc", "macro ROC-AUC, images"),
        *_PATIENT_TILES,
    ),
    magnification={
        "accuracy": "accuracy",
        "patient_recognition_rate": "patient rec. rate",
        "balanced_accuracy": "balanced accuracy",
        "macro_f1": "macro F1",
        "macro_roc_auc": "macro ROC-AUC",
        "kappa": "kappa",
    },
    card={"accuracy": "accuracy", "balanced_accuracy": "balanced accuracy"},
    pictures={
        "curves": _CURVES,
        "confusion_matrix": (
            "Confusion matrix, images",
            "A row per true class: counts, and shares of that class.",
        ),
        "confusion_matrix_patients": (
            "Confusion matrix, patients",
            "The same of patients, each called once by the mean of all images' probabilities.",
        ),
        "roc": (
            "ROC curves, each class against the rest",
            "Images; ordered by area. The thin diagonal is chance.",
        ),
        "reliability": (
            "Reliability",
            f"Is the likeliest class right as often as its probability says? {_RELIABILITY}",
        ),
    },
    ece="ece_top_label",
    mean_probability="mean P(true class)",
    gap="lacked a class",
)
PICTURES = tuple({**_TWO.pictures, **_MORE.pictures})
# Of each class against the rest.
CLASS_COLUMNS = {
    "recall": "recall",
    "precision": "precision",
    "f1": "F1",
    "roc_auc": "ROC-AUC",
    "pr_auc": "average precision",
}


def wording_of(metrics: Mapping[str, Any]) -> Wording:
    """The words for the metrics of a report."""
    return _TWO if len(metrics["class_names"]) == 2 else _MORE


def class_totals(metrics: Mapping[str, Any]) -> list[int]:
    """Number of images of each class."""
    cells = metrics["image"]["confusion"]
    if isinstance(cells, Mapping):
        return [cells["tn"] + cells["fp"], cells["fn"] + cells["tp"]]
    return [sum(row) for row in cells]


def wrong_images(metrics: Mapping[str, Any]) -> int:
    """Number of images that are called something else than they are."""
    cells = metrics["image"]["confusion"]
    if isinstance(cells, Mapping):
        return cells["fp"] + cells["fn"]
    return sum(map(sum, cells)) - sum(row[i] for i, row in enumerate(cells))


def listed(words: list[str]) -> str:
    """'a', 'a and b', 'a, b and c'."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
