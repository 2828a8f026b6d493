"""When the values of steps are read."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tqdm import tqdm

from densenet_flax.common.errors import InputError
from densenet_flax.training.progress import TrainProgress
from densenet_flax.training.step_metrics import StepMetrics


def make_metrics(log_every):
    step = types.SimpleNamespace(
        stage=types.SimpleNamespace(
            name="s",
            optimizer=types.SimpleNamespace(schedule="constant", learning_rate=0.1),
        ),
        learning_rate=lambda stage_step: 0.1,
    )
    lines = []
    files = np.array(["a.png"])
    bar = tqdm(disable=True)
    return StepMetrics(step, TrainProgress(), files, log_every, lines.append, bar), lines


def values(loss=1.0):
    names = ("loss", "correct", "count", "gradient_norm", "update_norm")
    return {name: jnp.float32(loss if name == "loss" else 1) for name in names}


@pytest.mark.parametrize("log_every", [1, 3, 1000])
def test_the_last_steps_are_not_waited_for(log_every, monkeypatch):
    """Two that follow keep the devices busy, and not many are in memory at a time."""
    metrics, lines = make_metrics(log_every)
    reads, get = [], jax.device_get
    monkeypatch.setattr(jax, "device_get", lambda steps: reads.append(len(steps)) or get(steps))
    for step in range(1, 41):
        metrics.add(values(), np.array([0]))
        assert metrics.last_step == step
        waiting = step - metrics.progress.step
        assert waiting >= min(step, 2) and waiting <= min(log_every, 16) + 2
    metrics.flush()
    assert metrics.progress.step == 40 and sum(reads) == 40
    assert [line["step"] for line in lines] == list(range(log_every, 41, log_every))


def test_a_loss_that_is_not_finite_names_its_step():
    metrics, _ = make_metrics(2)
    for step in range(3):
        metrics.add(values(np.nan if step == 2 else 1), np.array([0]))
    with pytest.raises(InputError, match="nan at step 3"):
        metrics.flush()
    assert metrics.progress.step == 2
