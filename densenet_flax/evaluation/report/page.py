"""Pieces of one self-contained HTML page; everything from outside is escaped here.

A function takes plain text and returns markup; only `section` and `document` take markup.
"""

import base64
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

_CSS = """
:root { color-scheme: light dark; --ink: #1c2024; --soft: #5c6570; --paper: #fff; --card: #f5f6f8;
  --line: #dde1e6; --accent: #0072b2; --warn: #fff4e0; --warn-line: #d98c00; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8ea; --soft: #a0a8b2; --paper: #14171a;
  --card: #1f2428; --line: #343b42; --accent: #56b4e9; --warn: #33280f; --warn-line: #e69f00; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1120px; padding: 24px 20px 40px; background: var(--paper);
  color: var(--ink); font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1rem; font-weight: 600; color: var(--soft); margin: 0 0 4px; }
h2 { font-size: 1.2rem; margin: 40px 0 10px; padding-top: 14px;
  border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 0 0 6px; }
p { margin: 6px 0; max-width: 80ch; }
.verdict { font-size: clamp(1.3rem, 3.6vw, 1.9rem); line-height: 1.25; font-weight: 650;
  margin: 0 0 8px; max-width: 34em; }
.soft, figcaption, caption { color: var(--soft); font-size: .9rem; }
.warnings { background: var(--warn); border-left: 4px solid var(--warn-line);
  border-radius: 4px; margin: 18px 0; padding: 10px 16px; }
.warnings ul { margin: 0; padding-left: 1.1em; }
.tiles { display: grid; grid-template-columns: repeat(6, 1fr); gap: 10px; margin: 18px 0; }
.tile { background: var(--card); border-radius: 8px; padding: 10px 12px; }
.tile b { display: block; font-size: 1.5rem; line-height: 1.3;
  font-variant-numeric: tabular-nums; }
.tile small { display: block; color: var(--ink); font-variant-numeric: tabular-nums; }
.tile span { display: block; font-size: .85rem; color: var(--soft); line-height: 1.3; }
.pictures { display: grid; gap: 20px; align-items: start;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 420px), 1fr)); }
figure { margin: 0; }
figure img { display: block; width: 100%; max-width: 620px; height: auto; background: #fff;
  border: 1px solid var(--line); border-radius: 8px; padding: 6px; }
figcaption { margin-top: 6px; max-width: 620px; }
.scroll { overflow-x: auto; margin: 8px 0 18px; }
table { border-collapse: collapse; font-size: .92rem; overflow-wrap: normal; }
caption { text-align: left; padding-bottom: 4px; }
th, td { padding: 5px 20px 5px 0; border-bottom: 1px solid var(--line); text-align: left;
  vertical-align: top; }
td { max-width: 30em; overflow-wrap: break-word; }
th { font-weight: 600; color: var(--soft); vertical-align: bottom; }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
th.number { white-space: normal; }
.number small { display: block; color: var(--soft); font-size: .82em; line-height: 1.2; }
.gallery { display: grid; gap: 16px; margin: 8px 0 18px; align-items: start;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 320px), 1fr)); }
.gallery img { padding: 0; border-radius: 4px; }
h3 + .gallery, h3 + .scroll { margin-top: 6px; }
details { margin: 8px 0; }
summary { cursor: pointer; font-weight: 600; }
footer { margin-top: 48px; padding-top: 14px; border-top: 1px solid var(--line);
  font-weight: 600; }
@media (max-width: 960px) { .tiles { grid-template-columns: repeat(3, 1fr); } }
@media (max-width: 560px) { body { padding: 16px 14px 32px; } th, td { padding-right: 12px; }
  thead + tbody td:last-child:not(.number) { min-width: 9em; }
  .tiles { grid-template-columns: 1fr 1fr; } }
@media print { .scroll { overflow: visible; } h2 { break-after: avoid; }
  figure, .tile { break-inside: avoid; } }
"""


class Measured(NamedTuple):
    """A number for a table or a tile, with its interval below it where there is one."""

    value: float | None
    low: float | None = None
    high: float | None = None

    def markup(self, digits: int = 3) -> str:
        """The number, and a second line."""
        return number(self.value, digits) + self.span(digits)

    def span(self, digits: int = 3) -> str:
        """The interval, with as many digits as its number; nothing if there is none."""
        if self.low is None or self.high is None:
            return ""
        return f"<small>{number(self.low, digits)} to {number(self.high, digits)}</small>"


def number(value: float | int | None, digits: int = 3) -> str:
    """A count as it is, a fraction with fixed digits, what does not exist as a dash."""
    if value is None:
        return "–"
    return str(value) if isinstance(value, int) else f"{value:.{digits}f}"


def paragraph(text: str, css: str = "") -> str:
    """One paragraph."""
    return f'<p class="{css}">{escape(text)}</p>' if css else f"<p>{escape(text)}</p>"


def heading(title: str, verdict: str) -> str:
    """The name of the page, small, and what it found, large."""
    return f'<header><h1>{escape(title)}</h1><p class="verdict">{escape(verdict)}</p></header>'


def subheading(text: str) -> str:
    """A heading inside a section."""
    return f"<h3>{escape(text)}</h3>"


def bullets(lines: Iterable[str]) -> str:
    """A list."""
    return f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul>"


def warnings(lines: Sequence[str]) -> str:
    """A box that cannot be overlooked; nothing if there is nothing to warn of."""
    if not lines:
        return ""
    return f'<div class="warnings" role="note">{bullets(lines)}</div>'


def tiles(values: Iterable[tuple[Measured, str]]) -> str:
    """Key figures: (number, what it is)."""
    inside = "".join(
        f'<div class="tile"><b>{number(found.value)}</b>{found.span()}'
        f"<span>{escape(name)}</span></div>"
        for found, name in values
    )
    return f'<div class="tiles">{inside}</div>'


def picture(png: bytes, alt: str, caption: str) -> str:
    """An embedded PNG."""
    data = base64.b64encode(png).decode()
    return (
        f'<figure><img alt="{escape(alt)}" src="data:image/png;base64,{data}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def pictures(markup: Iterable[str]) -> str:
    """Pictures side by side where there is room."""
    return f'<div class="pictures">{"".join(markup)}</div>'


def gallery(markup: Iterable[str]) -> str:
    """Small pictures, as many beside each other as there is room for."""
    return f'<div class="gallery">{"".join(markup)}</div>'


def table(header: Sequence[str], rows: Iterable[Sequence[Any]], caption: str = "") -> str:
    """A table; columns that hold only numbers (and dashes for None) are set right."""
    rows = [list(row) for row in rows]
    numeric = [
        all(row[i] is None or isinstance(row[i], int | float | Measured) for row in rows)
        for i in range(len(header))
    ]

    def cell(value: Any, right: bool) -> str:
        if isinstance(value, Measured):
            inside = value.markup()
        elif right:
            inside = number(value)
        else:
            inside = "–" if value is None else escape(str(value))
        return f'<td class="number">{inside}</td>' if right else f"<td>{inside}</td>"

    head = "".join(
        f'<th class="number">{escape(text)}</th>' if right else f"<th>{escape(text)}</th>"
        for text, right in zip(header, numeric, strict=True)
    )
    body = "".join(f"<tr>{''.join(map(cell, row, numeric))}</tr>" for row in rows)
    title = f"<caption>{escape(caption)}</caption>" if caption else ""
    return (
        f'<div class="scroll"><table>{title}<thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def key_values(values: Mapping[str, Any]) -> str:
    """Two columns; nested mappings become dotted keys."""
    rows = "".join(
        f"<tr><td>{escape(key)}</td><td>{escape(value)}</td></tr>" for key, value in _flat(values)
    )
    return f'<div class="scroll"><table><tbody>{rows}</tbody></table></div>'


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", f"{value:.6g}" if isinstance(value, float) else str(value)


def folded(summary: str, markup: str, is_open: bool = False) -> str:
    """Markup that is shown on a click."""
    opened = " open" if is_open else ""
    return f"<details{opened}><summary>{escape(summary)}</summary>{markup}</details>"


def section(title: str, *markup: str) -> str:
    """A headed part of the page; nothing if it is empty."""
    inside = "".join(markup)
    return f"<section><h2>{escape(title)}</h2>{inside}</section>" if inside else ""


def document(title: str, markup: str, footer: str) -> str:
    """The whole page. The policy forbids every request, whatever slips into the text."""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">"
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_CSS}</style></head>"
        f"<body>{markup}<footer>{escape(footer)}</footer></body></html>\n"
    )
