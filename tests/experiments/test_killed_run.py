"""A run that is killed again and again ends with the bits of one that was not."""

import random
import time

import jax
import numpy as np

from densenet_flax.storage.checkpoint import Checkpoints
from tests.helpers.program import run, start

KILLS = 20
# So long that the run does not end before the last kill.
OPTIONS = [
    "--config.stages.head.duration=60 epochs",
    "--config.stages.finetune.duration=60 epochs",
    "--config.stages.finetune.restore_best=True",
    "--config.ema_decay=0.9",
]
# What to wait for, and the most seconds to wait after it. At first steps are compiled, and later an
# epoch and its checkpoint take less than 50 ms.
MOMENTS = [("stage", 0.8), ("validation loss", 0.05), ("validation loss", 0.05)]


def test_killed_at_any_moment_a_run_ends_with_the_same_bits(tmp_path):
    """SIGKILL between steps, in a save, in the validation and before the first step."""
    straight = run(tmp_path / "straight", tmp_path / "cache", *OPTIONS)
    assert straight.returncode == 0, straight.stderr
    rng = random.Random(0)
    for _ in range(KILLS):
        text, seconds = rng.choice(MOMENTS)
        process = start(tmp_path / "killed", tmp_path / "cache", *OPTIONS)
        for line in process.stderr:
            assert "report:" not in line, "the run has ended: make it longer"
            if text in line:
                break
        time.sleep(rng.uniform(0, seconds))
        process.kill()
        process.communicate()
    last = run(tmp_path / "killed", tmp_path / "cache", *OPTIONS)
    assert last.returncode == 0, last.stderr

    for name in ("metrics.jsonl", "split.json", "report/predictions.csv"):
        expected, actual = (tmp_path / folder / name for folder in ("straight", "killed"))
        assert actual.read_bytes() == expected.read_bytes()
    expected, actual = (
        Checkpoints(tmp_path / folder / "checkpoints") for folder in ("straight", "killed")
    )
    assert actual.steps == expected.steps
    for step in expected.steps:
        expected_checkpoint, checkpoint = expected.restore(step), actual.restore(step)
        assert checkpoint.meta == expected_checkpoint.meta
        assert_same_tree(checkpoint.variables, expected_checkpoint.variables)
        assert_same_tree(checkpoint.train, expected_checkpoint.train)


def assert_same_tree(actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    assert all(map(np.array_equal, jax.tree.leaves(actual), jax.tree.leaves(expected)))
