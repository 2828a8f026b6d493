"""From a stage's settings to one optax transformation, with Keras's defaults."""

import dataclasses
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from densenet_flax.training.keras_adam import scale_by_keras_adam
from densenet_flax.training.raveled import Raveled

OPTIMIZERS = ("adam", "adamw", "sgd")
SCHEDULES = ("constant", "cosine", "plateau")

_DURATION = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(steps?|examples?|epochs?|%)\s*")


@dataclasses.dataclass(frozen=True)
class OptimizerSettings:
    """How a stage trains. The defaults are the recipe's.

    Attributes:
      learning_rate: of the last unit, after warm-up.
      name: 'adam', 'adamw' or 'sgd', each as Keras computes it.
      schedule: 'constant'; 'cosine', down to 0 at the end of the stage; or 'plateau', times
        `plateau_factor` after `plateau_patience` epochs without a lower validation loss.
      warmup: steps over which the rate rises linearly from 0.
      weight_decay: decoupled from the gradient, on kernels only.
      momentum: of sgd.
      clip_norm: upper bound of the gradient's norm over all that trains; 0 for none.
      layer_decay: factor on the rate for each unit further from the head; 1 for none.
      accumulate: steps whose gradients make one update.
      plateau_factor: of 'plateau'.
      plateau_patience: of 'plateau', in epochs.
    """

    learning_rate: float = 1e-3
    name: str = "adam"
    schedule: str = "constant"
    warmup: int = 0
    weight_decay: float = 0.0
    momentum: float = 0.0
    clip_norm: float = 0.0
    layer_decay: float = 1.0
    accumulate: int = 1
    plateau_factor: float = 0.5
    plateau_patience: int = 2

    def __post_init__(self):
        """Refuses settings that make no sense."""
        for key, value, allowed in (
            ("optimizer", self.name, OPTIMIZERS),
            ("schedule", self.schedule, SCHEDULES),
        ):
            if value not in allowed:
                raise ValueError(f"{key}={value!r}: expected one of {', '.join(allowed)}")
        for key, fits, wanted in (
            ("learning_rate", self.learning_rate > 0, "above 0"),
            ("weight_decay", self.weight_decay >= 0, "of 0 or more"),
            ("momentum", 0 <= self.momentum < 1, "from 0 to below 1"),
            ("clip_norm", self.clip_norm >= 0, "of 0 or more"),
            ("layer_decay", 0 < self.layer_decay <= 1, "above 0 and up to 1"),
            ("accumulate", self.accumulate >= 1, "of 1 or more"),
            ("plateau_factor", 0 < self.plateau_factor < 1, "between 0 and 1"),
            ("plateau_patience", self.plateau_patience >= 1, "of 1 or more"),
        ):
            if not fits:
                raise ValueError(f"{key}={getattr(self, key)}: expected a number {wanted}")


def duration_to_steps(
    duration: str, *, examples: int, batch_size: int, total: int | None = None
) -> int:
    """A duration in steps: '10 epochs', '500 steps', '8000 examples' or '5%'.

    Args:
      duration: a number and a unit. Fractions of a step are rounded to the nearest step.
      examples: in an epoch.
      batch_size: examples in a step; the last step of an epoch may have fewer.
      total: steps that 100% are; None where a percentage makes no sense.

    Raises:
      ValueError: it is no duration.
    """
    match = _DURATION.fullmatch(str(duration))
    if not match or (match[2] == "%" and total is None):
        units = "'10 epochs', '500 steps' or '8000 examples'" + (", or '5%'" if total else "")
        raise ValueError(f"{duration!r} is no duration; expected something like {units}")
    number, unit = float(match[1]), match[2].rstrip("s")
    steps_per_epoch = -(-examples // batch_size)
    size = {
        "step": 1.0,
        "epoch": steps_per_epoch,
        "example": steps_per_epoch / examples,
        "%": (total or 0) / 100,
    }[unit]
    return round(number * size)


def learning_rate_schedule(settings: OptimizerSettings, total: int) -> optax.Schedule:
    """The rate at each update of a stage that makes `total` updates; 'plateau' is left out."""
    rate, warmup = settings.learning_rate, settings.warmup // settings.accumulate
    if settings.schedule == "cosine":
        main = optax.cosine_decay_schedule(rate, max(total - warmup, 1))
    else:
        main = optax.constant_schedule(rate)
    if not warmup:
        return main
    # The first update already moves: its rate is the first step up, not 0.
    rise = optax.linear_schedule(rate / (warmup + 1), rate, warmup)
    return optax.join_schedules([rise, main], [warmup])


def plateau_scale(losses: Sequence[float], factor: float, patience: int) -> float:
    """Keras's ReduceLROnPlateau as a function of the validation losses of the stage so far."""
    scale, best, waited = 1.0, np.inf, 0
    for loss in losses:
        if loss < best - 1e-4:  # Keras's min_delta
            best, waited = loss, 0
            continue
        waited += 1
        if waited >= patience:
            scale, waited = scale * factor, 0
    return scale


def make_optimizer(
    settings: OptimizerSettings,
    mask: Any,
    *,
    updates: int = 1,
    units: Sequence[str] = (),
    ages: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """The optimizer of a stage: it moves what the mask marks and nothing else.

    Leaves that are treated alike are one vector to it (`packing.Raveled`), for a compiler needs as
    long for a bias of 32 numbers as for all of them.

    Args:
      settings: see `OptimizerSettings`.
      mask: tree like the parameters, True at what trains (`Frontier.mask`).
      updates: that the stage will make; the length of a cosine.
      units: top-level names of the parameter tree from the first unit to the last, for
        `layer_decay`.
      ages: tree like the mask; leaves of different numbers have had, or may have had, different
        numbers of updates when the stage begins. By default all are alike.

    Returns:
      A transformation of the whole parameter tree, or of its trainable part with
      `optax.MaskedNode` in place of the frozen leaves. Frozen leaves have no state, take no part
      in clipping or decay, and their updates are zero even if gradients are handed in. Its
      `update` takes `rate_scale`, a factor on the updates.
    """
    chain = []
    if settings.clip_norm:
        chain.append(optax.clip_by_global_norm(settings.clip_norm))
    if settings.name == "sgd":
        chain.append(optax.trace(settings.momentum) if settings.momentum else optax.identity())
    else:
        chain.append(scale_by_keras_adam())
    if settings.weight_decay:
        chain.append(optax.add_decayed_weights(settings.weight_decay, mask=_kernels))
    if settings.layer_decay != 1:
        chain.append(_scale_by_unit(settings.layer_decay, units))
    chain.append(optax.scale_by_learning_rate(learning_rate_schedule(settings, updates)))
    optimizer = optax.chain(*chain)
    if settings.accumulate > 1:
        steps = optax.MultiSteps(optimizer, settings.accumulate)
        optimizer = optax.GradientTransformation(steps.init, steps.update)
    frozen = jax.tree.map(lambda trains: not trains, mask)
    names = alike(settings, mask, ages)
    return optax.selective_transform(_raveled(optimizer, names), freeze_mask=frozen)


class _Alike(NamedTuple):
    """What leaves of one vector have in common; what makes no difference is left alike."""

    age: int
    unit: str
    decays: bool


def alike(settings: OptimizerSettings, mask: Any, ages: Any = None) -> Any:
    """For each leaf of `mask` the name of its vector; arguments as for `make_optimizer`."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _, age: _Alike(
            age,
            path[0].key if settings.layer_decay != 1 else "",
            bool(settings.weight_decay) and path[-1].key == "kernel",
        ),
        mask,
        ages or jax.tree.map(lambda _: 0, mask),
    )


def _raveled(
    optimizer: optax.GradientTransformation, names: Any
) -> optax.GradientTransformationExtraArgs:
    """The optimizer over vectors of leaves as one over the leaves."""

    def init(params):
        return optimizer.init(Raveled.of(params, names))

    def update(updates, state, params=None, *, rate_scale: Any = 1.0):
        packed = None if params is None else Raveled.of(params, names)
        moves, state = optimizer.update(Raveled.of(updates, names), state, packed)
        return jax.tree.map(lambda move: move * rate_scale, moves).unpack(), state

    return optax.GradientTransformationExtraArgs(init, update)


def _kernels(params: Raveled) -> Raveled:
    return params.map(lambda alike, _: alike.decays)


def _scale_by_unit(decay: float, units: Sequence[str]) -> optax.GradientTransformation:
    distance = {unit: len(units) - 1 - i for i, unit in enumerate(units)}

    def scale(updates: Raveled, params=None) -> Raveled:
        del params
        return updates.map(lambda alike, vector: vector * decay ** distance[alike.unit])

    return optax.stateless(scale)
