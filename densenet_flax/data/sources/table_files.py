"""Tables as people keep them, CSV and JSON, as rows of text."""

import csv
import dataclasses
import io
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from densenet_flax.common.errors import InputError
from densenet_flax.common.reading import MAX_TEXT_BYTES, read_file


@dataclasses.dataclass(frozen=True)
class TextTable:
    """A table of text.

    Attributes:
      path: its file.
      header: the names of the columns as they are written, without spaces around them.
      rows: for each row its name in messages and its cells, as many as the header has.
    """

    path: Path
    header: Sequence[str]
    rows: Sequence[tuple[str, Sequence[str]]]


def read_text_table(path: Path) -> TextTable:
    """Reads a table; `.json` is a list of objects, all else CSV.

    CSV is in UTF-8, or in UTF-16 with its mark, with commas, semicolons or tabs. A line `sep=;` and
    lines that begin with '#' above the header are skipped.

    Raises:
      InputError: it cannot be read as such; the message names file and row.
    """
    text = _read_text(path)
    if path.suffix.lower() == ".json":
        return _read_json(path, text)
    lines = text.replace("\r\n", "\n").replace("\r", "\n")
    skipped = 0
    while lines.startswith(("#", "sep=")):
        lines = lines.partition("\n")[2]
        skipped += 1
    delimiter = _find_delimiter(lines)
    # Strict, because a quote that is not closed would swallow the rows behind it.
    reader = csv.reader(io.StringIO(lines, newline=""), delimiter=delimiter, strict=True)
    rows: list[list[str]] = []
    try:
        for row in reader:
            rows.append(row)
    except csv.Error as error:
        raise InputError(
            f"{path}: row {skipped + len(rows) + 1} is not CSV ({error}); close each quote, and "
            "write one in a cell twice"
        ) from error
    header = [name.strip() for name in rows[0]] if rows else []
    named = [name for name in header if name]
    if len({name.casefold() for name in named}) < len(named):
        raise InputError(f"{path}: a column appears twice in {', '.join(header)}")
    kept = []
    for number, row in enumerate(rows[1:], start=skipped + 2):  # as a spreadsheet counts them
        if any(cell.strip() for cell in row):
            kept.append((f"{path}: row {number}", _fit(f"{path}: row {number}", row, header)))
    return TextTable(path, header, kept)


def _fit(where: str, row: Sequence[str], header: Sequence[str]) -> list[str]:
    cells = [cell.strip() for cell in row]
    while len(cells) > len(header) and not cells[-1]:
        cells.pop()  # a separator at the end of the row
    if len(cells) != len(header):
        raise InputError(
            f"{where}: has {len(cells)} cells where the header has {len(header)}; put quotes "
            "around a cell with a separator in it"
        )
    return cells


def _read_json(path: Path, text: str) -> TextTable:
    try:
        entries = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: is not JSON ({error}); correct it") from error
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise InputError(
            f"{path}: expected a list of objects, such as "
            '[{"name": "1.png", "label": "tumor"}, …]'
        )
    header = list(dict.fromkeys(key for entry in entries for key in entry))
    rows = [
        (f"{path}: entry {number}", [_to_text(entry.get(key)) for key in header])
        for number, entry in enumerate(entries, start=1)
    ]
    return TextTable(path, header, rows)


def _to_text(value: Any) -> str:
    if value is None:
        return ""
    return value.strip() if isinstance(value, str) else json.dumps(value)


def _read_text(path: Path) -> str:
    data = read_file(path, max_bytes=MAX_TEXT_BYTES)
    if data.startswith(b"PK\x03\x04"):
        raise InputError(f"{path}: is a workbook and not a text file; save it as CSV in UTF-8")
    encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        row = data[: error.start].count(b"\n") + 1
        raise InputError(
            f"{path}: row {row} is not UTF-8 (byte {data[error.start]:#x}); save it as UTF-8"
        ) from error
    if "\0" in text:
        raise InputError(f"{path}: not a text file; save it as CSV in UTF-8")
    return text


def _find_delimiter(text: str) -> str:
    """Spreadsheets write ';' where the decimal separator is a comma."""

    def score(delimiter: str) -> tuple[bool, int]:
        # Read as CSV and not counted: a quoted cell may have the others in it.
        rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
        try:
            first = [len(row) for row in itertools.islice(rows, 20) if row]
        except csv.Error:  # whole lines may be too long for a cell
            return False, 0
        return len(set(first)) == 1 and first[0] > 1, first[0] if first else 0

    return max(",;\t", key=score)
