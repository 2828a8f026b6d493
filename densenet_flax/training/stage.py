"""What a run is made of: stages, and the loss that they share."""

import dataclasses

from densenet_flax.models.frontier import Frontier
from densenet_flax.training.optimizer import OptimizerSettings


@dataclasses.dataclass(frozen=True)
class Stage:
    """A frontier with its own length and optimizer.

    Attributes:
      name: as in `config.stages`.
      keep_moments: start with the optimizer's moments of what trained in the stage before.
      patience: stop after so many epochs without a better validation result; 0 for never.
      restore_best: end with the epoch of the best validation result, not with the last one.
      monitor: which result that is, and that of 'plateau', one of `monitor.MONITORS`.
    """

    name: str
    frontier: Frontier
    steps: int
    optimizer: OptimizerSettings = dataclasses.field(default_factory=OptimizerSettings)
    keep_moments: bool = False
    patience: int = 0
    restore_best: bool = False
    monitor: str = "loss"


@dataclasses.dataclass(frozen=True)
class Loss:
    """Categorical cross-entropy and its options; the defaults are those of Keras.

    Attributes:
      label_smoothing: share of a label that is divided among all classes.
      class_weights: factor on the loss of each class's examples, as Keras's `class_weight`: the
        weighted losses are summed and divided by the number of examples. Empty: all 1.
      dropout: whether the head's dropout is on.
    """

    label_smoothing: float = 0.0
    class_weights: tuple[float, ...] = ()
    dropout: bool = True
