"""What the templates show: tables and numbers with their intervals, and how they are written."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

from densenet_flax.common.trees import JsonDict

UNKNOWN = "not recorded"


class Measured(NamedTuple):
    """A metric and its interval; None where they do not exist."""

    value: float | None
    low: float | None = None
    high: float | None = None


Cell: TypeAlias = str | int | float | Measured | None


@dataclass(frozen=True)
class Table:
    """A table of a page.

    Attributes:
      header: title of each column.
      rows: cells of each row; None is shown as a dash.
      caption: shown above the table, unless it is ''.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    caption: str = ""

    @classmethod
    def from_records(cls, records: Sequence[Mapping[str, Cell]], caption: str = "") -> "Table":
        """A table of rows that name their cells; its columns are those of the first row."""
        header = list(records[0]) if records else []
        return cls(header, [[record.get(key) for key in header] for record in records], caption)

    @property
    def numeric(self) -> list[bool]:
        """Whether each column holds only numbers; such a column is aligned to the right."""
        return [
            all(row[i] is None or isinstance(row[i], int | float | Measured) for row in self.rows)
            for i in range(len(self.header))
        ]

    def without_empty_columns(self) -> "Table":
        """The table without the columns in which nothing is known."""
        # Only None means unknown; '' and 0 are values.
        keep = [i for i in range(len(self.header)) if any(row[i] is not None for row in self.rows)]
        rows = [[row[i] for i in keep] for row in self.rows]
        return Table([self.header[i] for i in keep], rows, self.caption)


def measured(values: JsonDict, intervals: JsonDict | None, key: str) -> Measured:
    """The metric `key` with its interval."""
    interval = (intervals or {}).get(key) or {}
    return Measured(values[key], interval.get("low"), interval.get("high"))


def format_number(value: Cell) -> str:
    """A count as it is, a fraction with three digits, None as a dash, text as it is.

    A fraction that three digits would round to certainty is '>0.999' or '<0.001'.
    """
    if isinstance(value, Measured):
        value = value.value
    if value is None:
        return "–"
    if not isinstance(value, float):
        return str(value)
    if 0 < value < 0.0005:
        return "<0.001"
    return ">0.999" if 0.9995 <= value < 1 else f"{value:.3f}"


def format_interval(value: Cell) -> str:
    """The interval of a metric with as many digits as its number; '' if there is none."""
    if not isinstance(value, Measured) or value.low is None or value.high is None:
        return ""
    return f"{format_number(value.low)} to {format_number(value.high)}"


def format_estimate(value: Cell) -> str:
    """A cell on one line: a metric as '0.715 [0.651, 0.773]', '' as a dash, the rest as it is."""
    if not isinstance(value, Measured):
        return UNKNOWN if value is None else str(value) or "–"
    if value.value is None:
        return "undefined"
    interval = ""
    if format_interval(value):
        interval = f" [{format_number(value.low)}, {format_number(value.high)}]"
    return f"{format_number(value)}{interval}"


def flat_items(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Pairs of key and value as text; the keys of nested mappings are joined by dots."""
    pairs = []
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            pairs += flat_items(value, f"{prefix}{key}.")
        else:
            text = f"{value:.6g}" if isinstance(value, float) else str(value)
            pairs.append((f"{prefix}{key}", text))
    return pairs
