"""How far a run is, and what follows from its history: a checkpoint needs nothing else."""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from densenet_flax.common.trees import JsonDict
from densenet_flax.training.monitor import monitored_values
from densenet_flax.training.optimizer import plateau_scale
from densenet_flax.training.stage import Stage

SUMS = ("loss", "correct", "count")


@dataclasses.dataclass
class TrainProgress:
    """How far a run is; saved with every checkpoint.

    Attributes:
      stage: index of the current stage.
      stage_step, step: steps of that stage and of the whole run that are done.
      sums: loss, correct and count over the steps of the current epoch.
      history: a summary of each complete epoch of the run.
    """

    stage: int = 0
    stage_step: int = 0
    step: int = 0
    sums: list[float] = dataclasses.field(default_factory=lambda: [0.0] * len(SUMS))
    history: list[JsonDict] = dataclasses.field(default_factory=list)

    def add_step(self, metrics: Mapping[str, float]) -> None:
        """Counts a step, given its SUMS."""
        self.stage_step += 1
        self.step += 1
        self.sums = [total + metrics[name] for total, name in zip(self.sums, SUMS, strict=True)]

    def end_epoch(self, summary: JsonDict) -> None:
        """Adds the summary of the current epoch to the history."""
        self.history.append(summary)
        self.sums = [0.0] * len(SUMS)

    def end_stage(self) -> None:
        """Moves on to the next stage."""
        self.stage, self.stage_step = self.stage + 1, 0

    def stage_history(self, stage: Stage) -> list[JsonDict]:
        """The complete epochs of a stage."""
        return [epoch for epoch in self.history if epoch["stage"] == stage.name]

    def is_over(self, stage: Stage, steps_per_epoch: int) -> bool:
        """Whether the current stage has made its steps, or its patience is exhausted."""
        if self.stage_step >= stage.steps:
            return True
        if not stage.patience or self.stage_step % steps_per_epoch:
            return False
        values = monitored_values(self.stage_history(stage), stage.monitor)
        return bool(values) and len(values) - 1 - int(np.argmin(values)) >= stage.patience

    def rate_scale(self, stage: Stage) -> float:
        """The factor on a stage's learning rate after the plateaus so far."""
        settings = stage.optimizer
        if settings.schedule != "plateau":
            return 1.0
        values = monitored_values(self.stage_history(stage), stage.monitor)
        return plateau_scale(values, settings.plateau_factor, settings.plateau_patience)


def best_steps(
    history: Sequence[Mapping[str, Any]], steps: Collection[int], monitor: str = "loss"
) -> list[int]:
    """The best step of some epochs, then the others whose checkpoints are kept, best first."""
    values = monitored_values(history, monitor)
    ordered = [history[i]["step"] for i in np.argsort(values, kind="stable")]
    return [step for step in ordered if step in steps or step == ordered[0]]


def best_step(history: Sequence[Mapping[str, Any]], monitor: str = "loss") -> int | None:
    """The step at the end of the epoch with the best validation result, the first if several."""
    return next(iter(best_steps(history, (), monitor)), None)
