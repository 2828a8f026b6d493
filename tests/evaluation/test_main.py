import json
import runpy
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from densenet_flax.evaluation import compare, cross_validation_summary, pool
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


def test_compare_many_runs(tables, tmp_path, capsys, quick_figures):
    a, b, path_a, _ = tables
    for name, table in (("x/run", a), ("y/run", b)):
        (tmp_path / name / "report").mkdir(parents=True)
        table.write_csv(tmp_path / name / "report" / "predictions.csv")
    runs = [str(tmp_path / name) for name in ("x/run", "y/run")]
    assert main(["compare", *runs, path_a, "--resamples", "20"]) == 0
    text = capsys.readouterr().out
    assert "y/run − x/run" in text and "3 pairs: Bonferroni for intervals, Holm for p." in text
    options = ["--baseline", runs[1], "--output", str(tmp_path / "out"), "--resamples", "20"]
    assert main(["compare", runs[0], path_a, *options]) == 0
    assert capsys.readouterr().out.endswith("out/report.html\n")
    written = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert written["baseline"] == "y/run" and len(written["pairs"]) == 2
    assert main(["compare", runs[0], str(tmp_path / "x")]) == 1
    assert "has no report/predictions.csv; evaluate the run first" in capsys.readouterr().err


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
    assert capsys.readouterr().out.startswith(
        "Sensitivity 8 of 8 malignant patients (0.63 to 1.00)"
    )
    written = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert written["operating_point"]["rule"] == "youden" and written["run"] == {"title": "again"}
    own = tmp_path / "out" / "predictions.csv"
    before = own.read_bytes()
    assert main(["report", path_b, str(tmp_path / "out"), "--validation", str(own)]) == 1
    assert "would be written over this table" in capsys.readouterr().err
    assert own.read_bytes() == before


def test_commands_with_several_classes(several, tmp_path, capsys, quick_figures):
    table, validation = several(0), several(1, tag="v")
    better = replace(table, probability=0.7 * table.probability + 0.3 * np.eye(4)[table.label])
    paths = {}
    for name, one in (("a", table), ("b", better), ("v", validation), ("w", several(2, tag="w"))):
        paths[name] = str(tmp_path / f"{name}.csv")
        one.write_csv(paths[name])
    quick = ["--resamples", "60"]
    assert main(["compare", paths["a"], paths["b"], *quick]) == 0
    text = capsys.readouterr().out
    assert "(likeliest class)" in text and "macro_f1" in text
    result = compare(table, better, 60)
    assert result["thresholds"] is None and result["image"]["accuracy"]["difference"] > 0
    assert main(["folds", paths["v"], paths["w"], *quick]) == 0
    assert "macro_roc_auc" in capsys.readouterr().out
    summary = cross_validation_summary([validation, several(2, tag="w")], resamples=60)
    folds = [row["image"]["kappa"] for row in summary["folds"]]
    assert summary["mean"]["image"]["kappa"]["mean"] == pytest.approx(np.mean(folds))
    pooled = pool([validation, several(2, tag="w")])
    assert summary["pooled"]["image"]["accuracy"] == np.mean(pooled.prediction == pooled.label)
    out = str(tmp_path / "out")
    assert main(["report", paths["a"], out, "--validation", paths["v"], *quick]) == 0
    assert "over 4 classes" in capsys.readouterr().out
    assert main(["report", paths["a"], out, "--validation", paths["v"], "--rule", "youden"]) == 1
    assert "there are 4 classes" in capsys.readouterr().err


def test_invalid_input_is_one_line(tables, tmp_path, capsys):
    assert main(["compare", tables[2], str(tmp_path / "absent.csv")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and "absent.csv" in error and error.count("\n") == 1


def test_it_runs_as_a_module(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["evaluation", "compare", "--help"])
    monkeypatch.delitem(sys.modules, "densenet_flax.evaluation.__main__")
    with pytest.raises(SystemExit) as done:
        runpy.run_module("densenet_flax.evaluation", run_name="__main__")
    assert done.value.code == 0 and "RUN [RUN ...]" in capsys.readouterr().out


def test_only_the_report_imports_matplotlib():
    # In a process of its own: other tests have imported it into this one.
    code = "import sys, densenet_flax.evaluation.__main__; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
