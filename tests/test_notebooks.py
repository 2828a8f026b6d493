"""The notebooks: all cells are executed with a small network; what is kept is fit to be read."""

import tempfile
from pathlib import Path

import nbformat
import pytest
from nbclient.exceptions import CellExecutionError

from notebooks.execute import FOLDER, clean, execute, hub_of_random_weights, problems
from tests.helpers.program import make_cache

PATHS = sorted(FOLDER.glob("*.ipynb"))
# In place of the values that a reader finds: a network of four layers, tiles of a few patients; and
# figures of reports, whose drawing would take most of the time, in few pixels.
SMALL_NETWORK = """
from tests.docs import small
small.set_up()
network = "tiny"
"""
PARAMETERS = {
    "hub": "patients, tiles, epochs = 16, 2, {'head': 1, 'finetune': 1}",
    "keras_series": """
unfreeze_from = "conv5"
patients, tiles_per_patient, epochs = 8, 2, {"head": 1, "finetune": 1}
""",
    "from_arrays": "patients, tiles, epochs = 16, 2, {'head': 1, 'finetune': 1}",
}


def test_every_notebook_has_parameters_here():
    assert {path.stem for path in PATHS} == set(PARAMETERS)


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_every_cell_can_be_executed(path):
    # A folder whose name `clean` knows.
    with tempfile.TemporaryDirectory() as name, hub_of_random_weights(name, (1, 1, 1, 1)) as env:
        (cache := Path(name, "cache", "densenet_flax")).mkdir(parents=True)
        make_cache(cache)
        notebook = execute(path, name, SMALL_NETWORK + PARAMETERS[path.stem], env)
    clean(notebook)
    # Which is right: timm has the four published networks alone.
    expected = "timm cannot load it: timm and torchvision cannot build"
    assert [reason for reason in problems(notebook) if expected not in reason] == []


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_what_is_kept_can_be_read(path):
    notebook = nbformat.read(path, as_version=4)
    assert problems(notebook) == []
    counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1))  # executed in order, from the start
    assert not any("execution" in cell.metadata for cell in notebook.cells)  # times


def test_a_cell_that_fails_and_one_that_warns(tmp_path):
    path, cells = tmp_path / "a.ipynb", nbformat.v4
    code = "import sys; print('a 0%', end='\\r'); print('done', file=sys.stderr)"
    notebook = cells.new_notebook(cells=[cells.new_code_cell(code)])
    nbformat.write(notebook, path)
    notebook = execute(path, tmp_path)
    clean(notebook)
    assert any("stderr: 'done" in reason for reason in problems(notebook))
    notebook.cells.append(cells.new_code_cell("1 / 0"))
    nbformat.write(notebook, path)
    with pytest.raises(CellExecutionError, match="ZeroDivisionError"):
        execute(path, tmp_path)
