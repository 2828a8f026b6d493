import json
from dataclasses import replace

import numpy as np
import pytest

from densenet_flax.common.errors import InputError
from densenet_flax.evaluation import cross_validation_summary, evaluate, pool
from densenet_flax.evaluation.metrics.binary import METRICS
from densenet_flax.evaluation.metrics.bootstrap import Bootstrap
from densenet_flax.evaluation.metrics.folds import summary_table
from densenet_flax.evaluation.metrics.intervals import intervals


@pytest.fixture
def folds(random_table):
    whole = random_table(0)
    number = np.char.replace(whole.patient, "p", "").astype(int) // 4
    return whole, [whole.select(number == i) for i in range(3)]


def test_pooled_folds_are_the_whole(folds):
    whole, parts = folds
    pooled = pool(parts)
    order = np.argsort(pooled.file)
    assert pooled.select(order).file.tolist() == sorted(whole.file.tolist())
    assert evaluate(pooled)["by_patient"] == evaluate(whole)["by_patient"]
    assert pooled.threshold == whole.threshold and pooled.calibrated is None
    assert pool(parts, threshold=0.3).threshold == 0.3
    done = [replace(part, calibrated=part.probability / 2) for part in parts]
    assert np.array_equal(pool(done).calibrated, pool(done).probability / 2)
    assert pool([done[0], *parts[1:]]).calibrated is None


def test_summary(folds):
    whole, parts = folds
    summary = cross_validation_summary(parts, resamples=200)
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary
    accuracies = [evaluate(part)["image"]["accuracy"] for part in parts]
    assert [row["image"]["accuracy"] for row in summary["folds"]] == accuracies
    mean = summary["mean"]["image"]["accuracy"]
    assert mean["mean"] == pytest.approx(np.mean(accuracies)) and mean["folds"] == 3
    assert mean["sd"] == pytest.approx(np.std(accuracies, ddof=1))
    points = evaluate(whole)
    for name in METRICS:
        assert summary["pooled"]["image"][name] == pytest.approx(points["image"][name])
    assert summary["pooled"]["patient"]["n"] == 12
    pooled = pool(parts)
    spans = intervals(pooled, Bootstrap(3000))["image"]["accuracy"]
    summary = cross_validation_summary(parts, resamples=3000)
    interval = summary["pooled"]["intervals"]["image"]["accuracy"]
    assert interval["low"] == pytest.approx(spans["low"], abs=0.01)
    assert interval["high"] == pytest.approx(spans["high"], abs=0.01)
    text = summary_table(summary)
    assert "fold 1" in text and "mean ± SD" in text and f"{mean['mean']:.3f}" in text


def test_each_fold_keeps_its_threshold(folds):
    _, parts = folds
    parts = [replace(part, threshold=t) for part, t in zip(parts, (0.3, 0.5, 0.7), strict=True)]
    right = sum(int(np.sum(part.prediction == part.label)) for part in parts)
    summary = cross_validation_summary(parts, resamples=50)
    cells = summary["pooled"]["image"]["confusion"]
    assert cells["tn"] + cells["tp"] == right
    with pytest.raises(InputError, match=r"thresholds go from 0\.3 to 0\.7"):
        pool(parts)
    assert len(pool(parts, threshold=0.5)) == 200


def test_overlapping_folds_are_not_pooled(folds):
    _, parts = folds
    summary = cross_validation_summary([parts[0], parts[0]], resamples=50)
    assert summary["pooled"] is None
    assert "images are in more than one fold" in summary["pooled_undefined"]
    assert summary["mean"]["image"]["accuracy"]["sd"] == 0
    assert "not pooled" in summary_table(summary)
    renamed = replace(parts[0], file=np.char.add("other_", parts[0].file))
    with pytest.raises(InputError, match="patients are in more than one fold"):
        pool([parts[0], renamed])


def test_a_fold_without_a_metric_is_left_out_of_its_mean(folds):
    _, parts = folds
    one_class = parts[0].select(parts[0].label == 1)
    summary = cross_validation_summary([one_class, parts[1]], resamples=50)
    mean = summary["mean"]["image"]["roc_auc"]
    assert mean["folds"] == 1 and mean["sd"] is None
    assert mean["mean"] == evaluate(parts[1])["image"]["roc_auc"]
    assert "–" in summary_table(summary)


def test_no_folds_and_other_classes_are_rejected(folds):
    _, parts = folds
    for function in (pool, cross_validation_summary):
        with pytest.raises(InputError, match=r"none|no folds"):
            function([])
        with pytest.raises(InputError, match="other classes"):
            function([parts[0], replace(parts[1], class_names=("a", "b"))])
