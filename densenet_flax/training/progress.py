"""Where a run stands, and what follows from its history: a checkpoint needs nothing else."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from densenet_flax.training.optimizer import plateau_scale
from densenet_flax.training.stage import Stage

SUMS = ("loss", "correct", "count")


@dataclasses.dataclass
class TrainProgress:
    """Where a run stands; kept with every checkpoint.

    Attributes:
      stage: index of the stage in progress.
      stage_step: steps of that stage that are done.
      step: steps of the whole run that are done.
      sums: loss, correct and count over the steps of the epoch in progress.
      history: a summary of each complete epoch of the run.
    """

    stage: int = 0
    stage_step: int = 0
    step: int = 0
    sums: list[float] = dataclasses.field(default_factory=lambda: [0.0] * len(SUMS))
    history: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    def losses(self, stage: Stage) -> list[float]:
        """Validation losses of the complete epochs of a stage."""
        return [e["validation_loss"] for e in self.of_stage(stage)]

    def of_stage(self, stage: Stage) -> list[dict[str, Any]]:
        """The complete epochs of a stage."""
        return [epoch for epoch in self.history if epoch["stage"] == stage.name]

    def is_over(self, stage: Stage, steps_per_epoch: int) -> bool:
        """Whether the stage has had its steps, or the patience for it is at its end."""
        if self.stage_step >= stage.steps:
            return True
        if not stage.patience or self.stage_step % steps_per_epoch:
            return False
        losses = self.losses(stage)
        return bool(losses) and len(losses) - 1 - int(np.argmin(losses)) >= stage.patience

    def rate_scale(self, stage: Stage) -> float:
        """Factor on the learning rate after the plateaus so far."""
        settings = stage.optimizer
        if settings.schedule != "plateau":
            return 1.0
        return plateau_scale(self.losses(stage), settings.plateau_factor, settings.plateau_patience)


def best_step(history: Sequence[Mapping[str, Any]]) -> int | None:
    """The step at the end of the epoch with the lowest validation loss, the first of equals."""
    return min(history, key=lambda e: e["validation_loss"])["step"] if history else None
