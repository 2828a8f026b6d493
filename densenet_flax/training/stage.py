"""A stage of training, and the loss: what a run is made of, as plain values."""

import dataclasses

from densenet_flax.models.frontier import Frontier
from densenet_flax.training.optimizer import OptimizerSettings


@dataclasses.dataclass(frozen=True)
class Stage:
    """A frontier with its own length and optimizer.

    Attributes:
      name: what messages call it.
      frontier: what trains.
      steps: its length.
      optimizer: how it trains.
      keep_moments: start with the Adam moments of what the stage before trained.
      patience: stop after so many epochs without a lower validation loss; 0 for never.
      restore_best: hand the epoch with the lowest validation loss on, not the last one.
    """

    name: str
    frontier: Frontier
    steps: int
    optimizer: OptimizerSettings = dataclasses.field(default_factory=OptimizerSettings)
    keep_moments: bool = False
    patience: int = 0
    restore_best: bool = False


@dataclasses.dataclass(frozen=True)
class Loss:
    """Categorical cross-entropy and its options; the defaults are the recipe's.

    Attributes:
      label_smoothing: share of a label that is spread over all classes.
      class_weights: factor on the loss of each class's examples, as Keras's `class_weight`: the
        weighted losses are summed and divided by the number of examples. Empty: all 1.
      dropout: whether the head's dropout is on.
    """

    label_smoothing: float = 0.0
    class_weights: tuple[float, ...] = ()
    dropout: bool = True
