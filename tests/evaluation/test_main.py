import json
import runpy
import sys
from dataclasses import replace

import numpy as np
import pytest

from densenet_flax.evaluation import compare
from densenet_flax.evaluation.__main__ import main


@pytest.fixture
def tables(random_table, tmp_path):
    a = random_table(0)
    b = replace(a, probability=np.clip(a.probability + 0.3 * (2 * a.label - 1), 0, 1))
    a.write_csv(tmp_path / "a.csv")
    b.write_csv(tmp_path / "b.csv")
    return a, b, str(tmp_path / "a.csv"), str(tmp_path / "b.csv")


def test_compare(tables, capsys):
    a, b, path_a, path_b = tables
    assert main(["compare", path_a, path_b, "--resamples", "100", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == compare(a, b, 100)
    assert main(["compare", path_a, path_b, "--resamples", "100", "--seed", "1"]) == 0
    text = capsys.readouterr().out
    row = compare(a, b, 100, seed=1)["image"]["roc_auc"]
    line = next(line for line in text.splitlines() if line.startswith("roc_auc"))
    assert f"{row['difference']:+.3f}" in line and f"{row['p']:.4f}" in line


def test_folds(tables, tmp_path, capsys):
    a, _, _, _ = tables
    paths = []
    for name in ("p0", "p1"):
        part = a.select(np.char.endswith(a.patient, name[1]))
        part.write_csv(tmp_path / f"{name}.csv")
        paths.append(str(tmp_path / f"{name}.csv"))
    assert main(["folds", *paths, "--resamples", "50"]) == 0
    assert "mean ± SD" in capsys.readouterr().out
    assert main(["folds", *paths, "--resamples", "50", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["folds"]) == 2


def test_report(tables, tmp_path, capsys, quick_figures):
    a, _, _, path_b = tables
    names = {name: np.char.add("v", getattr(a, name)) for name in ("file", "patient")}
    replace(a, **names).write_csv(tmp_path / "v.csv")
    arguments = ["--validation", str(tmp_path / "v.csv"), "--rule", "youden", "--resamples", "50"]
    assert main(["report", path_b, str(tmp_path / "out"), *arguments, "--title", "again"]) == 0
    assert capsys.readouterr().out.startswith("Accuracy ")
    written = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert written["operating_point"]["rule"] == "youden" and written["run"] == {"title": "again"}


def test_bad_input_is_one_line(tables, tmp_path, capsys):
    assert main(["compare", tables[2], str(tmp_path / "absent.csv")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and "absent.csv" in error and error.count("\n") == 1


def test_it_is_a_module(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["evaluation", "compare", "--help"])
    monkeypatch.delitem(sys.modules, "densenet_flax.evaluation.__main__")
    with pytest.raises(SystemExit) as done:
        runpy.run_module("densenet_flax.evaluation", run_name="__main__")
    assert done.value.code == 0 and "A.csv" in capsys.readouterr().out
