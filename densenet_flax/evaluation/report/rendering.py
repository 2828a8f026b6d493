"""Jinja templates whose values are escaped for the language that they are written in.

A template gets one object, `page`. What it prints with {{ … }} is escaped for HTML in `*.html` and
for Markdown in `*.md`, because file names, class names and titles come from outside.
"""

import functools
import html
import json
import re
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from densenet_flax.evaluation.report.views import (
    format_estimate,
    format_interval,
    format_number,
)

# What Markdown acts on anywhere in a line; GitHub's reads $ as mathematics and ~ as strike-through.
_MARKDOWN_MARKS = re.compile(r"([\\|*_`\[\]#~$])")
# What makes a list, a rule or a heading of a line that begins with it.
_MARKDOWN_LINE_START = re.compile(r"^(\d*)([-+=.)])(?=[-=\s]|$)")


def render(template: str, page: object) -> bytes:
    """Renders a template of this package as UTF-8.

    A file name may hold a byte that is not UTF-8; Python keeps it as a lone surrogate, which the
    page can only show as its code.
    """
    environment = _markdown_environment() if template.endswith(".md") else _html_environment()
    return environment.get_template(template).render(page=page).encode("utf-8", "backslashreplace")


def escape_markdown(value: object) -> Markup:
    """Text on one line in which neither Markdown nor the HTML inside it has any effect."""
    if isinstance(value, Markup):
        return value
    line = _MARKDOWN_MARKS.sub(r"\\\1", " ".join(str(value).split()))
    line = _MARKDOWN_LINE_START.sub(r"\1\\\2", line)
    return Markup(html.escape(line, quote=False))


@functools.cache
def _html_environment() -> Environment:
    environment = _environment()
    environment.filters |= {"number": format_number, "interval": format_interval}
    return environment


@functools.cache
def _markdown_environment() -> Environment:
    # `finalize` sees every value before autoescape does. What it returns is Markup, which
    # autoescape leaves alone, as it does the output of macros.
    environment = _environment(finalize=escape_markdown)
    environment.filters["estimate"] = format_estimate
    # Quoted as JSON, which is YAML as well; for the front matter.
    environment.filters["quoted"] = lambda value: Markup(json.dumps(str(value)))
    return environment


def _environment(**options: Any) -> Environment:
    return Environment(
        loader=PackageLoader("densenet_flax.evaluation.report"),
        autoescape=True,
        # A line with a block tag leaves no line behind; in Markdown an empty line ends a table.
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        # A misspelled attribute of `page` is an error, not an empty cell.
        undefined=StrictUndefined,
        **options,
    )
