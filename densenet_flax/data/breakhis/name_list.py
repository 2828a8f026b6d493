"""BreakHis as a list of file names: what is known about the images, without a single pixel."""

import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from densenet_flax.common.errors import InputError
from densenet_flax.data.breakhis.layout import find_source, list_names
from densenet_flax.data.breakhis.names import COLUMNS, class_names, parse_name, patient_groups
from densenet_flax.data.dataset import Dataset


def dataset_of_names(
    names: Iterable[str], labels: str = "binary", name: str = "breakhis"
) -> Dataset:
    """Makes a data set of BreakHis file names, with empty images.

    Args:
      names: file names as BreakHis writes them.
      labels: 'binary' or 'subtype'.
      name: the data set's name in messages.

    Raises:
      InputError: a name is not one of BreakHis's, or there is none.
    """
    parsed = {}
    for file in sorted(names):
        parsed[file] = parse_name(file)
        if parsed[file] is None:
            raise InputError(f"{name}: {file}: not a BreakHis file name")
    if not parsed:
        raise InputError(f"{name}: no file names in it")
    columns = {
        column: np.array([getattr(row, column) for row in parsed.values()]) for column in COLUMNS
    }
    label_key = "label" if labels == "binary" else "subtype"
    classes = [getattr(row, label_key) for row in parsed.values()]
    known_classes = class_names(labels)
    return Dataset(
        images=np.zeros((len(parsed), 0, 0, 3), np.uint8),
        labels=np.array([known_classes.index(label) for label in classes], np.int32),
        class_names=known_classes,
        files=np.array(list(parsed), dtype=str),
        groups=patient_groups(columns["subtype"], columns["slide_id"], columns["case"]),
        columns=columns,
        name=name,
        fingerprint="",
    )


def list_file_names(path: str | os.PathLike[str]) -> list[str]:
    """Lists the BreakHis images of a folder, of an archive, or of a text file with their names.

    A text file has one name per line; what follows a `|` is ignored, so that the official
    `dsfold1.txt` can be given.

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
    return [name for line in lines if (name := line.partition("|")[0].strip())]
