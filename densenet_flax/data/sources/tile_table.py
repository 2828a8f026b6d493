"""A CSV that says what each image of a folder is."""

import csv
import io
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from densenet_flax.common.errors import InputError
from densenet_flax.common.reading import MAX_TEXT_BYTES, read_file

_REQUIRED = ("file", "label")
_OPTIONAL = ("patient", "site", "split")
_SPLITS = ("train", "validation", "test")


class Tile(NamedTuple):
    """One image file and what is known about it."""

    file: str  # relative to the folder, with '/' on every system
    path: Path
    label: str
    known: Mapping[str, str]  # 'patient', 'site' and 'split', the same of them for all tiles


def read_tile_table(table: Path, root: Path, images: Mapping[str, Path]) -> list[Tile]:
    """Reads the tiles of a CSV with the columns file and label, and those of `Tile.known`.

    Other columns are ignored.

    Args:
      table: the CSV in UTF-8, or in UTF-16 with its mark; separated by commas, semicolons or tabs.
      root: the folder of the images.
      images: path of each image by its name relative to `root`. A row names an image so, or by its
        file name if only one image has it.

    Raises:
      InputError: the file, a column or a row is wrong; the message names it.
    """
    text = _read_text(table)
    rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=_find_delimiter(text)))
    header = _read_header(table, rows)
    known = [name for name in _OPTIONAL if name in header]
    files_by_name: dict[str, list[str]] = defaultdict(list)
    for file in images:
        files_by_name[file.rpartition("/")[2]].append(file)
    # A full path names one image, also where files in other folders have the same name.
    files_by_name |= {file: [file] for file in images}
    row_of_file: dict[str, int] = {}
    tiles = []
    for number, row in enumerate(rows[1:], start=2):
        if not any(cell.strip() for cell in row):
            continue
        where = f"{table}: row {number}"  # as a spreadsheet counts them, with the header
        cells = _read_cells(where, header, row, (*_REQUIRED, *known))
        file = _find_image(where, cells["file"], root, files_by_name)
        if file in row_of_file:
            raise InputError(f"{where}: {file} is in row {row_of_file[file]} already; keep one")
        row_of_file[file] = number
        known_cells = {name: cells[name] for name in known}
        tiles.append(Tile(file, images[file], cells["label"], known_cells))
    if not tiles:
        raise InputError(f"{table}: has a header and no rows")
    return tiles


def _read_header(table: Path, rows: Sequence[Sequence[str]]) -> list[str]:
    header = [name.strip().lower() for name in rows[0]] if rows else []
    for name in _REQUIRED:
        if name not in header:
            raise InputError(
                f"{table}: has no column {name!r}, only {', '.join(header) or 'nothing'}; expected "
                f"{', '.join(_REQUIRED)} and perhaps {', '.join(_OPTIONAL)}"
            )
    if len(set(header)) < len(header):
        raise InputError(f"{table}: a column appears twice in {', '.join(header)}")
    return header


def _read_cells(
    where: str, header: Sequence[str], row: Sequence[str], needed: Sequence[str]
) -> dict[str, str]:
    if len(row) != len(header):
        raise InputError(f"{where}: has {len(row)} cells where the header has {len(header)}")
    cells = {name: cell.strip() for name, cell in zip(header, row, strict=True)}
    for name in needed:
        if not cells[name]:
            raise InputError(f"{where}: no {name}; fill it in")
    if cells.get("split", "train") not in _SPLITS:
        raise InputError(f"{where}: split {cells['split']!r}; expected one of {', '.join(_SPLITS)}")
    return cells


def _find_image(
    where: str, cell: str, root: Path, files_by_name: Mapping[str, Sequence[str]]
) -> str:
    # Tables come from Windows, too, with backslashes in paths.
    candidates = files_by_name.get(cell.replace("\\", "/").removeprefix("./"), ())
    if len(candidates) == 1:
        return candidates[0]
    problem = f"is not an image in {root}; correct the name or remove the row"
    if candidates:
        problem = f"is the name of {candidates[0]} and of {candidates[1]}; write the path"
    raise InputError(f"{where}: {cell} {problem}")


def _read_text(table: Path) -> str:
    data = read_file(table, max_bytes=MAX_TEXT_BYTES)
    encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        row = data[: error.start].count(b"\n") + 1
        raise InputError(
            f"{table}: row {row} is not UTF-8 (byte {data[error.start]:#x}); save it as UTF-8"
        ) from error
    if "\0" in text:
        raise InputError(f"{table}: not a text file; save it as CSV in UTF-8")
    return text


def _find_delimiter(text: str) -> str:
    """Spreadsheets write ';' where the decimal separator is a comma."""
    header = text.partition("\n")[0]
    return max(",;\t", key=header.count)
