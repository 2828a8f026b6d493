"""What a data set was taken for, as a table before training and in the report."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from densenet_flax.common.trees import JsonDict
from densenet_flax.data.dataset import Dataset
from densenet_flax.data.splits.split import SUBSETS, Split

_EXAMPLES = 3


def summarize(dataset: Dataset, split: Split) -> JsonDict:
    """Returns classes and their images, and where labels, patients and subsets were found.

    Keys: 'classes' (a row for each), 'looked_for' ('' with more than two classes), 'labels_from',
    'patients', 'patients_from', 'patient_examples' (pairs of file and patient), 'subsets_from',
    'left_out' (the number of files for each reason) and 'incomplete' (what a data set of known
    size lacks).
    """
    provenance, groups = dataset.provenance, dataset.patients(split.policy.group)
    is_known = dataset.patients_known or (dataset.awaits_test and bool(provenance.patients_from))
    classes = []
    for label, name in enumerate(dataset.class_names):
        counts = {s: int((dataset.labels[getattr(split, s)] == label).sum()) for s in SUBSETS}
        images = int((dataset.labels == label).sum())
        classes.append({"class": name, "label": label, "images": images, **counts})
    _, first_rows = np.unique(groups, return_index=True)
    rows = np.sort(first_rows)[:_EXAMPLES]
    return {
        "classes": classes,
        "looked_for": dataset.positive_class,
        "labels_from": provenance.labels_from,
        "patients": len(first_rows),
        "patients_from": provenance.patients_from if is_known else "",
        "patient_examples": [[str(dataset.files[row]), str(groups[row])] for row in rows]
        if is_known
        else [],
        "subsets_from": _subsets_from(dataset, split),
        "left_out": dict(Counter(provenance.left_out.values()).most_common()),
        "incomplete": provenance.incomplete,
    }


def _subsets_from(dataset: Dataset, split: Split) -> str:
    policy, stated = split.policy, dataset.provenance.subsets_from
    takes_validation = dataset.awaits_test and "validation" not in dataset.columns["split"]
    if policy.kind == "given" and takes_validation:
        drawn = f"validation drawn by {policy.group} from the training images (split.seed)"
        return f"{stated}; {drawn}" if stated else drawn
    if policy.kind == "given" and stated:
        # Stated folds by their names: `split.fold` counts them from 1, and they may begin at 0.
        fold = "" if policy.fold is None else str(dataset.columns["split"][split.test[0]])
        return f"{stated}, tested on {fold}" if fold else stated
    text = f"split.policy={policy.kind!r}"
    return text if policy.fold is None else f"{text}, tested on fold {policy.fold}"


def format_summary(summary: JsonDict) -> Sequence[str]:
    """Returns the lines that a run prints before it trains."""
    rows = summary["classes"]
    width = max(len("class"), *(len(row["class"]) for row in rows))
    columns = ("images", *SUBSETS)
    lines = [f"  {'class':<{width}}" + "".join(f"{column:>12}" for column in columns)]
    for row in rows:
        mark = "  <- looked for" if row["class"] == summary["looked_for"] else ""
        cells = "".join(f"{row[column]:>12}" for column in columns)
        lines.append(f"  {row['class']:<{width}}{cells}{mark}")
    return [*lines, *(f"  {name}: {text}" for name, text in describe_summary(summary).items())]


def describe_summary(summary: JsonDict) -> dict[str, str]:
    """Returns the facts of a summary beside the numbers, by what each is about."""
    facts = {}
    if summary["looked_for"]:
        facts["looked for"] = (
            f"{summary['looked_for']} (sensitivity, ROC and threshold are about it; the order of "
            "data.class_names decides)"
        )
    facts["class from"] = summary["labels_from"]
    if summary["patients_from"]:
        shown = ", ".join(f"{file} → {patient}" for file, patient in summary["patient_examples"])
        facts["patient from"] = f"{summary['patients_from']}: {shown}; {summary['patients']} in all"
    else:
        facts["patient from"] = "nothing: each image counts as a patient of its own"
    facts["subsets from"] = summary["subsets_from"]
    if left_out := summary["left_out"]:
        facts["left out"] = ", ".join(f"{count} {reason}" for reason, count in left_out.items())
    facts["incomplete"] = summary["incomplete"]
    return {name: text for name, text in facts.items() if text}
