"""A run that was stopped and resumed ends with the same bits as one that was not."""

import dataclasses
import os
import shutil
import signal

import pytest

from densenet_flax.common.errors import InputError, Stopped
from densenet_flax.training.optimizer import OptimizerSettings
from densenet_flax.training.stage import Loss
from tests.training.runs import RECIPE, Run, assert_same, stage


def stop_at(run, step):
    """Sends this process SIGTERM at a step of the run."""
    should_stop, sent = run.trainer._should_stop, []

    def send(now):
        if now >= step and not sent:
            sent.append(now)
            os.kill(os.getpid(), signal.SIGTERM)
        return should_stop(now)

    run.trainer._should_stop = send


# In the middle of an epoch, at its end, and on both sides of a stage's end.
@pytest.mark.parametrize("step", [1, 3, 6, 7, 11])
def test_a_stopped_run_resumes_to_the_bit(
    straight, tmp_path, tiny, tiny_variables, dataset, split, step
):
    run = Run(tmp_path, tiny, dataset, split)
    stop_at(run, step)
    with pytest.raises(Stopped, match=r"SIGTERM.*saved"):
        run(tiny_variables)
    assert run.checkpoints.steps[-1] in (step, step + 1)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    again = Run(tmp_path, tiny, dataset, split)
    assert_same(again(tiny_variables), straight.result)
    assert_same(again.last_checkpoint.train, straight.last_checkpoint.train)
    assert again.last_checkpoint.meta == straight.last_checkpoint.meta
    assert again.checkpoints.steps == straight.checkpoints.steps
    assert run.lines + again.lines == straight.lines


@pytest.mark.parametrize(
    "options",
    [
        {"ema_decay": 0.9},
        {
            "stages": (
                stage("one", "conv5", settings=OptimizerSettings(1e-3, accumulate=2)),
                stage("two", "conv5_block2", keep_moments=True, restore_best=True),
                stage(
                    "three",
                    "pool4",
                    keep_moments=True,
                    settings=OptimizerSettings(1e-2, schedule="plateau", plateau_patience=1),
                ),
            ),
            "ema_decay": 0.5,
        },
        {
            "stages": (
                stage(
                    "s",
                    "conv5",
                    epochs=4,
                    settings=OptimizerSettings(
                        1e-3, schedule="cosine", warmup=2, name="adamw", weight_decay=0.1
                    ),
                ),
            ),
            "loss": Loss(label_smoothing=0.1, class_weights=(0.7, 1.3)),
        },
    ],
)
def test_all_options_resume_to_the_bit(tmp_path, tiny, tiny_variables, dataset, split, options):
    straight = Run(tmp_path / "a", tiny, dataset, split, **options)
    expected = straight(tiny_variables)
    stops = 0
    for _ in range(8):  # stopped after every few steps until it is done
        run = Run(tmp_path / "b", tiny, dataset, split, **options)
        stop_at(run, 4 * (stops + 1))
        try:
            result = run(tiny_variables)
            break
        except Stopped:
            stops += 1
    assert stops > 1
    assert_same(result, expected)
    assert_same(run.last_checkpoint.train, straight.last_checkpoint.train)
    assert run.last_checkpoint.meta == straight.last_checkpoint.meta


def test_a_finished_run_with_more_epochs_is_the_longer_run_to_the_bit(
    straight, tmp_path, tiny, tiny_variables, dataset, split
):
    head, tail = RECIPE
    short = Run(tmp_path, tiny, dataset, split, (head, dataclasses.replace(tail, steps=3)))
    short(tiny_variables)
    longer = Run(tmp_path, tiny, dataset, split)
    assert_same(longer(tiny_variables), straight.result)
    assert_same(longer.last_checkpoint.train, straight.last_checkpoint.train)
    assert longer.last_checkpoint.meta == straight.last_checkpoint.meta
    assert short.lines + longer.lines == straight.lines


def test_a_run_without_steps_is_saved_as_it_starts_and_can_go_on(
    straight, tmp_path, tiny, tiny_variables, dataset, split
):
    none = tuple(dataclasses.replace(stage, steps=0) for stage in RECIPE)
    run = Run(tmp_path, tiny, dataset, split, none)
    assert_same(run(tiny_variables), tiny_variables)
    assert run.checkpoints.steps == [0] and not run.lines
    assert_same(run.last_checkpoint.variables, tiny_variables)
    again = Run(tmp_path, tiny, dataset, split)
    assert_same(again(tiny_variables), straight.result)
    assert again.lines == straight.lines


def test_a_checkpoint_without_the_optimizer_cannot_go_on(
    tmp_path, tiny, tiny_variables, dataset, split
):
    run = Run(tmp_path, tiny, dataset, split)
    stop_at(run, 1)
    with pytest.raises(Stopped):
        run(tiny_variables)
    shutil.rmtree(next(tmp_path.glob("checkpoints/*/train")))
    again = Run(tmp_path, tiny, dataset, split)
    with pytest.raises(InputError, match=r"'train' is missing.*--mode=evaluate"):
        again(tiny_variables)
