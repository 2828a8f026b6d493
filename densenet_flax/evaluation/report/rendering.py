"""Jinja templates whose values are escaped for the language that they are written in.

What a template prints with {{ … }} is escaped for HTML in `*.html` and for Markdown in `*.md`,
because file names, class names and titles come from outside.
"""

import base64
import functools
import html
import json
import re

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from densenet_flax.common.errors import one_line, printable
from densenet_flax.evaluation.report import views
from densenet_flax.evaluation.report.wording import count

_REPORT = "densenet_flax.evaluation.report"
# What Markdown acts on anywhere in a line; GitHub's reads $ as mathematics and ~ as strike-through.
_MARKDOWN_MARKS = re.compile(r"([\\|*_`\[\]#~$])")
# What makes a list, a rule or a heading of a line that begins with it.
_MARKDOWN_LINE_START = re.compile(r"^(\d*)([-+=.)])(?=[-=\s]|$)")


def render(template: str, *, package: str = _REPORT, **values: object) -> bytes:
    """Renders a template of a package as UTF-8.

    A file name may hold a byte that is not UTF-8; Python keeps it as a lone surrogate, which the
    page can only show as its code.
    """
    environment = _environment(package, markdown=template.endswith(".md"))
    return environment.get_template(template).render(values).encode("utf-8", "backslashreplace")


def escape_markdown(value: object) -> Markup:
    """Text on one line in which neither Markdown nor the HTML inside it has any effect."""
    if isinstance(value, Markup):
        return value
    line = _MARKDOWN_MARKS.sub(r"\\\1", one_line(value))
    line = _MARKDOWN_LINE_START.sub(r"\1\\\2", line)
    return Markup(html.escape(line, quote=False))


def _visible(value: object) -> object:
    """A value without characters that would turn the order of letters in a page."""
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    return "\n".join(map(printable, value.split("\n")))


@functools.cache
def _environment(package: str, markdown: bool) -> Environment:
    environment = Environment(
        # Pages of other packages use the style and the macros of the report's.
        loader=ChoiceLoader([PackageLoader(package), PackageLoader(_REPORT)]),
        autoescape=True,
        # It sees every value before autoescape does. What it returns for Markdown is Markup, which
        # autoescape leaves alone, as it does the output of macros.
        finalize=escape_markdown if markdown else _visible,
        # A line with a block tag leaves no line behind; in Markdown an empty line ends a table.
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        # A misspelled name is an error, not an empty cell.
        undefined=StrictUndefined,
    )
    environment.filters |= {
        "number": views.format_number,
        "interval": views.format_interval,
        "estimate": views.format_estimate,
        "flat_items": views.flat_items,
        "counted": count,
        "data_uri": lambda png: f"data:image/png;base64,{base64.b64encode(png).decode()}",
        # Quoted as JSON, which is YAML as well; for the front matter.
        "quoted": lambda value: Markup(json.dumps(str(value))),
    }
    return environment
