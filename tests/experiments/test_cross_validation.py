"""All folds by one command."""

import json
import re

import numpy as np
import pytest

from densenet_flax import InputError
from densenet_flax.evaluation import cross_validation_summary, read_csv
from densenet_flax.evaluation.report.folds_report import folds_verdict, write_folds_report
from densenet_flax.experiments import cross_validation
from densenet_flax.experiments import run as experiment
from densenet_flax.experiments.cross_validation import cross_validate, of_fold
from tests.configs import tiny


@pytest.fixture
def config(tmp_path_factory):
    config = tiny.get_config()
    config.cache_dir = str(tmp_path_factory.getbasetemp() / "cv-cache")
    config.stage_order = ("head",)
    config.stages.head.duration = "1 epochs"
    config.explain = ""
    config.split.folds = 3
    return config


def test_folds_one_by_one_and_together(config, tmp_path, monkeypatch):
    trained = []
    train = experiment.train_and_evaluate

    def counting(config, workdir):
        trained.append(workdir.rpartition("/")[2])
        if trained == ["fold1", "fold2"]:
            raise KeyboardInterrupt
        return train(config, workdir)

    monkeypatch.setattr(cross_validation, "train_and_evaluate", counting)
    with pytest.raises(KeyboardInterrupt):
        cross_validate(config, str(tmp_path / "cv"))
    metrics = cross_validate(config, str(tmp_path / "cv"))
    assert trained == ["fold1", "fold2", "fold2", "fold3"]  # what is done is not done again
    again = cross_validate(config, str(tmp_path / "cv"))
    assert again == metrics and len(trained) == 4
    folds = [tmp_path / "cv" / f"fold{i}" for i in (1, 2, 3)]
    splits = [json.loads((fold / "split.json").read_text())["files"] for fold in folds]
    tested = [{name for name, side in files.items() if side == "test"} for files in splits]
    assert set.union(*tested) == set(splits[0]) and sum(map(len, tested)) == len(splits[0])
    tables = [read_csv(fold / "report" / "predictions.csv") for fold in folds]
    summary = cross_validation_summary(tables)
    assert metrics["mean"] == summary["mean"] and metrics["pooled"] == summary["pooled"]
    assert json.loads((tmp_path / "cv" / "report" / "metrics.json").read_text()) == metrics
    page = (tmp_path / "cv" / "report" / "report.html").read_text()
    for link in re.findall(r'href="([^"]+)"', page):
        assert (tmp_path / "cv" / "report" / link).is_file()
    assert len(re.findall("href=", page)) == 3
    assert folds_verdict(metrics) in page and "drawn by a program" in page
    assert all(line.startswith("In each fold: ") for line in metrics["warnings"] if "nly" in line)
    assert "http" not in page.replace("http-equiv", "")
    # Another way of judging is judged again, without training.
    config.threshold = "youden"
    other = cross_validate(config, str(tmp_path / "cv"))
    assert trained[4:] == ["fold1", "fold2", "fold3"]
    assert other["run"]["config"]["threshold"] == "youden"


def test_which_folds_there_are(config, tmp_path):
    assert of_fold(config, 2).split.to_dict() == {
        **config.split.to_dict(),
        "policy": "kfold",
        "fold": 2,
    }
    config.split.policy = "official"
    assert of_fold(config, 2).split.policy == "official"
    assert cross_validation.count_folds(config) == 5
    for policy, folds, words in (("image", 3, "has no folds"), ("kfold", 1, "split.folds=1")):
        config.split.policy, config.split.folds = policy, folds
        with pytest.raises(InputError, match=words):
            cross_validate(config, str(tmp_path / "none"))
    assert not (tmp_path / "none").exists()


def test_a_run_of_its_own_is_no_place_for_folds(tiny_run):
    with pytest.raises(InputError, match="a run of its own"):
        cross_validate(tiny_run[1], str(tiny_run[0]))


def test_folds_that_share_patients_are_not_pooled(tiny_run, tmp_path):
    table = tiny_run[3]
    half = np.arange(len(table)) % 2 == 0
    metrics = write_folds_report(
        tmp_path, [table.select(half), table.select(~half)], ["a", "b <i>"], resamples=50
    )
    page = (tmp_path / "report.html").read_text()
    assert metrics["pooled"] is None and "not pooled" in page
    assert "b &lt;i&gt;" in page and "<i>" not in page
    assert "(mean ± SD)" in page and "pooled" not in folds_verdict(metrics)
