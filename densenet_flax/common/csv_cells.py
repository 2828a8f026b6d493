"""Cells of CSV files that a spreadsheet does not take for formulas.

A spreadsheet computes a cell that begins with one of a few characters, whatever quotes are around
it, and a formula can send the table elsewhere. So such a text gets an apostrophe in front, which
`read_cell` takes away again; other programs see it. Negative numbers and lone signs stay as they
are.
"""

import re

# Tabs and ends of lines are skipped before the character behind them is looked at; full-width ones
# count in East Asian versions. What begins with apostrophes gets one more, so that all reads back.
_FORMULA = re.compile(r"'*[=+\-@\t\r\n＝＋－＠]")
_HARMLESS = re.compile(r"[-+]|-(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")
_MARK = "'"


def write_cell(text: str) -> str:
    """Returns a text as it is written into a CSV file."""
    is_formula = _FORMULA.match(text) and not _HARMLESS.fullmatch(text)
    return f"{_MARK}{text}" if is_formula else text


def read_cell(cell: str) -> str:
    """The inverse of `write_cell`."""
    text = cell.removeprefix(_MARK)
    return text if text != cell and write_cell(text) == cell else cell
