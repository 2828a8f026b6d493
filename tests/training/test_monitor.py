"""The validation result that a run goes by."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from densenet_flax.inference.results import to_probabilities
from densenet_flax.training.monitor import validation_auc
from densenet_flax.training.optimizer import OptimizerSettings
from densenet_flax.training.progress import TrainProgress, best_step, best_steps
from tests.training.runs import stage

# The loss is lowest in the second epoch, the AUC is highest in the third and the fifth.
_LOSSES = [0.9, 0.4, 0.5, 0.7, 0.8, 0.8]
_AUCS = [0.6, 0.7, 0.9, 0.8, 0.9, None]
HISTORY = [
    {"stage": "a", "step": 3 * i + 3, "validation_loss": loss, "validation_auc": auc}
    for i, (loss, auc) in enumerate(zip(_LOSSES, _AUCS, strict=True))
]


@pytest.mark.parametrize("classes", [2, 3])
def test_the_auc_is_that_of_scikit_learn(classes):
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.arange(60) % classes)
    logits = rng.normal(size=(60, classes)).round(1).astype(np.float32)  # with ties
    logits[np.arange(60), labels] += 0.8
    probability = to_probabilities(logits)
    expected = roc_auc_score(
        labels, probability[:, 1] if classes == 2 else probability, multi_class="ovr"
    )
    assert validation_auc(logits, labels) == pytest.approx(expected)
    assert np.isnan(validation_auc(logits, np.zeros(60, int)))
    assert np.isnan(validation_auc(np.where(logits > 1, np.nan, logits), labels))


def test_best_epoch_early_stopping_and_plateau_go_by_the_same_result():
    assert [best_step(HISTORY, monitor) for monitor in ("loss", "auc")] == [6, 9]  # the first
    assert best_steps(HISTORY, {18, 12, 15}, "auc") == [9, 15, 12, 18]
    assert best_step([], "auc") is None
    settings = OptimizerSettings(1.0, schedule="plateau", plateau_patience=1)
    scales = {}
    for monitor, over in (("loss", 4), ("auc", 5)):  # two epochs after the best
        patient = stage("a", "head", 9, settings, patience=2, monitor=monitor)
        progress = [TrainProgress(stage_step=3 * n, history=HISTORY[:n]) for n in range(7)]
        assert [p.is_over(patient, 3) for p in progress] == [n >= over for n in range(7)]
        scales[monitor] = [p.rate_scale(patient) for p in progress]
    assert scales["loss"] == [1, 1, 1, 0.5, 0.25, 0.125, 0.0625]
    assert scales["auc"] == [1, 1, 1, 1, 0.5, 0.25, 0.125]
