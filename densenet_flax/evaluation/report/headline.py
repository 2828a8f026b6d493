"""The sentence at the top of a page: patients first, then images, and whether it beats chance."""

from collections.abc import Iterator

from densenet_flax.common.trees import JsonDict
from densenet_flax.evaluation.metrics.levels import ACCURACY_BY_MEAN
from densenet_flax.evaluation.report.wording import confusion_counts, count, metric_name


def headline(metrics: JsonDict, intervals: JsonDict | None, unseen: str = "") -> str:
    """States how good a network is, with the counts of patients and the interval of each figure.

    Args:
      metrics: 'image', 'patient' and 'class_names', as in metrics.json.
      intervals: Of the same; None if there are none.
      unseen: What is known of the patients, such as ' never seen in training'.
    """
    reason = not_better_than_chance(metrics, intervals)
    patients = ", ".join(_of_patients(metrics, intervals))
    figures = "; ".join(filter(None, (patients, _of_images(metrics, intervals)))) + unseen
    return f"{reason and f'{reason}. '}{figures[0].upper()}{figures[1:]}"


def _of_patients(metrics: JsonDict, intervals: JsonDict | None) -> Iterator[str]:
    """Proportions as counts, and the area under the curve."""
    patient = metrics["patient"]
    if not patient["confusion"]:
        return
    counts = confusion_counts(patient)
    if len(metrics["class_names"]) > 2:
        right = f"{counts.trace()} of {count(int(counts.sum()), 'patient')} classified correctly"
        yield right + _ends(intervals, "patient", ACCURACY_BY_MEAN)
        return
    for k, name in ((1, "sensitivity"), (0, "specificity")):
        total = int(counts[k].sum())
        if total:
            patients = count(total, f"{metrics['class_names'][k]} patient")
            yield f"{name} {counts[k, k]} of {patients}{_ends(intervals, 'patient', name)}"
    if patient["roc_auc"] is not None:
        yield f"AUC {patient['roc_auc']:.2f}{_ends(intervals, 'patient', 'roc_auc')}"


def _of_images(metrics: JsonDict, intervals: JsonDict | None) -> str:
    image, classes = metrics["image"], len(metrics["class_names"])
    among = f" over {classes} classes" if classes > 2 else ""
    span = _ends(intervals, "image", "accuracy")
    if span and intervals:
        span = f" ({intervals['level']:.0%} interval {span[2:]}"
    return (
        f"accuracy {image['accuracy']:.2f}{among}{span} on "
        f"{count(image['n'], 'image')} of {count(metrics['patient']['n'], 'patient')}"
    )


def _ends(intervals: JsonDict | None, level: str, name: str) -> str:
    span = intervals and intervals[level].get(name)
    # A report of an earlier version may have an interval without ends.
    if not span or span["low"] is None:
        return ""
    return f" ({span['low']:.2f} to {span['high']:.2f})"


def not_better_than_chance(metrics: JsonDict, intervals: JsonDict | None) -> str:
    """Says so where the interval of an AUC or a balanced accuracy holds chance; '' if none does.

    An accuracy says little about that: always predicting the commoner class has a high one.
    """
    chance = {"roc_auc": 0.5, "macro_roc_auc": 0.5}
    chance["balanced_accuracy"] = 1 / len(metrics["class_names"])
    held: list[str] = []
    worse: list[str] = []
    for level in ("patient", "image"):
        for name, value in chance.items():
            span = (intervals or {}).get(level, {}).get(name)
            if not span or span["low"] is None or span["low"] > value:
                continue
            ends = f"{span['low']:.2f} to {span['high']:.2f}"
            text = f"{metric_name(name)} of {level}s {metrics[level][name]:.2f} ({ends})"
            (held if span["high"] >= value else worse).append(text)
    if worse:
        return f"Worse than chance: {worse[0]}"
    return f"Not shown to be better than chance: {held[0]}" if held else ""
