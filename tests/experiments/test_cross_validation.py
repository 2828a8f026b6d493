"""Cross-validation by one command."""

import json
import re

import huggingface_hub.constants
import numpy as np
import pytest

from densenet_flax import InputError
from densenet_flax.evaluation import cross_validation_summary, read_csv
from densenet_flax.evaluation.report.folds_report import folds_verdict, write_folds_report
from densenet_flax.experiments import cross_validation
from densenet_flax.experiments.cross_validation import config_of_fold, count_folds, cross_validate
from densenet_flax.experiments.run import train_and_evaluate
from densenet_flax.weights import save_weights
from densenet_flax.weights.layout import Layout
from tests.configs import tiny
from tests.helpers.networks import TINY_BLOCKS
from tests.weights.helpers import info_of, random_variables


@pytest.fixture
def config(tmp_path_factory):
    config = tiny.get_config()
    config.cache_dir = str(tmp_path_factory.getbasetemp() / "cv-cache")
    config.stage_order = ("head",)
    config.stages.head.duration = "1 epochs"
    config.explain = ""
    config.split.folds = 3
    return config


def test_folds_are_trained_once_and_pooled(config, hub, tmp_path, monkeypatch):
    """From weights on the Hub: all folds from the commit of the first, and the license noted."""
    trained = []
    layout, files = Layout(TINY_BLOCKS), []
    for seed in (0, 1):
        save_weights(tmp_path / "m.safetensors", random_variables(layout, seed), info_of(layout))
        card = b"---\nlicense: cc-by-nc-4.0\n---"
        weights = (tmp_path / "m.safetensors").read_bytes()
        files.append({"model.safetensors": weights, "README.md": card})
    commit = hub.push("a/b", files[0])
    config.model.weights = "hf://a/b"

    def train_unless_interrupted(config, workdir, **options):
        trained.append(workdir.rpartition("/")[2])
        if trained == ["fold1", "fold2"]:
            hub.push("a/b", files[1])
            raise KeyboardInterrupt
        return train_and_evaluate(config, workdir, **options)

    monkeypatch.setattr(cross_validation, "train_and_evaluate", train_unless_interrupted)
    with pytest.raises(KeyboardInterrupt):
        cross_validate(config, str(tmp_path / "cv"))
    metrics = cross_validate(config, str(tmp_path / "cv"))
    assert trained == ["fold1", "fold2", "fold2", "fold3"]  # fold 1 is not trained again
    again = cross_validate(config, str(tmp_path / "cv"))
    assert again == metrics and len(trained) == 4
    folds = [tmp_path / "cv" / f"fold{i}" for i in (1, 2, 3)]
    for fold in folds:
        weights = json.loads((fold / "report" / "metrics.json").read_text())["run"]["weights"]
        assert weights["started from"] == f"hf://a/b@{commit}/model.safetensors"
        assert json.loads((fold / "config.json").read_text())["model"]["weights"] == "hf://a/b"
        card = (fold / "report" / "MODEL_CARD.md").read_text()
        assert 'license: "cc-by-nc-4.0"' in card and commit in card
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "empty"))
    hub.requests.clear()
    train_and_evaluate(config_of_fold(config, 1), str(folds[0]))  # needs neither Hub nor cache
    assert not hub.requests
    splits = [json.loads((fold / "split.json").read_text())["files"] for fold in folds]
    tested = [{name for name, subset in files.items() if subset == "test"} for files in splits]
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
    # Another threshold rule needs another evaluation, but no training.
    config.threshold = "youden"
    other = cross_validate(config, str(tmp_path / "cv"))
    assert trained[4:] == ["fold1", "fold2", "fold3"]
    assert other["run"]["config"]["threshold"] == "youden"


def test_the_folds_of_a_configuration(config, tmp_path):
    fold = config_of_fold(config, 2).split.to_dict()
    assert fold == {**config.split.to_dict(), "policy": "kfold", "fold": 2}
    assert "fold" not in config_of_fold(config, None).split
    config.split.policy = "official"
    assert config_of_fold(config, 2).split.policy == "official"
    assert count_folds(config) == 5
    for policy, becomes in (("auto", "kfold"), ("given", "given")):  # 'given': folds of the data
        config.split.policy, config.split.folds = policy, 4
        assert count_folds(config) == 4
        fold = config_of_fold(config, 3).split
        assert (fold.policy, fold.fold) == (becomes, 3)
    for policy, folds, message in (("image", 3, "has no folds"), ("kfold", 1, r"split\.folds=1")):
        config.split.policy, config.split.folds = policy, folds
        with pytest.raises(InputError, match=message):
            cross_validate(config, str(tmp_path / "none"))
    assert not (tmp_path / "none").exists()


def test_folds_do_not_go_into_the_work_directory_of_a_run(tiny_run):
    with pytest.raises(InputError, match="a run of its own"):
        cross_validate(tiny_run.config, str(tiny_run.workdir))


def test_folds_that_share_patients_are_not_pooled(tiny_run, tmp_path):
    table = tiny_run.table
    half = np.arange(len(table)) % 2 == 0
    metrics = write_folds_report(
        tmp_path, [table.select(half), table.select(~half)], ["a", "b <i>"], resamples=50
    )
    page = (tmp_path / "report.html").read_text()
    assert metrics["pooled"] is None and "not pooled" in page
    assert "b &lt;i&gt;" in page and "<i>" not in page
    assert "(mean ± SD)" in page and "pooled" not in folds_verdict(metrics)
