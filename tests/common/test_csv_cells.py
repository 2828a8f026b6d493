"""Cells that a spreadsheet would compute, and their way back."""

import csv
import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from densenet_flax.common.csv_cells import read_cell, write_cell


@pytest.mark.parametrize(
    "text", ["=1+1", "+2", "-2+3", "@SUM(1)", "\t=1", "\r=1", "\n=1", "＝1", "-x"]
)
def test_a_formula_is_marked(text):
    assert write_cell(text) == f"'{text}"


@pytest.mark.parametrize(
    "text", ["", "a=1", "-", "+", "-1", "-.5", "-1e-05", "1", "'a'", " =1", "a-b"]
)
def test_anything_else_is_left_alone(text):
    assert write_cell(text) == text


@settings(max_examples=60, deadline=None)
@given(st.text("'=+-@\t\r\n＝a1.e \",", max_size=8))
def test_each_text_reads_back_exactly(text):
    stream = io.StringIO(newline="")
    csv.writer(stream).writerow([write_cell(text), "x"])
    stream.seek(0)
    assert read_cell(next(csv.reader(stream))[0]) == text
