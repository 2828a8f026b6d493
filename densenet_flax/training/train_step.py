"""One optimizer step of a stage: what it changes, what it leaves, and the compiled program."""

import functools
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from densenet_flax.common.host_memory import trim_host_memory
from densenet_flax.common.sharding import replicate, replicated
from densenet_flax.models.densenet import DenseNet
from densenet_flax.models.frontier import Frontier
from densenet_flax.models.layers import ema_update
from densenet_flax.models.preprocessing import preprocess_input
from densenet_flax.models.units import param_key, select_units
from densenet_flax.training.optimizer import alike, learning_rate_schedule, make_optimizer
from densenet_flax.training.raveled import Raveled, unravel_to_host
from densenet_flax.training.stage import Loss, Stage
from densenet_flax.training.train_state import TrainState, merge, partition, select_masked

Variables = Mapping[str, Any]


def _ages(params: Any, frontiers: Sequence[Frontier]) -> Any:
    """For each leaf, in how many of these stages it has trained up to the last without a break."""
    ages = jax.tree.map(lambda _: 0, params)
    for frontier in frontiers:
        ages = jax.tree.map(
            lambda age, trains: age + 1 if trains else 0, ages, frontier.mask(params)
        )
    return ages


def _norm(tree: Any) -> jax.Array:
    """`optax.global_norm` as one sum: one of each leaf takes as long to compile as Adam does."""
    vector = jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(tree)])
    return jnp.sqrt(jnp.vdot(vector, vector))


class TrainStep:
    """The compiled step of one stage, and the split of the variables that it works on."""

    def __init__(
        self,
        model: DenseNet,
        stage: Stage,
        variables: Variables,
        mesh: Mesh,
        *,
        seed: int,
        loss: Loss | None = None,
        ema_decay: float = 0.0,
        preprocessing: str = "torch",
        before: Sequence[Frontier] = (),
    ):
        """Splits `variables` at the stage's frontier and prepares its step.

        Args:
          model: with a head.
          stage: what trains, and how.
          variables: of the whole network.
          mesh: the devices.
          seed: of the dropout.
          loss: by default cross-entropy without options.
          ema_decay: share of the average of the weights that an update keeps; 0 for no average.
          preprocessing: mode of `preprocess_input`; used if the stage trains from the stem.
          before: frontiers of the stages whose moments may have come down to this one, in order.
        """
        units = model.units
        self.model, self.stage, self.mesh = model, stage, mesh
        self._loss = loss or Loss()
        self._ema_decay = ema_decay
        self._preprocessing = preprocessing
        self._dropout_key = jax.random.key(seed)
        self._whole_masks = {
            "params": stage.frontier.mask(variables["params"]),
            "batch_stats": stage.frontier.batch_stats_mask(variables["batch_stats"]),
        }
        # The prefix has nothing to train, so the step works on the tail's trees alone.
        self._tail = units[units.index(stage.frontier.cut) :]
        self._masks = {
            name: select_units(mask, self._tail) for name, mask in self._whole_masks.items()
        }
        ages = select_units(_ages(variables["params"], before), self._tail)
        self._vectors = {
            "params": alike(stage.optimizer, self._masks["params"], ages),
            "batch_stats": jax.tree.map(lambda _: "", self._masks["batch_stats"]),
        }
        updates = stage.steps // stage.optimizer.accumulate
        self._schedule = learning_rate_schedule(stage.optimizer, updates)
        self._optimizer = make_optimizer(
            stage.optimizer,
            self._masks["params"],
            updates=updates,
            units=[param_key(unit) for unit in units],
            ages=ages,
        )
        whole = replicated(mesh)
        self._jitted = jax.jit(self._step, donate_argnums=0, out_shardings=(whole, whole))
        self._compiled: Any = None
        self._compiling = threading.Lock()
        self.bind(variables)

    def bind(self, variables: Variables) -> None:
        """Takes the values to start from, where they have changed since the program was made."""
        split = {name: partition(variables[name], mask) for name, mask in self._whole_masks.items()}
        self._initial = {
            name: select_units(chosen, self._tail) for name, (chosen, _) in split.items()
        }
        self._host_frozen = {name: rest for name, (_, rest) in split.items()}
        self._placed: Any = None

    @property
    def _frozen(self) -> Any:
        """What the tail does not train, on the devices from its first use on."""
        if self._placed is None:
            rest = {
                name: select_units(tree, self._tail) for name, tree in self._host_frozen.items()
            }
            self._placed = replicate(rest, self.mesh)
        return self._placed

    def init(self, step: int) -> TrainState:
        """The state at the start of the stage, with a fresh optimizer."""
        trees = jax.tree.map(np.asarray, self._initial)
        initial = {name: self._pack(tree, name) for name, tree in trees.items()}
        zeros = jax.eval_shape(self._optimizer.init, trees["params"])
        opt_state = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), zeros)
        return TrainState(
            step=replicate(np.int32(step), self.mesh),
            params=replicate(initial["params"], self.mesh),
            batch_stats=replicate(initial["batch_stats"], self.mesh),
            opt_state=replicate(opt_state, self.mesh),
            ema=replicate(initial["params"], self.mesh) if self._ema_decay else None,
        )

    def tail_variables(self, state: TrainState) -> dict[str, Any]:
        """The network from the stage's cut on as it would be used now: averaged, if it is."""
        # Unpacked on the host: on a device each leaf's slice would be a program of its own.
        trained, running = replicate(unravel_to_host(self._now(state)), self.mesh)
        return self._merge(trained, running, self._frozen)

    def variables(self, state: TrainState) -> dict[str, Any]:
        """The whole network as it would be used now, on the host, to stay when the step runs on."""
        frozen = {name: select_units(tree, self._tail) for name, tree in self._host_frozen.items()}
        trained, running = jax.tree.map(np.array, unravel_to_host(self._now(state)))
        tail = self._merge(trained, running, frozen)
        return {name: {**dict(rest), **tail[name]} for name, rest in self._host_frozen.items()}

    def _now(self, state: TrainState) -> tuple[Raveled, Raveled]:
        """What has been trained, as it would be used: parameters and statistics."""
        return state.params if state.ema is None else state.ema, state.batch_stats

    def learning_rate(self, stage_step: int) -> float:
        """The rate of a step of the stage, before any reduction on a plateau."""
        update = stage_step // self.stage.optimizer.accumulate
        return float(self._rates[update])

    @functools.cached_property
    def _rates(self) -> np.ndarray:
        """The rate of every update, computed at once: a schedule is made of many small programs."""
        updates = np.arange(self.stage.steps // self.stage.optimizer.accumulate + 1)
        return np.broadcast_to(np.asarray(jax.jit(self._schedule)(updates)), updates.shape)

    def compile(self, batch: Mapping[str, Any]) -> float:
        """Compiles the step for batches like this one, unless it is; returns the seconds taken.

        May run in a thread of its own while something else computes: it needs no values, and
        whoever needs the compiled step meanwhile waits for it.

        Args:
          batch: as for `run_step`; arrays, or their shapes with their shardings.
        """
        started = time.perf_counter()
        with self._compiling:
            if self._compiled is None:
                scale = replicate(np.float32(1), self.mesh)
                state, frozen = self._shapes()
                self._compiled = self._jitted.lower(state, frozen, dict(batch), scale).compile()
                trim_host_memory()
        return time.perf_counter() - started

    def _shapes(self) -> tuple[TrainState, Any]:
        """State and frozen part as shapes that say how they are spread over devices."""

        def shape(leaf: Any) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=replicated(self.mesh))

        chosen, rest = (jax.tree.map(shape, t) for t in (self._initial, self._host_frozen))
        frozen = {name: select_units(tree, self._tail) for name, tree in rest.items()}
        opt_state = jax.tree.map(shape, jax.eval_shape(self._optimizer.init, chosen["params"]))
        packed = {
            name: jax.tree.map(shape, jax.eval_shape(lambda t, n=name: self._pack(t, n), tree))
            for name, tree in chosen.items()
        }
        params = packed["params"]
        step: Any = shape(np.zeros((), np.int32))
        ema = params if self._ema_decay else None
        return TrainState(step, params, packed["batch_stats"], opt_state, ema), frozen

    def run_step(
        self, state: TrainState, batch: Mapping[str, jax.Array], rate_scale: float = 1.0
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        """One step.

        Args:
          state: donated: its buffers are gone afterwards.
          batch: on the devices: `inputs` (what enters at the stage's cut; images, 0 to 255, if
            that is the stem), `label` int32 [B] and `weight` float32 [B], where padding has weight
            0; and perhaps `target` float32 [B, K] in place of the one-hot label.
          rate_scale: factor on the learning rate.

        Returns:
          The new state, and of the batch `loss` and `correct` (sums), `count`, and the norms
          `gradient_norm` and `update_norm`.
        """
        self.compile(batch)
        scale = replicate(np.float32(rate_scale), self.mesh)
        return self._compiled(state, self._frozen, dict(batch), scale)

    def _pack(self, tree: Any, name: str) -> Raveled:
        return Raveled.of(tree, self._vectors[name])

    def _merge(self, params: Any, batch_stats: Any, frozen: Any) -> dict[str, Any]:
        return {
            "params": merge(params, frozen["params"], self._masks["params"]),
            "batch_stats": merge(batch_stats, frozen["batch_stats"], self._masks["batch_stats"]),
        }

    def _step(self, state: TrainState, frozen: Any, batch: Mapping[str, jax.Array], rate_scale):
        frontier, weight = self.stage.frontier, batch["weight"]
        before, running = state.params.unpack(), state.batch_stats.unpack()
        x = batch["inputs"]
        if frontier.cut == "stem":
            x = preprocess_input(x, self._preprocessing)

        def loss_of(params):
            logits, updated = self.model.apply(
                self._merge(params, running, frozen),
                x,
                start=frontier.cut,
                train_norms=frontier.train_norms,
                dropout=self._loss.dropout,
                weight=weight,
                rngs={"dropout": jax.random.fold_in(self._dropout_key, state.step)},
                mutable=["mean_var"],
            )
            loss = self._sum_of_losses(logits, batch) / weight.sum()
            return loss, (logits, updated.get("mean_var", {}))

        (loss, (logits, moments)), gradients = jax.value_and_grad(loss_of, has_aux=True)(before)
        updates, opt_state = self._optimizer.update(
            gradients, state.opt_state, before, rate_scale=rate_scale
        )
        moves = self._pack(updates, "params")
        params = optax.apply_updates(state.params, moves)
        of_live = select_masked(self._masks["batch_stats"], moments)
        observed = self._pack(of_live, "batch_stats")
        new_state = TrainState(
            step=state.step + 1,
            params=params,
            batch_stats=ema_update(state.batch_stats, observed, self.model.momentum),
            opt_state=opt_state,
            ema=self._average(state.ema, params, moves),
        )
        metrics = {
            "loss": loss * weight.sum(),
            "correct": jnp.sum((logits.argmax(-1) == batch["label"]) * weight),
            "count": weight.sum(),
            "gradient_norm": _norm(self._pack(gradients, "params")),
            "update_norm": _norm(moves),
        }
        return new_state, metrics

    def _sum_of_losses(self, logits: jax.Array, batch: Mapping[str, jax.Array]) -> jax.Array:
        if "target" in batch:
            targets = batch["target"]
        else:
            targets = jax.nn.one_hot(batch["label"], logits.shape[-1])
        factor: Any = 1.0
        if self._loss.class_weights:
            factor = targets @ jnp.array(self._loss.class_weights, jnp.float32)
        if self._loss.label_smoothing:
            targets = optax.smooth_labels(targets, self._loss.label_smoothing)
        losses = optax.softmax_cross_entropy(logits, targets)
        return jnp.sum(losses * factor * batch["weight"])

    def _average(self, ema: Any, params: Any, updates: Any) -> Any:
        """Moves the average, on the steps that move the weights."""
        if ema is None:
            return None
        moved = _norm(updates) > 0  # all zero between the updates of `accumulate`
        keep = jnp.where(moved, self._ema_decay, 1.0)
        return jax.tree.map(lambda a, p: keep * a + (1 - keep) * p, ema, params)
