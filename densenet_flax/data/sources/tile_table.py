"""A CSV or a JSON list that says what each image of a folder is."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from densenet_flax.common.errors import InputError
from densenet_flax.common.settings import Settings
from densenet_flax.data.sources.image_index import ImageIndex
from densenet_flax.data.sources.table_files import TextTable, read_text_table
from densenet_flax.data.sources.tree_layout import subset_of_word

_REQUIRED = ("file", "label")
# Spellings of each column, the surest first: of one line only one may be in a table. They are
# compared without case, spaces, '_' and '-'.
_SPELLINGS: Mapping[str, Sequence[str]] = {
    "file": (
        "file",
        "filename filepath files path image images imagename imagepath imagefile img imgname "
        "imgpath tile tilename tilepath patch patchname patchpath",
        "id imageid imgid name",
    ),
    "label": (
        "label",
        "labels class classes classname classlabel category target diagnosis groundtruth "
        "majorityvotelabel imagelabel",
    ),
    "patient": (
        "patient",
        "patientid patientname patients patientno patientnumber",
        "case caseid subject subjectid",
    ),
    "site": ("site", "siteid center centre centerid centreid hospital institution"),
    "split": ("split", "splits subset partition datasplit phase", "set fold folds"),
}
_OPTIONAL = ("patient", "site", "split")
_UNUSED = "none"  # of `ColumnSettings`: the table has no such column
_MISSING = frozenset({"nan", "null", "n/a", "#n/a", "<na>"})


@dataclasses.dataclass(frozen=True)
class ColumnSettings(Settings):
    """The block `config.data.columns`: what the columns of the table are called.

    '' recognizes the usual spellings; 'none' leaves a column that would be recognized unused.
    """

    file: str = ""
    label: str = ""
    patient: str = ""
    site: str = ""
    split: str = ""


class Tile(NamedTuple):
    """One image file and what is known about it."""

    file: str  # relative to the folder, with '/' on every system
    path: Path
    label: str
    known: Mapping[str, str]  # 'patient', 'site' and 'split', the same of them for all tiles
    in_tree: str = ""  # its path relative to its own tree, where that is not `file`


def read_tile_tables(
    paths: str, root: Path, images: Mapping[str, Path], columns: ColumnSettings
) -> tuple[list[Tile], Mapping[str, str]]:
    """Reads one table, or several with commas between, such as 'train.json,test.json'.

    Tables that are named like subsets state them, unless they have a column for it. See
    `read_tile_table`.
    """
    whole = Path(paths).expanduser()
    several = (
        [] if whole.is_file() else [Path(part.strip()).expanduser() for part in paths.split(",")]
    )
    if len(several) < 2:
        return read_tile_table(whole, root, images, columns)
    tiles: list[Tile] = []
    all_used: dict[str, str] = {}
    table_of: dict[str, Path] = {}
    for path in several:
        some, used = read_tile_table(path, root, images, columns)
        if all_used and used.keys() != all_used.keys():
            raise InputError(
                f"{path}: has columns for {', '.join(used)}, but {several[0]} for "
                f"{', '.join(all_used)}; make them the same"
            )
        all_used = dict(used)
        subset = subset_of_word(re.split(r"[ ._-]", path.stem)[0]) or subset_of_word(path.stem)
        for tile in some:
            if tile.file in table_of:
                raise InputError(
                    f"{path}: {tile.file} is in {table_of[tile.file]} already; keep one"
                )
            table_of[tile.file] = path
        if "split" not in used and subset:
            some = [tile._replace(known={**tile.known, "split": subset}) for tile in some]
        tiles += some
    if len({"split" in tile.known for tile in tiles}) > 1:
        raise InputError(
            f"data.csv={paths}: only some of these tables are named like a subset (train, "
            "validation, test); rename them or give them a column split"
        )
    return tiles, all_used


def read_tile_table(
    path: Path,
    root: Path,
    images: Mapping[str, Path],
    columns: ColumnSettings | None = None,
    *,
    recognize: bool = True,
) -> tuple[list[Tile], Mapping[str, str]]:
    """Reads the tiles of a table with the columns file and label, and those of `Tile.known`.

    Other columns are ignored.

    Args:
      path: the table; see `read_text_table`.
      root: the folder of the images.
      images: path of each image by its name relative to `root`; see `ImageIndex`.
      columns: what the columns are called.
      recognize: whether usual spellings of columns count, too.

    Returns:
      The tiles in the order of the rows, and the column that each of their facts came from.

    Raises:
      InputError: the file, a column or a row is wrong; the message names it.
    """
    table = read_text_table(path)
    positions = find_columns(table, columns or ColumnSettings(), recognize)
    used = {name: table.header[position] for name, position in positions.items()}
    index = ImageIndex(root, images)
    first_row: dict[str, str] = {}
    tiles = []
    for where, row in table.rows:
        cells = {name: row[position] for name, position in positions.items()}
        for name, cell in cells.items():
            if not cell or (name != "file" and cell.casefold() in _MISSING):
                raise InputError(f"{where}: no {name}{f' ({cell})' if cell else ''}; fill it in")
        if "split" in cells:
            cells["split"] = _subset(where, cells["split"], used["split"])
        file = index.find(where, cells.pop("file"), path)
        if file in first_row:
            number = first_row[file].removeprefix(f"{path}: ")
            raise InputError(f"{where}: {file} is in {number} already; keep one")
        first_row[file] = where
        tiles.append(Tile(file, images[file], cells.pop("label"), cells))
    if not tiles:
        raise InputError(f"{path}: has a header and no rows")
    return tiles, used


def _subset(where: str, cell: str, column: str) -> str:
    subset = subset_of_word(cell)
    if not subset and re.fullmatch(r"\d+(\.0)?", cell) and "fold" in column.casefold():
        subset = f"fold_{int(float(cell))}"
    if not subset:
        raise InputError(
            f"{where}: split {cell!r}; expected one of train, validation, test, or fold_1, …"
        )
    return subset


def find_columns(
    table: TextTable, columns: ColumnSettings, recognize: bool = True
) -> dict[str, int]:
    """Returns the position of each column that is stated or recognized."""
    positions: dict[str, int] = {}
    for name in (*_REQUIRED, *_OPTIONAL):
        stated = getattr(columns, name)
        if stated == _UNUSED:
            continue
        position = _stated(table, name, stated) if stated else _recognized(table, name, recognize)
        if position is not None:
            positions[name] = position
    for name in _REQUIRED:
        if name not in positions:
            found = ", ".join(filter(None, table.header)) or "nothing"
            hint = f"set data.columns.{name} to the column that has it"
            if {"fold", "mag", "grp"} <= {column.casefold() for column in table.header}:
                hint = (
                    "this is a list of BreakHis's folds: for the official ones use "
                    "--config=configs/breakhis.py:fold=1"
                )
            raise InputError(
                f"{table.path}: has no column {name!r}, only {found}; expected "
                f"{', '.join(_REQUIRED)} and perhaps {', '.join(_OPTIONAL)}; {hint}"
            )
    return positions


def _stated(table: TextTable, name: str, stated: str) -> int:
    for header in (list(table.header), [column.casefold() for column in table.header]):
        for spelling in (stated, stated.casefold()):
            if spelling in header:
                return header.index(spelling)
    raise InputError(
        f"{table.path}: has no column {stated!r} (data.columns.{name}), only "
        f"{', '.join(filter(None, table.header))}"
    )


def _recognized(table: TextTable, name: str, recognize: bool) -> int | None:
    keys = [re.sub(r"[\s_-]", "", column.casefold()) for column in table.header]
    for spellings in _SPELLINGS[name] if recognize else [name]:
        found = [position for position, key in enumerate(keys) if key in spellings.split()]
        if len(found) > 1:
            names = " and ".join(repr(table.header[position]) for position in found)
            raise InputError(
                f"{table.path}: the columns {names} may both be the {name}; set "
                f"data.columns.{name} to one of them"
            )
        if found:
            return found[0]
    return None
