"""That nothing from outside acts as HTML or as Markdown, wherever a template prints it."""

import re

import pytest

from densenet_flax.evaluation.report.rendering import escape_markdown, render
from densenet_flax.evaluation.report.views import (
    Measured,
    Table,
    flat_items,
    format_estimate,
    format_interval,
    format_number,
)


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("a|b", "a\\|b"),
        ("*a* _b_ `c` ~d~ $e$", "\\*a\\* \\_b\\_ \\`c\\` \\~d\\~ \\$e\\$"),
        ("![a](b)", "!\\[a\\](b)"),
        ("\\", "\\\\"),
        ("<b>&amp;", "&lt;b&gt;&amp;amp;"),
        ("several\n\n# lines\u2028here", "several \\# lines here"),
        # Only at the start of a line, and only if it would begin a list, a rule or a heading.
        ("- a", "\\- a"),
        ("+ a", "\\+ a"),
        ("1. a", "1\\. a"),
        ("12) a", "12\\) a"),
        ("---", "\\---"),
        ("===", "\\==="),
        ("-0.123", "-0.123"),
        ("1.5 and 2. a - b", "1.5 and 2. a - b"),
        (0.25, "0.25"),
        ("a\u202eb", "a\\\\u202eb"),
    ],
)
def test_markdown_is_escaped(text, escaped):
    assert escape_markdown(text) == escaped
    assert escape_markdown(escape_markdown(text)) == escaped  # once, also after a macro


def test_a_misspelled_name_in_a_template_is_an_error():
    with pytest.raises(Exception, match="'title' is undefined"):
        render("report.html")


def test_templates_print_no_value_unescaped():
    """`safe` is for the keys and names of metrics, which are constants of this package."""
    from importlib.resources import files

    templates = files("densenet_flax.evaluation.report") / "templates"
    raw = {
        expression.strip()
        for path in templates.iterdir()
        for expression in re.findall(r"{{(.*?)}}", path.read_text())
        if "safe" in expression
    }
    assert raw == {"key|safe", "name|safe"}
    assert not any("autoescape" in path.read_text() for path in templates.iterdir())


def test_numbers():
    assert [format_number(value) for value in (None, 3, 0.25, "3/4")] == ["–", "3", "0.250", "3/4"]
    metric = Measured(0.9986, 0.9972, 1.0)  # as printed, the value lies within its interval
    assert (format_number(metric), format_interval(metric)) == ("0.999", "0.997 to 1.000")
    assert format_estimate(metric) == "0.999 [0.997, 1.000]"
    assert (format_number(Measured(None)), format_interval(Measured(0.5))) == ("–", "")
    estimates = [format_estimate(value) for value in (Measured(None), Measured(0.5), "", 0)]
    assert estimates == ["undefined", "0.500", "–", "0"]


def test_columns_of_numbers_are_aligned_to_the_right():
    table = Table(["a", "b", "c"], [["x", 1, Measured(0.5)], ["y", None, None]])
    assert table.numeric == [False, True, True]
    assert Table(["a", "b"], [["x", None], ["y", None]]).without_empty_columns().header == ["a"]


def test_nested_mappings_become_dotted_keys():
    values = {"a": {"b": {"c": 0.123456789}, "d": {}}, "e": [1]}
    assert flat_items(values) == [("a.b.c", "0.123457"), ("a.d", "{}"), ("e", "[1]")]
