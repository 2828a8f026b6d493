"""One optimizer step of a stage: what it changes, what it leaves, and the compiled program."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from densenet_flax.frontier import Frontier
from densenet_flax.model import DenseNet, preprocess_input, select
from densenet_flax.optimizer import make_optimizer
from densenet_flax.sharding import replicate, replicated, shard_batch

Variables = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Stage:
    """A frontier with its own epochs and learning rate."""

    name: str
    frontier: Frontier
    epochs: int
    learning_rate: float


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """What a step changes. All that it does not change is kept apart and never copied.

    Attributes:
      step: steps of the whole run so far, int32.
      params: what trains, `optax.MaskedNode` in place of what is frozen.
      batch_stats: running statistics of the live BatchNorms, likewise.
      opt_state: the optimizer's, for what trains.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any


def partition(tree: Any, mask: Any) -> tuple[Any, Any]:
    """Splits a tree by a mask into where it is True and where not; the gaps are `MaskedNode`s."""
    gap = optax.MaskedNode()
    chosen = jax.tree.map(lambda m, x: x if m else gap, mask, tree)
    rest = jax.tree.map(lambda m, x: gap if m else x, mask, tree)
    return chosen, rest


def merge(chosen: Any, rest: Any, mask: Any) -> Any:
    """The inverse of `partition`."""
    return jax.tree.map(lambda m, a, b: a if m else b, mask, chosen, rest)


class StageProgram:
    """The compiled step of one stage, and the split of the variables that it works on."""

    def __init__(
        self,
        model: DenseNet,
        stage: Stage,
        variables: Variables,
        mesh: Mesh,
        *,
        seed: int,
        preprocessing: str = "torch",
    ):
        """Splits `variables` at the stage's frontier and prepares its step.

        Args:
          model: with a head.
          stage: what trains, and how.
          variables: of the whole network.
          mesh: the devices.
          seed: of the dropout.
          preprocessing: mode of `preprocess_input`; used if the stage trains from the stem.
        """
        units = model.units
        self.model, self.stage, self.mesh = model, stage, mesh
        self._preprocessing = preprocessing
        self._dropout_key = jax.random.key(seed)
        self.masks = {
            "params": stage.frontier.mask(variables["params"]),
            "batch_stats": stage.frontier.live_statistics(variables["batch_stats"]),
        }
        split = {name: partition(variables[name], mask) for name, mask in self.masks.items()}
        tail = units[units.index(stage.frontier.cut) :]
        self._whole_frozen = {name: rest for name, (_, rest) in split.items()}
        self._frozen = replicate(
            {name: select(rest, tail) for name, rest in self._whole_frozen.items()}, mesh
        )
        # The prefix has nothing to train, so the step works on the tail's trees alone.
        self._tail_masks = {name: select(mask, tail) for name, mask in self.masks.items()}
        self._initial = {name: select(chosen, tail) for name, (chosen, _) in split.items()}
        self._optimizer = make_optimizer(stage.learning_rate, self._tail_masks["params"])
        self.step = jax.jit(
            self._step, donate_argnums=0, out_shardings=(replicated(mesh), replicated(mesh))
        )

    def init(self, step: int) -> TrainState:
        """The state at the start of the stage, with a fresh optimizer."""
        params = replicate(self._initial["params"], self.mesh)
        return TrainState(
            step=replicate(np.int32(step), self.mesh),
            params=params,
            batch_stats=replicate(self._initial["batch_stats"], self.mesh),
            opt_state=replicate(jax.jit(self._optimizer.init)(params), self.mesh),
        )

    def tail_variables(self, state: TrainState) -> dict[str, Any]:
        """Params and statistics from the stage's cut on, as they are now."""
        return self._merge(state.params, state.batch_stats, self._frozen)

    def variables(self, state: TrainState) -> dict[str, Any]:
        """Params and statistics of the whole network, as they are now, on the host."""
        tail = jax.tree.map(np.asarray, self.tail_variables(state))
        return {name: {**dict(rest), **tail[name]} for name, rest in self._whole_frozen.items()}

    def run_step(
        self, state: TrainState, batch: Mapping[str, Any]
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        """One optimizer step.

        Args:
          state: donated: its buffers are gone afterwards.
          batch: `inputs` (what enters at the stage's cut; uint8 images if that is the stem),
            `label` int32 [B] and `weight` float32 [B]; padding has weight 0.

        Returns:
          The new state, and sums over the batch: `loss`, `correct`, `count`.
        """
        return self.step(state, self._frozen, shard_batch(dict(batch), self.mesh))

    def _merge(self, params: Any, batch_stats: Any, frozen: Any) -> dict[str, Any]:
        masks = self._tail_masks
        return {
            "params": merge(params, frozen["params"], masks["params"]),
            "batch_stats": merge(batch_stats, frozen["batch_stats"], masks["batch_stats"]),
        }

    def _step(self, state: TrainState, frozen: Any, batch: Mapping[str, jax.Array]):
        frontier, weight = self.stage.frontier, batch["weight"]
        x = batch["inputs"]
        if frontier.cut == "stem":
            x = preprocess_input(x, self._preprocessing)
        count = weight.sum()

        def loss_of(params):
            logits, updated = self.model.apply(
                self._merge(params, state.batch_stats, frozen),
                x,
                start=frontier.cut,
                live_norms=frontier.live_norms,
                dropout=True,
                weight=weight,
                rngs={"dropout": jax.random.fold_in(self._dropout_key, state.step)},
                mutable=["batch_stats"],
            )
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
            loss = jnp.sum(losses * weight) / count
            return loss, (logits, updated.get("batch_stats", {}))

        (loss, (logits, statistics)), gradients = jax.value_and_grad(loss_of, has_aux=True)(
            state.params
        )
        updates, opt_state = self._optimizer.update(gradients, state.opt_state, state.params)
        statistics, _ = partition(statistics, self._tail_masks["batch_stats"])
        new_state = TrainState(
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            batch_stats=statistics,
            opt_state=opt_state,
        )
        correct = jnp.sum((logits.argmax(-1) == batch["label"]) * weight)
        return new_state, {"loss": loss * count, "correct": correct, "count": count}
