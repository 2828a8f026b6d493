"""A stage's optimizer as one optax transformation, with Keras's defaults."""

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import optax

from densenet_flax.common.errors import InputError
from densenet_flax.common.settings import Settings, at_least, choice, setting
from densenet_flax.common.trees import PyTree
from densenet_flax.training.keras_adam import scale_by_keras_adam
from densenet_flax.training.raveled import Raveled

OPTIMIZERS = ("adam", "adamw", "sgd")
SCHEDULES = ("constant", "cosine", "plateau")

_LONGEST = 10**9
_DURATION = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(steps?|examples?|epochs?|%)\s*")


@dataclasses.dataclass(frozen=True)
class OptimizerSettings(Settings):
    """How a stage trains. The defaults are the recipe's.

    Attributes:
      learning_rate: of the last unit, after warm-up.
      name: 'adam', 'adamw' or 'sgd', each as Keras computes it.
      schedule: 'constant'; 'cosine', down to 0 at the end of the stage; or 'plateau', times
        `plateau_factor` after `plateau_patience` epochs without a better validation result.
      warmup: steps over which the rate rises linearly from 0.
      weight_decay: decoupled from the gradient, on kernels only.
      momentum: of sgd.
      clip_norm: upper bound of the gradient's norm over all that trains; 0 for none.
      layer_decay: factor on the rate for each unit further from the head; 1 for none.
      accumulate: steps whose gradients make one update.
      plateau_factor: of 'plateau'.
      plateau_patience: of 'plateau', in epochs.
    """

    learning_rate: float = setting(
        1e-3, "a finite number above 0", lambda rate: 0 < rate < math.inf
    )
    name: str = "adam"
    schedule: str = choice("constant", SCHEDULES)
    warmup: int = 0
    weight_decay: float = at_least(0, default=0.0, expected="a number of 0 or more")
    momentum: float = setting(0.0, "a number from 0 to below 1", lambda share: 0 <= share < 1)
    clip_norm: float = at_least(0, default=0.0, expected="a number of 0 or more")
    layer_decay: float = setting(1.0, "a number above 0 and up to 1", lambda f: 0 < f <= 1)
    accumulate: int = at_least(1, default=1)
    plateau_factor: float = setting(0.5, "a number between 0 and 1", lambda f: 0 < f < 1)
    plateau_patience: int = at_least(1, default=2)

    def __post_init__(self) -> None:
        """Checks the settings; an `InputError` names the key of the stage's configuration."""
        super().__post_init__()
        if self.name not in OPTIMIZERS:  # a key with another name than the field
            raise InputError(f"optimizer={self.name!r}: expected one of {', '.join(OPTIMIZERS)}")


def duration_to_steps(
    duration: str, *, examples: int, batch_size: int, total: int | None = None
) -> int:
    """Converts a duration to steps: '10 epochs', '500 steps', '8000 examples' or '5%'.

    Args:
      duration: a number and a unit. Fractions of a step are rounded to the nearest step.
      examples: in an epoch.
      batch_size: examples in a step; the last step of an epoch may have fewer.
      total: steps that 100% are; None where a percentage makes no sense.

    Raises:
      ValueError: it is not a duration.
    """
    number, unit = parse_duration(duration)
    if not unit or (unit == "%" and total is None):
        units = "'10 epochs', '500 steps' or '8000 examples'" + (", or '5%'" if total else "")
        raise ValueError(f"{duration!r} is no duration; expected something like {units}")
    longest = 100 if unit == "%" else _LONGEST
    if number > longest:
        raise ValueError(f"{duration!r} is too long; expected at most {longest:,}")
    steps_per_epoch = -(-examples // batch_size)
    steps_per_unit = {
        "step": 1.0,
        "epoch": steps_per_epoch,
        "example": steps_per_epoch / examples,
        "%": (total or 0) / 100,
    }
    return round(number * steps_per_unit[unit])


def parse_duration(duration: str) -> tuple[float, str]:
    """Number and unit of a duration: 'step', 'example', 'epoch' or '%'; 0 and '' if it is none."""
    match = _DURATION.fullmatch(str(duration))
    return (float(match[1]), match[2].rstrip("s")) if match else (0.0, "")


def learning_rate_schedule(settings: OptimizerSettings, total: int) -> optax.Schedule:
    """The learning rate at each of a stage's `total` updates, without the effect of 'plateau'."""
    rate, warmup = settings.learning_rate, settings.warmup // settings.accumulate
    if settings.schedule == "cosine":
        main = optax.cosine_decay_schedule(rate, max(total - warmup, 1))
    else:
        main = optax.constant_schedule(rate)
    if not warmup:
        return main
    # The first update has the first step of the warm-up, because a rate of 0 would waste it.
    rise = optax.linear_schedule(rate / (warmup + 1), rate, warmup)
    return optax.join_schedules([rise, main], [warmup])


def plateau_scale(values: Sequence[float], factor: float, patience: int) -> float:
    """Factor on the rate after a stage's validation results so far, as Keras's ReduceLROnPlateau.

    The lowest result is the best, as in `monitor.monitored_values`.
    """
    scale, best, waited = 1.0, np.inf, 0
    for value in values:
        if value < best - 1e-4:  # Keras's min_delta
            best, waited = value, 0
            continue
        waited += 1
        if waited >= patience:
            scale, waited = scale * factor, 0
    return scale


def make_optimizer(
    settings: OptimizerSettings,
    mask: PyTree,
    *,
    updates: int = 1,
    units: Sequence[str] = (),
    stages_trained: PyTree = None,
) -> optax.GradientTransformationExtraArgs:
    """The optimizer of a stage, which updates what a mask marks and nothing else.

    Args:
      settings: of the stage.
      mask: tree like the parameters, True at what trains (`Frontier.mask`).
      updates: how many the stage will make; the length of a cosine.
      units: top-level names of the parameter tree from the first unit to the last, for
        `layer_decay`.
      stages_trained: see `param_groups`.

    Returns:
      A transformation of the whole parameter tree, or of its trainable part with
      `optax.MaskedNode` for the frozen leaves, which have no state, do not count in clipping or
      decay, and whose updates are zero even where there are gradients. Its `update` takes
      `rate_scale`, a factor on the updates.
    """
    # In Keras's order: the gradient is clipped, Adam makes an update of it, and weight decay is
    # added to that, so that it is decoupled from the gradient.
    chain = []
    if settings.clip_norm:
        chain.append(optax.clip_by_global_norm(settings.clip_norm))
    if settings.name == "sgd":
        chain.append(optax.trace(settings.momentum) if settings.momentum else optax.identity())
    else:
        chain.append(scale_by_keras_adam())
    if settings.weight_decay:
        chain.append(optax.add_decayed_weights(settings.weight_decay, mask=_decay_mask))
    if settings.layer_decay != 1:
        chain.append(_scale_by_unit(settings.layer_decay, units))
    chain.append(optax.scale_by_learning_rate(learning_rate_schedule(settings, updates)))
    optimizer = optax.chain(*chain)
    if settings.accumulate > 1:
        # Outermost, so that the schedule, Adam and clipping see only the mean of the gradients.
        steps = optax.MultiSteps(optimizer, settings.accumulate)
        optimizer = optax.GradientTransformation(steps.init, steps.update)
    # `optax.masked` would return the gradients of frozen leaves as their updates.
    frozen = jax.tree.map(lambda trains: not trains, mask)
    groups = param_groups(settings, mask, stages_trained)
    return optax.selective_transform(_on_vectors(optimizer, groups), freeze_mask=frozen)


@dataclasses.dataclass(frozen=True)
class ParamGroup:
    """What the parameters in one vector have in common, for the optimizer."""

    stages_trained: int  # in how many stages before this one
    unit: str  # that they belong to; '' where all units have one learning rate
    decays: bool  # whether weight decay applies


def param_groups(
    settings: OptimizerSettings, mask: PyTree, stages_trained: PyTree = None
) -> PyTree:
    """The `ParamGroup` of each parameter, a tree like `mask`, whose values do not matter.

    `stages_trained` is a tree like it, too: from how many stages before this one a parameter keeps
    moments; by default 0 for all.
    """
    # What does not matter to these settings does not divide groups: the fewer, the faster.
    return jax.tree.map_with_path(
        lambda path, _, count: ParamGroup(
            count,
            path[0].key if settings.layer_decay != 1 else "",
            bool(settings.weight_decay) and path[-1].key == "kernel",
        ),
        mask,
        stages_trained or jax.tree.map(lambda _: 0, mask),
    )


def _on_vectors(
    optimizer: optax.GradientTransformation, groups: PyTree
) -> optax.GradientTransformationExtraArgs:
    """Wraps an optimizer of `Raveled` trees as one of plain trees."""

    def init(params: PyTree) -> optax.OptState:
        return optimizer.init(Raveled.of(params, groups))

    def update(updates: PyTree, state: PyTree, params: PyTree = None, *, rate_scale: Any = 1.0):
        vectors = None if params is None else Raveled.of(params, groups)
        raveled, state = optimizer.update(Raveled.of(updates, groups), state, vectors)
        return jax.tree.map(lambda vector: vector * rate_scale, raveled).unravel(), state

    return optax.GradientTransformationExtraArgs(init, update)


def _decay_mask(params: Raveled) -> Raveled:
    return params.map(lambda group, _: group.decays)


def _scale_by_unit(decay: float, units: Sequence[str]) -> optax.GradientTransformation:
    distance = {unit: len(units) - 1 - i for i, unit in enumerate(units)}

    def scale(updates: Raveled, params: PyTree = None) -> Raveled:
        del params
        return updates.map(lambda group, vector: vector * decay ** distance[group.unit])

    return optax.stateless(scale)
