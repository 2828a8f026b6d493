"""A run that is killed and started again ends with the same bits as one that was not."""

import random
import signal

import pytest

from densenet_flax.storage.checkpoint import Checkpoints
from tests.experiments.killed_run import KillPoint, start
from tests.training.runs import assert_same

TRAINING = "densenet_flax.training"
# In the order of the run, which has two stages of twenty epochs of three steps. Calls are counted
# from each start on.
KILL_POINTS = [
    KillPoint(f"{TRAINING}.train_step.TrainStep.run_step", 1),  # before there is a checkpoint
    KillPoint(f"{TRAINING}.trainer.Trainer._validate", 1),
    KillPoint("os.rename", 1),  # Orbax names an item of the first checkpoint,
    KillPoint("os.rename", 4),  # or the whole checkpoint
    KillPoint("densenet_flax.storage.workdir.Workdir._append", 3),  # saved, but not in the log
    KillPoint(f"{TRAINING}.train_step.TrainStep.run_step", 2, after=True),  # within an epoch
    KillPoint("densenet_flax.storage.checkpoint.Checkpoints._write", 2, after=True),
    KillPoint("shutil.rmtree", 1),  # Orbax deletes an old checkpoint
    KillPoint(f"{TRAINING}.trainer.Trainer._restore_best", 1),  # between the stages
    KillPoint(f"{TRAINING}.train_step.TrainStep.run_step", 5),
    KillPoint(f"{TRAINING}.trainer.Trainer._restore_best", 1),  # after the last stage
    KillPoint("densenet_flax.evaluation.report.report.write_report", 1),
]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The cache folder and the work directory of a run that was never stopped."""
    folder = tmp_path_factory.mktemp("straight")
    finish(folder / "run", folder / "cache")
    return folder / "cache", folder / "run"


def finish(workdir, cache):
    process, _ = start(workdir, cache)
    process.join(300)
    assert process.exitcode == 0


def results(workdir):
    """All that a run leaves, except what the clock says."""
    checkpoints = Checkpoints(workdir / "checkpoints")
    restored = {step: checkpoints.restore(step) for step in checkpoints.steps}
    files = ("metrics.jsonl", "split.json", "report/predictions.csv")
    return restored, {name: (workdir / name).read_bytes() for name in files}


def assert_same_results(workdir, expected):
    (checkpoints, files), (expected_checkpoints, expected_files) = map(results, (workdir, expected))
    assert files == expected_files
    assert list(checkpoints) == list(expected_checkpoints)
    for step, checkpoint in checkpoints.items():
        assert checkpoint.meta == expected_checkpoints[step].meta
        assert_same(checkpoint.variables, expected_checkpoints[step].variables)
        assert_same(checkpoint.train, expected_checkpoints[step].train)


def test_a_run_killed_at_chosen_points_ends_with_the_same_bits(tmp_path, finished):
    cache, expected = finished
    for point in KILL_POINTS:
        process, _ = start(tmp_path / "run", cache, point)
        process.join(300)
        assert process.exitcode == -signal.SIGKILL, point
        log = tmp_path / "run" / "metrics.jsonl"
        with log.open("a") as file:
            file.write('{"kind": "st')  # as if it had been writing a line
    finish(tmp_path / "run", cache)
    assert_same_results(tmp_path / "run", expected)


def test_a_run_killed_at_any_time_ends_with_the_same_bits(tmp_path, finished):
    cache, expected = finished
    rng = random.Random(0)
    for _ in range(4):
        process, saved = start(tmp_path / "run", cache)
        assert saved.wait(300)
        process.join(rng.uniform(0, 0.1))  # an epoch with its checkpoint takes less than 0.05 s
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL, "the run has ended: make it longer"
    finish(tmp_path / "run", cache)
    assert_same_results(tmp_path / "run", expected)
