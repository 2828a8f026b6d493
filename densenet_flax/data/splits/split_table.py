"""What a split holds, as text and for the report."""

import numpy as np

from densenet_flax.common.errors import printable
from densenet_flax.common.trees import JsonDict
from densenet_flax.data.dataset import Dataset
from densenet_flax.data.splits.split import SUBSETS, Split, seen_in_training


def overlap_rows(split: Split, dataset: Dataset) -> list[JsonDict]:
    """Counts the test images whose patient is also in training or validation.

    Returns:
      A row for each grouping into patients, and in it for each class and for 'all'.
    """
    labels = dataset.labels[split.test]
    masks = {"all": np.ones(len(labels), bool)}
    masks |= {name: labels == label for label, name in enumerate(dataset.class_names)}
    seen_by_group = {
        group: seen_in_training(split, patients) for group, patients in dataset.groups.items()
    }
    # The keys are columns of the report and of metrics.json, whose names stay.
    return [
        {
            "group": group,
            "class": name,
            "test_images": int(mask.sum()),
            "with_a_relative_in_training": int(seen[mask].sum()),
        }
        for group, seen in seen_by_group.items()
        for name, mask in masks.items()
    ]


def format_split(split: Split, dataset: Dataset) -> str:
    """Returns a table of the patients and images of each subset, and the overlap."""
    rules = split.policy.to_dict()
    kind = rules.pop("kind")
    lines = [
        f"{dataset.name}: {len(dataset)} images; {kind}: "
        + ", ".join(f"{key} {value}" for key, value in rules.items()),
        f"hash {split.hash}",
        "",
        *_format_counts(split, dataset),
        "",
        "Test images whose patient is also in training:",
        *_format_overlap(split, dataset),
    ]
    if not split.patient_disjoint:
        lines += ["", "This split is not known to keep patients apart."]
    return "\n".join(map(printable, lines))


def _format_counts(split: Split, dataset: Dataset) -> list[str]:
    subsets = [getattr(split, subset) for subset in SUBSETS]
    subsets.append(np.concatenate(subsets))
    lines = [_format_line("", *SUBSETS, "all")]
    for group, patients in dataset.groups.items():
        counts = (len(np.unique(patients[rows])) for rows in subsets)
        lines.append(_format_line(f"patients by {group}", *counts))
    lines.append(_format_line("images", *map(len, subsets)))
    classes = np.array(dataset.class_names)[dataset.labels]
    columns = {"class": classes} | {
        key: dataset.columns[key] for key in ("subtype", "magnification") if key in dataset.columns
    }
    for key, values in columns.items():
        if key == "subtype" and np.array_equal(values, classes):
            continue
        for value in np.unique(values):
            title = f"  {value}X" if key == "magnification" else f"  {value}"
            lines.append(_format_line(title, *((values[rows] == value).sum() for rows in subsets)))
    return lines


def _format_overlap(split: Split, dataset: Dataset) -> list[str]:
    cells: dict[str, list[str]] = {group: [] for group in dataset.groups}
    for row in overlap_rows(split, dataset):
        count, seen = row["test_images"], row["with_a_relative_in_training"]
        percent = f" ({seen / count:.0%})" if count else ""
        cells[row["group"]].append(f"{row['class']} {seen} of {count}{percent}")
    return [f"  {group}: {', '.join(parts)}" for group, parts in cells.items()]


def _format_line(title: str, *cells: object) -> str:
    return f"{title:<24}" + "".join(f"{cell!s:>12}" for cell in cells)
