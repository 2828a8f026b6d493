"""What reports call things, for two classes and for more."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from densenet_flax.common.trees import JsonDict


@dataclass(frozen=True)
class Wording:
    """Which metrics a report shows, and in which words.

    Attributes:
      metrics: key and meaning of every metric of images, from which those of patients follow;
        {negative} and {positive} stand for the names of the classes.
      key_figures: keys of the metrics of patients at the top of the page.
      group_metrics: keys of the metrics by magnification, on the page, after both accuracies.
      card_columns: keys of the metrics by magnification in the model card.
      ece: key of the calibration error that the model card states.
      calibration_columns: key and title of the scores of the probabilities.
      mean_probability: title of that column.
    """

    metrics: Mapping[str, str]
    key_figures: Sequence[str]
    group_metrics: Sequence[str]
    card_columns: Sequence[str]
    ece: str
    calibration_columns: Mapping[str, str]
    mean_probability: str


# The protocol of BreakHis (Spanhol et al., 2016): the mean over patients of the fraction of their
# images that are classified correctly.
RECOGNITION_RATE = "patient_recognition_rate"

_BINARY = Wording(
    metrics={
        "accuracy": "fraction classified correctly",
        "balanced_accuracy": "mean of sensitivity and specificity",
        "sensitivity": "fraction of {positive} classified as {positive}",
        "specificity": "fraction of {negative} classified as {negative}",
        "precision": "fraction of {positive} predictions that are correct (PPV)",
        "npv": "fraction of {negative} predictions that are correct",
        "f1": "harmonic mean of precision and sensitivity",
        "mcc": "−1 to 1; 0 is chance",
        "roc_auc": "over all thresholds; 0.5 is chance",
        "pr_auc": "average precision; the fraction that is {positive} is chance",
    },
    key_figures=("sensitivity", "specificity", "roc_auc"),
    group_metrics=("sensitivity", "specificity", "f1", "roc_auc"),
    card_columns=("accuracy", "roc_auc"),
    ece="ece",
    # Both errors: many papers compute that of the likelier class also of two classes.
    calibration_columns={
        "brier": "Brier score",
        "nll": "NLL",
        "ece": "ECE",
        "ece_top_label": "ECE, likelier class",
        "calibration_slope": "slope",
        "calibration_intercept": "intercept",
    },
    mean_probability="mean probability",
)

_MULTICLASS = Wording(
    metrics={
        "accuracy": "fraction classified correctly",
        "balanced_accuracy": "macro recall: mean over classes",
        "macro_f1": "mean over classes of each one's F1",
        # The minimum depends on the frequencies of the classes.
        "mcc": "at most 1; 0 is chance",
        "kappa": "agreement beyond chance, unweighted; at most 1",
        "macro_roc_auc": "mean over classes, each against the rest; 0.5 is chance",
        "top2_accuracy": "fraction whose true class is one of the two likeliest",
    },
    key_figures=("balanced_accuracy", "macro_f1", "macro_roc_auc"),
    group_metrics=("balanced_accuracy", "macro_f1", "macro_roc_auc", "kappa"),
    card_columns=("accuracy", "balanced_accuracy"),
    ece="ece_top_label",
    calibration_columns={"brier": "Brier score", "nll": "log-loss", "ece_top_label": "ECE"},
    mean_probability="mean P(true class)",
)

# The metrics of each class against the rest.
CLASS_COLUMNS = ("recall", "precision", "f1", "roc_auc", "pr_auc")
# The names of all other metrics are their keys.
_NAMES = {
    "f1": "F1",
    "mcc": "Matthews correlation",
    "npv": "NPV",
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
    # Not `capitalize`, which would write "Roc-auc".
    name = metric_name(key)
    return name[0].upper() + name[1:]


def title_in_level(key: str) -> str:
    """Title of a metric where its level, images or patients, is stated beside it."""
    return metric_title(key.removeprefix("patient_"))


def wording_for(metrics: JsonDict) -> Wording:
    """The words for the content of a metrics.json."""
    return _BINARY if len(metrics["class_names"]) == 2 else _MULTICLASS


def confusion_counts(level: JsonDict) -> Int[np.ndarray, "K K"]:
    """The confusion matrix of a level in metrics.json; rows are true classes, in their order."""
    counts = level["confusion"]
    if isinstance(counts, Mapping):
        counts = [[counts["tn"], counts["fp"]], [counts["fn"], counts["tp"]]]
    return np.array(counts)


def majority_class(metrics: JsonDict) -> tuple[str, float]:
    """The most frequent class of the images, and its fraction: the accuracy of a constant."""
    totals = confusion_counts(metrics["image"]).sum(axis=1)
    largest = int(totals.argmax())
    return metrics["class_names"][largest], float(totals[largest]) / metrics["image"]["n"]


def wrong_images(metrics: JsonDict) -> int:
    """Number of images whose predicted class is wrong."""
    return sum(row["n"] - row["correct"] for row in metrics["by_patient"])


def count(n: int, noun: str) -> str:
    """'1 image', '2 images'."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def enumerate_words(words: Sequence[str]) -> str:
    """'a', 'a and b', 'a, b and c'."""
    *others, last = words
    return f"{', '.join(others)} and {last}" if others else last
