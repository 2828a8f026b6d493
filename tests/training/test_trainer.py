"""A run from start to end, its stages, and the errors that end it."""

import dataclasses
import logging
import shutil

import jax
import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from densenet_flax.common.errors import InputError
from densenet_flax.models.preprocessing import preprocess_input
from densenet_flax.storage.checkpoint import Checkpoints
from densenet_flax.training.optimizer import OptimizerSettings
from densenet_flax.training.progress import best_step
from tests.training.runs import Run, assert_same, stage


def test_a_run_from_start_to_end(straight, split):
    assert len(split.train) == 30  # three steps an epoch, as the tests here count
    assert straight.epochs("stage") == ["head", "head", "tail", "tail"]
    assert straight.progress.step == 12
    steps = [line["step"] for line in straight.lines if line["kind"] == "step"]
    assert steps == [2, 4, 6, 8, 10, 12]
    losses = straight.epochs("train_loss")
    assert np.isfinite(losses).all() and losses[-1] != losses[-2]
    assert all(line["seconds"] > 0 for line in straight.timing)
    history = straight.progress.history
    tail = [epoch for epoch in history if epoch["stage"] == "tail"]
    assert set(straight.checkpoints.steps) == {12, best_step(history), best_step(tail)}


def test_metrics_are_means_over_examples(straight, tiny, dataset, split):
    """The last epoch's validation, computed in one batch."""
    rows = split.validation
    logits = np.asarray(tiny.apply(straight.result, preprocess_input(dataset.images[rows])))
    labels = dataset.labels[rows]
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    last = straight.progress.history[-1]
    assert last["validation_loss"] == pytest.approx(
        float(-log_p[np.arange(len(rows)), labels].mean()), rel=1e-4
    )
    assert last["validation_accuracy"] == pytest.approx((logits.argmax(-1) == labels).mean())
    assert last["validation_auc"] == pytest.approx(roc_auc_score(labels, log_p[:, 1]))


def test_each_step_logs_its_norms(tmp_path, tiny, tiny_variables, dataset, split):
    """Plain gradient descent moves by the rate times the gradient, which clipping bounds."""
    for clip_norm in (0.0, 1e-3):
        sgd = OptimizerSettings(0.1, name="sgd", clip_norm=clip_norm)
        stages = (stage("a", "conv5", 1, sgd),)
        run = Run(tmp_path / str(clip_norm), tiny, dataset, split, stages, log_every=1)
        run(tiny_variables)
        lines = [line for line in run.lines if line["kind"] == "step"]
        for line in lines:
            norm = 1e-3 if clip_norm else line["gradient_norm"]  # logged before it is clipped
            assert line["update_norm"] == pytest.approx(0.1 * norm, rel=1e-4)
        assert lines[0]["gradient_norm"] > 0.01


def test_a_finished_run_has_nothing_left_to_do(straight, tiny_variables):
    before = list(straight.lines)
    again = straight(tiny_variables)
    assert_same(again, straight.result)
    assert straight.lines == before


@pytest.mark.parametrize(("keep", "in_both"), [(True, 6 + 3), (False, 3)])
def test_later_stages_keep_the_moments_if_asked(
    tmp_path, tiny, tiny_variables, dataset, split, keep, in_both
):
    stages = (stage("a", "conv5_block2"), stage("b", "conv5", epochs=1, keep_moments=keep))
    run = Run(tmp_path, tiny, dataset, split, stages)
    run(tiny_variables)
    updates = {n: int(v) for n, v in run.last_checkpoint.train.items() if ".steps[" in n}
    assert {count for name, count in updates.items() if "conv5_block2" in name} == {in_both}
    assert {count for name, count in updates.items() if "conv5_block1" in name} == {3}


@pytest.mark.parametrize("monitor", ["loss", "auc"])
def test_early_stopping_restores_the_best_epoch(
    tmp_path, tiny, tiny_variables, dataset, split, monitor
):
    wild = OptimizerSettings(0.5, name="sgd")  # far too fast: the first epochs stay the best
    stages = (
        stage("a", "head", 10, wild, patience=2, restore_best=True, monitor=monitor),
        stage("b", "head", epochs=1, settings=OptimizerSettings(1e-9), monitor=monitor),
    )
    run = Run(tmp_path, tiny, dataset, split, stages)
    run(tiny_variables)
    *epochs, after = run.progress.history
    values = [epoch[f"validation_{monitor}"] for epoch in epochs]
    best = int(np.argmin(values) if monitor == "loss" else np.argmax(values))
    assert len(values) < 10 and len(values) - 1 - best == 2
    losses = [epoch["validation_loss"] for epoch in epochs]
    assert after["validation_loss"] == pytest.approx(losses[best], rel=1e-3)
    assert losses[best] != losses[-1] and epochs[best]["step"] in run.checkpoints.steps


def test_a_plateau_lowers_the_rate(tmp_path, tiny, tiny_variables, dataset, split):
    settings = OptimizerSettings(1e-30, schedule="plateau", plateau_patience=1)
    run = Run(tmp_path, tiny, dataset, split, (stage("a", "head", 4, settings),))
    run(tiny_variables)
    np.testing.assert_allclose(run.epochs("learning_rate"), [1e-30, 1e-30, 5e-31, 2.5e-31], 1e-6)


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, tiny, tiny_variables, dataset, split):
    stages = (
        stage("fine", "head", 1),
        stage("bad", "conv5", 2, OptimizerSettings(1e30, name="sgd")),
    )
    run = Run(tmp_path, tiny, dataset, split, stages)
    with pytest.raises(InputError, match=r"'bad': the loss became .* at step [45].*tile-\d+\.png"):
        run(tiny_variables)
    assert run.checkpoints.steps == [3]
    good = run.checkpoints.restore(3)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(good.variables))


def test_a_stage_may_end_in_the_middle_of_an_epoch(tmp_path, tiny, tiny_variables, dataset, split):
    stages = (dataclasses.replace(stage("a", "head"), steps=4),)
    run = Run(tmp_path, tiny, dataset, split, stages)
    run(tiny_variables)
    assert [epoch["step"] for epoch in run.progress.history] == [3, 4]


def test_stages_log_what_they_train(tmp_path, tiny, tiny_variables, dataset, split, caplog):
    with caplog.at_level(logging.INFO, logger="absl"):
        Run(tmp_path, tiny, dataset, split, (stage("a", "pool4_conv", 1),))(tiny_variables)
    assert "stage 1/1 a: frozen" in caplog.text and "from pool4_conv (Keras layer" in caplog.text
    assert "prefix cache: 40 images at pool4" in caplog.text


def test_events_of_a_run_are_recorded(tmp_path, tiny, tiny_variables, dataset, split):
    """For `host_memory`, which returns memory between the phases of a run."""
    events = []
    jax.monitoring.register_event_listener(listener := lambda name, **_: events.append(name))
    try:
        Run(tmp_path, tiny, dataset, split)(tiny_variables)
    finally:
        jax.monitoring.unregister_event_listener(listener)
    ours = [name.removeprefix("/densenet_flax/") for name in events if "densenet_flax" in name]
    assert ours[0] == "stage_begins" and ours.count("stage_begins") == 2
    assert ours.count("checkpoint_written") >= 2  # of four, waiting ones make room for the next


@pytest.mark.parametrize("when", ["before", "while writing"])
def test_a_full_disk_keeps_the_old_checkpoint(
    tmp_path, tiny, tiny_variables, dataset, split, monkeypatch, when
):
    run = Run(tmp_path, tiny, dataset, split)
    real_save, real_usage = run.checkpoints._manager.save, shutil.disk_usage

    def save(step, **kwargs):
        if step > 3:
            raise OSError(28, "No space left on device")
        return real_save(step, **kwargs)

    def usage(path):
        full = len(run.checkpoints._manager.all_steps()) > 0
        return real_usage(path)._replace(free=1_000_000) if full else real_usage(path)

    if when == "before":
        monkeypatch.setattr(shutil, "disk_usage", usage)
    else:
        monkeypatch.setattr(run.checkpoints._manager, "save", save)
    reason = "needs 2 MB, 1 are free" if when == "before" else "No space left"
    with pytest.raises(InputError, match=rf"checkpoint (6|9|12) could not be written.*{reason}"):
        run(tiny_variables)
    monkeypatch.undo()
    assert Checkpoints(tmp_path / "checkpoints").steps == [3]
    again = Run(tmp_path, tiny, dataset, split)
    again(tiny_variables)
    assert again.progress.step == 12
