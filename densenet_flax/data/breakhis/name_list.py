"""BreakHis as a list of file names: what is known about the images, without a single pixel."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from densenet_flax.common.errors import InputError
from densenet_flax.data.breakhis.layout import find_source, list_names
from densenet_flax.data.breakhis.names import LABELS, class_names, parse_name, patient_groups
from densenet_flax.data.dataset import Dataset, Provenance
from densenet_flax.data.sources import patients
from densenet_flax.data.sources.source import Annotations

_COLUMNS = ("subtype", "magnification", "slide_id", "case", "sequence")


def annotate_names(files: Sequence[str], labels: str, source: object) -> Annotations:
    """Returns labels ('binary' or 'subtype'), groups and columns of images by their file names.

    Raises:
      InputError: a name is not one of BreakHis's; the message calls the data set `source`.
    """
    names = []
    for file in files:
        name = parse_name(file)
        if name is None:
            raise InputError(f"{source}: {file}: not a BreakHis file name")
        names.append(name)
    columns = {column: np.array([getattr(name, column) for name in names]) for column in _COLUMNS}
    classes = [name.label if labels == "binary" else name.subtype for name in names]
    label_ids = [class_names(labels).index(class_name) for class_name in classes]
    groups = patient_groups(columns["subtype"], columns["slide_id"], columns["case"])
    provenance = Provenance("BreakHis's file names", "BreakHis's file names", patients.BREAKHIS)
    return Annotations(label_ids, groups, columns, provenance=provenance)


def dataset_of_names(
    names: Iterable[str], labels: str = "binary", name: str = "breakhis"
) -> Dataset:
    """Makes a data set of BreakHis file names, with empty images; `labels` is that of `DataConfig`.

    Raises:
      InputError: a name is not one of BreakHis's, there is none, or no such labels.
    """
    if labels not in LABELS:
        raise InputError(f"data.labels={labels!r}: expected one of {', '.join(LABELS)}")
    files = sorted(set(names))
    if not files:
        raise InputError(f"{name}: no file names in it")
    annotations = annotate_names(files, labels, name)
    return Dataset(
        images=np.zeros((len(files), 0, 0, 3), np.uint8),
        labels=np.array(annotations.labels, np.int32),
        class_names=class_names(labels),
        files=np.array(files, str),
        groups=annotations.groups,
        columns=annotations.columns,
        name=name,
        fingerprint="",
    )


def list_file_names(path: str | os.PathLike[str]) -> list[str]:
    """Lists the BreakHis images of a folder, of an archive, or of a text file with a name a line.

    Raises:
      InputError: there are none.
    """
    path = Path(path).expanduser()
    if not (path.is_file() and path.suffix == ".txt"):
        return list_names(find_source(path))
    try:
        lines = path.read_text("utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as text ({error})") from error
    # What follows a `|` is ignored, so that the official `dsfold1.txt` can be given.
    return [name for line in lines if (name := line.partition("|")[0].strip())]
