"""What a split holds, as text and for the report."""

import dataclasses

import numpy as np

from densenet_flax.data.dataset import Dataset
from densenet_flax.data.splits.split import SUBSETS, Split, seen_in_training


@dataclasses.dataclass(frozen=True)
class Overlap:
    """How many test images show a patient who is also in training or validation.

    Attributes:
      group: the key of `Dataset.groups` by which patients are told apart.
      class_name: the class of these test images, or 'all'.
      test_images: how many there are.
      seen_in_training: how many of them show such a patient.
    """

    group: str
    class_name: str
    test_images: int
    seen_in_training: int


def overlap(split: Split, dataset: Dataset) -> list[Overlap]:
    """Counts the test images whose patient is also in training, by each group and class."""
    labels = dataset.labels[split.test]
    masks = {"all": np.ones(len(labels), bool)}
    masks |= {name: labels == label for label, name in enumerate(dataset.class_names)}
    rows = []
    for group, patients in dataset.groups.items():
        seen = seen_in_training(split, patients)
        rows += [
            Overlap(group, name, int(mask.sum()), int(seen[mask].sum()))
            for name, mask in masks.items()
        ]
    return rows


def overlap_rows(split: Split, dataset: Dataset) -> list[dict[str, str | int]]:
    """Returns `overlap` as rows of the report, whose columns are the keys."""
    return [
        {
            "group": row.group,
            "class": row.class_name,
            "test_images": row.test_images,
            "with_a_relative_in_training": row.seen_in_training,
        }
        for row in overlap(split, dataset)
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
    return "\n".join(lines)


def _format_counts(split: Split, dataset: Dataset) -> list[str]:
    """Patients by each group, then images by class, subtype and magnification."""
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
    cells: dict[str, list[str]] = {}
    for row in overlap(split, dataset):
        cell = f"{row.class_name} {row.seen_in_training} of {row.test_images}"
        if row.test_images:
            cell += f" ({row.seen_in_training / row.test_images:.0%})"
        cells.setdefault(row.group, []).append(cell)
    return [f"  {group}: {', '.join(parts)}" for group, parts in cells.items()]


def _format_line(title: str, *cells: object) -> str:
    return f"{title:<24}" + "".join(f"{cell!s:>12}" for cell in cells)
