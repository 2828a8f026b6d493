"""The metrics of the steps of an epoch, from the devices to the log."""

import dataclasses
from collections.abc import Callable, Mapping

import jax
import numpy as np
from jaxtyping import Int, Shaped
from tqdm import tqdm

from densenet_flax.common.errors import InputError
from densenet_flax.common.trees import JsonDict
from densenet_flax.training.progress import TrainProgress
from densenet_flax.training.train_step import TrainStep

# Steps whose metrics are not read yet: their inputs may still be in the devices' memory.
_MAX_WAITING = 16


@dataclasses.dataclass
class StepMetrics:
    """Metrics of steps that have been started, until `flush` waits for their values.

    Attributes:
      progress: of the run; `flush` counts the steps in it.
      files: the file of each image, for the message of a step that fails.
      log_every: steps between two lines for `write_metrics`.
      bar: shows loss and accuracy of the epoch.
    """

    step: TrainStep
    progress: TrainProgress
    files: Shaped[np.ndarray, "N"]
    log_every: int
    write_metrics: Callable[[JsonDict], None]
    bar: tqdm

    def __post_init__(self):
        self._waiting: list[tuple[Mapping[str, jax.Array], Int[np.ndarray, B]]] = []

    @property
    def last_step(self) -> int:
        """The number of the last step that has been started."""
        return self.progress.step + len(self._waiting)

    def add(self, metrics: Mapping[str, jax.Array], ids: Int[np.ndarray, "B"]) -> None:
        """Adds the metrics of a step that has been started, on these images."""
        self._waiting.append((metrics, ids))
        self.bar.update(len(ids))
        # Reading a value waits for its step, so it is done only now and then, for several steps
        # that are followed by two others: the devices always have the next step to begin with.
        if len(self._waiting) >= min(self.log_every, _MAX_WAITING) + 2:
            self.flush(keep=2)

    def flush(self, keep: int = 0) -> None:
        """Waits for all steps but the last `keep` and counts them.

        Raises:
          InputError: a loss is not finite.
        """
        end = len(self._waiting) - keep
        done, self._waiting = self._waiting[:end], self._waiting[end:]
        for metrics, (_, ids) in zip(jax.device_get([m for m, _ in done]), done, strict=True):
            values = {name: float(value) for name, value in metrics.items()}
            if not np.isfinite(values["loss"]):
                stage = self.step.stage
                raise InputError(
                    f"stage {stage.name!r}: the loss became {values['loss']} at step "
                    f"{self.progress.step + 1}; the checkpoint before is kept; try a learning "
                    f"rate below {stage.optimizer.learning_rate:g}; its images are "
                    f"{', '.join(self.files[ids].tolist())}"
                )
            # The rate of this step, which the progress has not counted yet.
            rate = current_rate(self.step, self.progress, self.progress.stage_step)
            self.progress.add_step(values)
            if self.progress.step % self.log_every == 0:
                line = {
                    "kind": "step",
                    "stage": self.step.stage.name,
                    "step": self.progress.step,
                    "loss": values["loss"] / values["count"],
                    "accuracy": values["correct"] / values["count"],
                    "learning_rate": rate,
                    "gradient_norm": values["gradient_norm"],
                    "update_norm": values["update_norm"],
                }
                self.write_metrics(line)
        loss, correct, count = self.progress.sums
        self.bar.set_postfix_str(f"loss {loss / count:.3f}, accuracy {correct / count:.3f}")


def current_rate(step: TrainStep, progress: TrainProgress, stage_step: int) -> float:
    """The learning rate of a step of the current stage, plateaus included."""
    return step.learning_rate(stage_step) * progress.rate_scale(step.stage)
