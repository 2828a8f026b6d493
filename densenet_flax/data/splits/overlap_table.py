"""What a split holds, as a table to read; works from file names, without a single pixel."""

import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from densenet_flax.common.errors import InputError
from densenet_flax.data.breakhis.layout import find_source, list_names
from densenet_flax.data.breakhis.names import class_names, parse_name, patient_groups
from densenet_flax.data.dataset import Dataset
from densenet_flax.data.splits.split import SIDES, Split, relatives


def catalogue(names: Iterable[str], labels: str = "binary", name: str = "breakhis") -> Dataset:
    """A BreakHis data set of these file names, without images.

    Args:
      names: file names as BreakHis writes them.
      labels: 'binary' or 'subtype'.
      name: what messages call it.

    Raises:
      InputError: a name is not one of BreakHis's, or there is none.
    """
    rows = {}
    for file in names:
        parsed = parse_name(file)
        if parsed is None:
            raise InputError(f"{name}: {file}: not a BreakHis file name")
        rows[file] = parsed
    if not rows:
        raise InputError(f"{name}: no file names in it")
    rows = dict(sorted(rows.items()))
    classes = class_names(labels)
    key = "label" if labels == "binary" else "subtype"
    columns = {
        column: np.array([getattr(row, column) for row in rows.values()])
        for column in ("subtype", "magnification", "slide_id", "case", "sequence")
    }
    return Dataset(
        images=np.zeros((len(rows), 0, 0, 3), np.uint8),
        labels=np.array([classes.index(getattr(row, key)) for row in rows.values()], np.int32),
        class_names=classes,
        files=np.array(list(rows), dtype=str),
        groups=patient_groups(columns["subtype"], columns["slide_id"], columns["case"]),
        columns=columns,
        name=name,
        fingerprint="",
    )


def names_at(path: str | os.PathLike[str]) -> list[str]:
    """The names of BreakHis images in a folder, an archive, or a text file that lists them.

    A text file has one name a line; what follows a `|` is ignored, so that the official
    `dsfold1.txt` can be given.

    Raises:
      InputError: there are none.
    """
    place = Path(path).expanduser()
    if place.is_file() and place.suffix == ".txt":
        try:
            lines = place.read_text("utf-8").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{place}: cannot be read as text ({error})") from error
        return [name for line in lines if (name := line.partition("|")[0].strip())]
    return list_names(find_source(place))


def overlap(split: Split, dataset: Dataset) -> dict[str, dict[str, tuple[int, int]]]:
    """For each group key and class: (test images with a relative in training, test images).

    Training is whoever trains or validates. The class '' stands for all of them.
    """
    found: dict[str, dict[str, tuple[int, int]]] = {}
    labels = dataset.labels[split.test]
    for group, patients in dataset.groups.items():
        related = relatives(split, patients)
        found[group] = {"": (int(related.sum()), len(related))}
        for label, name in enumerate(dataset.class_names):
            mine = labels == label
            found[group][name] = (int(related[mine].sum()), int(mine.sum()))
    return found


def overlap_rows(split: Split, dataset: Dataset) -> list[dict[str, str | int]]:
    """`overlap` as rows for a report, whose columns are its keys: one for each group and class."""
    return [
        {
            "group": group,
            "class": name or "all",
            "test_images": count,
            "with_a_relative_in_training": related,
        }
        for group, classes in overlap(split, dataset).items()
        for name, (related, count) in classes.items()
    ]


def table(split: Split, dataset: Dataset) -> str:
    """Patients and images of each side, by class, subtype and magnification, and the overlap."""
    policy = {key: value for key, value in split.policy.items() if key != "kind"}
    rules = ", ".join(f"{key} {value}" for key, value in policy.items())
    lines = [
        f"{dataset.name}: {len(dataset)} images; {split.policy['kind']}: {rules}",
        f"hash {split.hash}",
        "",
        _line("", *SIDES, "all"),
    ]
    sides = [getattr(split, side) for side in SIDES]
    sides.append(np.concatenate(sides))
    for group, patients in dataset.groups.items():
        counts = (len(np.unique(patients[rows])) for rows in sides)
        lines.append(_line(f"patients by {group}", *counts))
    lines.append(_line("images", *map(len, sides)))
    names = np.array(dataset.class_names)
    columns = {"class": names[dataset.labels]}
    columns |= {
        key: dataset.columns[key] for key in ("subtype", "magnification") if key in dataset.columns
    }
    for title, values in columns.items():
        if title == "subtype" and np.array_equal(values, columns["class"]):
            continue
        for value in np.unique(values):
            shown = f"{value}X" if title == "magnification" else str(value)
            lines.append(_line(f"  {shown}", *((values[rows] == value).sum() for rows in sides)))
    lines += ["", "Test images with a relative in training:"]
    for group, classes in overlap(split, dataset).items():
        parts = [
            f"{name or 'all'} {related} of {count}" + (f" ({related / count:.0%})" if count else "")
            for name, (related, count) in classes.items()
        ]
        lines.append(f"  {group}: {', '.join(parts)}")
    if not split.patient_disjoint:
        lines += ["", "This split is not known to keep patients apart."]
    return "\n".join(lines)


def _line(title: str, *cells: object) -> str:
    return f"{title:<24}" + "".join(f"{cell!s:>12}" for cell in cells)
