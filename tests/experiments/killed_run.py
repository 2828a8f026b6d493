"""A small run in a process of its own, which can kill itself at a chosen point."""

import os
import pkgutil
import signal
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import NamedTuple

import jax

from densenet_flax.common.host_memory import CHECKPOINT_WRITTEN
from densenet_flax.experiments.run import train_and_evaluate
from tests.configs import tiny
from tests.helpers.program import fork_context


class KillPoint(NamedTuple):
    """SIGKILL right before, or after, a call of a function since the start of the process."""

    function: str  # such as 'package.module.Class.method'
    call: int
    after: bool = False


def start(workdir, cache_dir, kill_point=None):
    """Starts or resumes the run in a process; also returns the event of its first checkpoint."""
    context = fork_context()
    saved = context.Event()
    process = context.Process(target=_run, args=(workdir, cache_dir, kill_point, saved))
    process.start()
    return process, saved


def _run(workdir: Path, cache_dir: Path, kill_point: KillPoint | None, saved: Event) -> None:
    jax.monitoring.register_event_listener(
        lambda name, **_: saved.set() if name == CHECKPOINT_WRITTEN else None
    )
    config = tiny.get_config()
    config.cache_dir = str(cache_dir)
    config.ema_decay = 0.9
    config.stages.head.duration = config.stages.finetune.duration = "20 epochs"
    config.stages.finetune.restore_best = True
    if kill_point:
        _arm(kill_point)
    train_and_evaluate(config, str(workdir))


def _arm(point: KillPoint) -> None:
    owner, _, name = point.function.rpartition(".")
    owner = pkgutil.resolve_name(owner)
    function, calls = getattr(owner, name), 0

    def wrapper(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == point.call and not point.after:
            os.kill(os.getpid(), signal.SIGKILL)
        result = function(*args, **kwargs)
        if calls == point.call:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, name, wrapper)
