"""Anybody's tiles: a folder per class, or a CSV that says what each file is."""

import csv
import dataclasses
import io
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from densenet_flax.common.errors import InputError
from densenet_flax.data.images.image_files import (
    IMAGE_SUFFIXES,
    listing_digest,
    read_file,
    walk_images,
)

_REQUIRED = ("file", "label")
_OPTIONAL = ("patient", "site", "split")
_SIDES = ("train", "validation", "test")


@dataclasses.dataclass(frozen=True)
class Tile:
    """One image file and what is known about it."""

    file: str  # relative to the folder, with '/' on every system
    path: Path
    label: str
    patient: str = ""
    site: str = ""
    split: str = ""


@dataclasses.dataclass(frozen=True)
class FileReader:
    """Reads images of a folder, also in another process."""

    root: Path

    def __call__(self, row: dict[str, Any]) -> bytes:
        """The content of the file that a row names."""
        return read_file(self.root / row["file"])


@dataclasses.dataclass(frozen=True)
class Listing:
    """The images of a folder, by file name.

    Attributes:
      tiles: in the order of their names.
      class_names: in the order of their labels.
      columns: which of 'patient', 'site' and 'split' are known.
      unlisted: images in the folder that the CSV does not mention.
    """

    tiles: list[Tile]
    class_names: tuple[str, ...]
    columns: frozenset[str]
    unlisted: int = 0

    def key(self, root: Path) -> str:
        """A digest of which files there are, with their sizes and times, not their content."""
        return listing_digest(root, {tile.file: tile.path for tile in self.tiles})


def list_folder(
    root: Path,
    *,
    table: Path | None = None,
    patient_pattern: str = "",
    class_names: Sequence[str] = (),
) -> Listing:
    """Finds the images of a folder and says what each is.

    Args:
      root: the folder. Without `table`, each folder in it is a class.
      table: a CSV with the columns file and label, and if need be patient, site and split.
      patient_pattern: a regular expression to search each file name for; its first group, or all
        that matches, is the patient. Not together with a column patient.
      class_names: the classes in the order of their labels; sorted by name if empty.

    Raises:
      InputError: a file, a line or a setting is wrong; the message names it.
    """
    root = root.expanduser()
    if not root.is_dir():
        raise InputError(f"{root}: no such folder; give the folder of the images as data.path")
    found = walk_images(root)
    if not found:
        raise InputError(
            f"{root}: no images in it; expected files that end in {', '.join(IMAGE_SUFFIXES)}"
        )
    columns: set[str] = set()
    if table is None:
        tiles = [_in_class_folder(root, file, path) for file, path in found.items()]
    else:
        tiles, columns = _read_table(table.expanduser(), root, found)
    if patient_pattern:
        if "patient" in columns:
            raise InputError(
                "data.patient_pattern: the CSV has a column 'patient' already; use one of the two"
            )
        columns = columns | {"patient"}
        tiles = [_with_patient(tile, patient_pattern) for tile in tiles]
    names = tuple(class_names) or tuple(sorted({tile.label for tile in tiles}))
    if len(set(names)) < len(names):
        raise InputError(f"data.class_names={names}: a name appears twice")
    for tile in tiles:
        if tile.label not in names:
            raise InputError(
                f"{tile.file}: its class {tile.label!r} is not one of data.class_names={names}"
            )
    return Listing(
        sorted(tiles, key=lambda tile: tile.file),
        names,
        frozenset(columns),
        len(found) - len(tiles),
    )


def _in_class_folder(root: Path, file: str, path: Path) -> Tile:
    label, slash, _ = file.partition("/")
    if not slash:
        raise InputError(
            f"{path}: lies in no class folder; expected {root}/<class>/{file}, or a CSV as data.csv"
        )
    return Tile(file, path, label)


def _with_patient(tile: Tile, pattern: str) -> Tile:
    try:
        match = re.search(pattern, tile.file)
    except re.error as error:
        raise InputError(
            f"data.patient_pattern={pattern!r}: not a regular expression ({error})"
        ) from error
    patient = match and (match.group(1) if match.re.groups else match.group())
    if not patient:
        raise InputError(
            f"{tile.file}: data.patient_pattern={pattern!r} finds no patient in this name; correct "
            "the pattern or rename the file"
        )
    return dataclasses.replace(tile, patient=patient)


def _read_table(table: Path, root: Path, found: dict[str, Path]) -> tuple[list[Tile], set[str]]:
    rows = list(csv.reader(io.StringIO(text := _text(table), newline=""), delimiter=_comma(text)))
    header = [name.strip().lower() for name in rows[0]] if rows else []
    for name in _REQUIRED:
        if name not in header:
            raise InputError(
                f"{table}: has no column {name!r}, only {', '.join(header) or 'nothing'}; expected "
                f"{', '.join(_REQUIRED)} and perhaps {', '.join(_OPTIONAL)}"
            )
    if len(set(header)) < len(header):
        raise InputError(f"{table}: a column appears twice in {', '.join(header)}")
    columns = {name for name in _OPTIONAL if name in header}
    by_name = defaultdict(list)
    for file in found:
        by_name[file.rpartition("/")[2]].append(file)
    lines: dict[str, int] = {}
    tiles = []
    for number, row in enumerate(rows[1:], start=2):
        if not any(cell.strip() for cell in row):
            continue
        where = f"{table}: row {number}"
        if len(row) != len(header):
            raise InputError(f"{where}: has {len(row)} cells where the header has {len(header)}")
        cells = {name: cell.strip() for name, cell in zip(header, row, strict=True)}
        for name in (*_REQUIRED, *sorted(columns)):
            if not cells[name]:
                raise InputError(f"{where}: no {name}; fill it in")
        if cells.get("split", "train") not in _SIDES:
            raise InputError(
                f"{where}: split {cells['split']!r}; expected one of {', '.join(_SIDES)}"
            )
        file = _resolve(cells["file"], where, root, found, by_name)
        if file in lines:
            raise InputError(f"{where}: {file} stands in row {lines[file]} already; keep one")
        lines[file] = number
        known = {name: cells[name] for name in columns}
        tiles.append(Tile(file, found[file], cells["label"], **known))
    if not tiles:
        raise InputError(f"{table}: has a header and no rows")
    return tiles, columns


def _resolve(
    cell: str, where: str, root: Path, found: dict[str, Path], by_name: dict[str, list[str]]
) -> str:
    """The image that a CSV means: by its path in the folder, or by its name if that is unique."""
    file = cell.replace("\\", "/").removeprefix("./")
    if file in found:
        return file
    candidates = by_name.get(file, []) if "/" not in file else []
    if len(candidates) > 1:
        raise InputError(
            f"{where}: {cell} is the name of {candidates[0]} and of {candidates[1]}; write the path"
        )
    if not candidates:
        raise InputError(
            f"{where}: {cell} is no image in {root}; correct the name or take the row out"
        )
    return candidates[0]


def _text(table: Path) -> str:
    data = read_file(table)
    encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise InputError(
            f"{table}: row {line} is not UTF-8 (byte {data[error.start]:#x}); save it as UTF-8"
        ) from error
    if "\0" in text:
        raise InputError(f"{table}: not a text file; save it as CSV in UTF-8")
    return text


def _comma(text: str) -> str:
    """What separates cells: spreadsheets of some countries write ';'."""
    header = text.partition("\n")[0]
    return max(",;\t", key=header.count)
