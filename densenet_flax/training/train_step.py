"""One optimizer step of a stage as a compiled program."""

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
from jaxtyping import Array, Float

from densenet_flax.common.sharding import replicate, replicated
from densenet_flax.common.trees import PyTree, Variables
from densenet_flax.models.densenet import DenseNet
from densenet_flax.models.frontier import Frontier
from densenet_flax.models.layers import ema_update
from densenet_flax.models.preprocessing import preprocess_input
from densenet_flax.models.units import param_key, select_units
from densenet_flax.training.optimizer import learning_rate_schedule, make_optimizer, param_groups
from densenet_flax.training.raveled import Raveled
from densenet_flax.training.stage import Loss, Stage
from densenet_flax.training.train_state import TrainState, merge, partition, select_masked


class TrainStep:
    """The compiled step of one stage, and the split of the variables that it works on."""

    # The network before the stage's cut has nothing to train, so only the tail, the units from the
    # cut on, takes part. What the step changes of the tail's variables is in its `TrainState`,
    # whose buffers it reuses; the rest, which is frozen, is an argument that it only reads.

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
        earlier: Sequence[Frontier] = (),
    ):
        """Splits `variables` at the stage's frontier and prepares its step.

        Args:
          model: with a head.
          stage: what trains, and how.
          variables: of the whole network.
          mesh: the devices.
          seed: of the dropout.
          loss: by default cross-entropy without options.
          ema_decay: share of the moving average of the weights that an update keeps; 0 for none.
          preprocessing: mode of `preprocess_input`; used if the stage trains from the stem.
          earlier: frontiers of the stages, in order, whose moments this stage may start with.
        """
        self.model, self.stage, self.mesh = model, stage, mesh
        self._loss = loss or Loss()
        self._ema_decay = ema_decay
        self._preprocessing = preprocessing
        self._dropout_key = jax.random.key(seed)
        self._whole_masks = {
            "params": stage.frontier.mask(variables["params"]),
            "batch_stats": stage.frontier.batch_stats_mask(variables["batch_stats"]),
        }
        self._masks = self._select_tail(self._whole_masks)
        stages_trained = _count_stages_trained(variables["params"], earlier)
        stages_trained = select_units(stages_trained, self._tail)
        self._groups = {
            "params": param_groups(stage.optimizer, self._masks["params"], stages_trained),
            "batch_stats": jax.tree.map(lambda _: "", self._masks["batch_stats"]),
        }
        updates = stage.steps // stage.optimizer.accumulate
        self._schedule = learning_rate_schedule(stage.optimizer, updates)
        self._optimizer = make_optimizer(
            stage.optimizer,
            self._masks["params"],
            updates=updates,
            units=[param_key(unit) for unit in model.units],
            stages_trained=stages_trained,
        )
        # A donated state lends its buffers to the next one, so that only one is in memory.
        everywhere = replicated(mesh)
        self._jitted = jax.jit(self._step, donate_argnums=0, out_shardings=(everywhere, everywhere))
        self._compiled: Any = None
        self._compile_lock = threading.Lock()
        self._scales: dict[float, Float[Array, ""]] = {}
        self.set_variables(variables)

    @property
    def _tail(self) -> tuple[str, ...]:
        units = self.model.units
        return units[units.index(self.stage.frontier.cut) :]

    def _select_tail(self, trees: Mapping[str, PyTree]) -> dict[str, PyTree]:
        return {name: select_units(tree, self._tail) for name, tree in trees.items()}

    def set_variables(self, variables: Variables) -> None:
        """Sets the values to start from; the compiled program does not depend on them."""
        split = {name: partition(variables[name], mask) for name, mask in self._whole_masks.items()}
        self._initial = self._select_tail({name: trained for name, (trained, _) in split.items()})
        self._host_frozen = {name: frozen for name, (_, frozen) in split.items()}
        self._device_frozen: PyTree = None

    @property
    def frozen(self) -> PyTree:
        """The frozen variables of the tail, on the devices; they are put there at the first use."""
        if self._device_frozen is None:
            self._device_frozen = replicate(self._select_tail(self._host_frozen), self.mesh)
        return self._device_frozen

    def init(self, step: int) -> TrainState:
        """The state at the start of the stage, `step` steps into the run."""
        trained = jax.tree.map(np.asarray, self._initial)
        shapes = jax.eval_shape(self._make_state, trained)
        # Adam's moments begin at 0, and optax would compile programs to make these zeros.
        zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes.opt_state)
        return replicate(self._make_state(trained, zeros, step), self.mesh)

    def _make_state(
        self, trained: dict[str, PyTree], opt_state: PyTree = None, step: int = 0
    ) -> TrainState:
        params = self._ravel(trained["params"], "params")
        if opt_state is None:
            opt_state = self._optimizer.init(trained["params"])
        batch_stats = self._ravel(trained["batch_stats"], "batch_stats")
        ema = params if self._ema_decay else None
        return TrainState(np.array(step, np.int32), params, batch_stats, opt_state, ema)

    def tail_variables(self, state: TrainState) -> Variables:
        """The tail as it would be used now, on the devices."""
        params, batch_stats = replicate(state.trained_variables(), self.mesh)
        return self.merge_tail(params, batch_stats, self.frozen)

    def variables(self, state: TrainState) -> Variables:
        """The whole network as it would be used now, on the host."""
        # Copies, because a later step may reuse the buffers of this state.
        params, batch_stats = jax.tree.map(np.array, state.trained_variables())
        tail = self.merge_tail(params, batch_stats, self._select_tail(self._host_frozen))
        return {name: {**dict(tree), **tail[name]} for name, tree in self._host_frozen.items()}

    def learning_rate(self, stage_step: int) -> float:
        """The rate of a step of the stage, before any reduction on a plateau."""
        return float(self._learning_rates[stage_step // self.stage.optimizer.accumulate])

    @functools.cached_property
    def _learning_rates(self) -> Float[np.ndarray, " updates"]:
        # All at once, because a schedule that is not compiled runs many small programs.
        updates = np.arange(self.stage.steps // self.stage.optimizer.accumulate + 1)
        return np.broadcast_to(np.asarray(jax.jit(self._schedule)(updates)), updates.shape)

    def compile(self, batch: Mapping[str, Any]) -> float:
        """Compiles the step for batches like this one, once; returns the seconds that it took.

        The batch is as for `run_step`: arrays, or their shapes with their shardings.
        """
        # It needs no values, so it can run in a thread while something else computes. A second call
        # meanwhile waits for the first.
        started = time.perf_counter()
        with self._compile_lock:
            if self._compiled is None:
                self._compiled = self.trace(batch).lower().compile()
        return time.perf_counter() - started

    def trace(self, batch: Mapping[str, Any]) -> jax.stages.Traced:
        """Traces the step for batches like this one; the devices of the mesh need not exist."""
        spec = functools.partial(jax.ShapeDtypeStruct, sharding=replicated(self.mesh))
        state = jax.eval_shape(self._make_state, self._initial)
        trees = (state, self._select_tail(self._host_frozen))
        state, frozen = jax.tree.map(lambda leaf: spec(leaf.shape, leaf.dtype), trees)
        return self._jitted.trace(state, frozen, dict(batch), spec((), np.float32))

    def run_step(
        self, state: TrainState, batch: Mapping[str, jax.Array], rate_scale: float = 1.0
    ) -> tuple[TrainState, dict[str, Float[Array, ""]]]:
        """Makes one step.

        Args:
          state: donated: its buffers are gone afterwards.
          batch: on the devices: `inputs` (what enters at the stage's cut; images [N, H, W, 3], 0 to
            255, if that is the stem), `label` int32 [N] and `weight` float32 [N], where padding has
            weight 0; `target` float32 [N, K] if it is not the one-hot label.
          rate_scale: factor on the learning rate.

        Returns:
          The new state, and of the batch `loss` and `correct` (sums), `count`, and the norms
          `gradient_norm` (before clipping) and `update_norm`.
        """
        self.compile(batch)
        return self._compiled(state, self.frozen, dict(batch), self._scale(rate_scale))

    def _scale(self, rate_scale: float) -> Float[Array, ""]:
        """The factor on the devices; it is the same for many steps and is copied once."""
        if rate_scale not in self._scales:
            self._scales = {rate_scale: replicate(np.float32(rate_scale), self.mesh)}
        return self._scales[rate_scale]

    def _step(
        self,
        state: TrainState,
        frozen: PyTree,
        batch: Mapping[str, jax.Array],
        rate_scale: Float[Array, ""],
    ) -> tuple[TrainState, dict[str, Float[Array, ""]]]:
        frontier, weight = self.stage.frontier, batch["weight"]
        params, batch_stats = state.params.unravel(), state.batch_stats.unravel()
        x = batch["inputs"]
        if frontier.cut == "stem":
            x = preprocess_input(x, self._preprocessing)

        def mean_loss(params):
            logits, collections = self.model.apply(
                self.merge_tail(params, batch_stats, frozen),
                x,
                start=frontier.cut,
                train_norms=frontier.train_norms,
                dropout=self._loss.dropout,
                weight=weight,
                rngs={"dropout": jax.random.fold_in(self._dropout_key, state.step)},
                mutable=["mean_var"],
            )
            loss = sum_of_losses(logits, batch, self._loss) / weight.sum()
            return loss, (logits, collections.get("mean_var", {}))

        gradient = jax.value_and_grad(mean_loss, has_aux=True)
        (loss, (logits, batch_mean_var)), gradients = gradient(params)
        updates, opt_state = self._optimizer.update(
            gradients, state.opt_state, params, rate_scale=rate_scale
        )
        updates = self._ravel(updates, "params")
        new_params = optax.apply_updates(state.params, updates)
        # Raveled before the running statistics move, so that they move as one vector.
        batch_mean_var = select_masked(batch_mean_var, self._masks["batch_stats"])
        batch_mean_var = self._ravel(batch_mean_var, "batch_stats")
        new_state = TrainState(
            step=state.step + 1,
            params=new_params,
            batch_stats=ema_update(state.batch_stats, batch_mean_var, self.model.momentum),
            opt_state=opt_state,
            ema=self._update_average(state.ema, new_params, updates),
        )
        metrics = {
            "loss": loss * weight.sum(),
            "correct": jnp.sum((logits.argmax(-1) == batch["label"]) * weight),
            "count": weight.sum(),
            "gradient_norm": _global_norm(self._ravel(gradients, "params")),
            "update_norm": _global_norm(updates),
        }
        return new_state, metrics

    def _update_average(
        self, ema: Raveled | None, params: Raveled, updates: Raveled
    ) -> Raveled | None:
        if ema is None:
            return None
        # With `accumulate` most steps leave the weights as they are, and then the average too.
        keep = jnp.where(_global_norm(updates) > 0, self._ema_decay, 1.0)
        return jax.tree.map(lambda a, p: keep * a + (1 - keep) * p, ema, params)

    def _ravel(self, tree: PyTree, name: str) -> Raveled:
        return Raveled.of(tree, self._groups[name])

    def merge_tail(self, params: PyTree, batch_stats: PyTree, frozen: PyTree) -> Variables:
        """The variables of the tail from the part that trains and the part that is frozen."""
        trained = {"params": params, "batch_stats": batch_stats}
        return {name: merge(trained[name], frozen[name], self._masks[name]) for name in trained}


def sum_of_losses(
    logits: Float[Array, "N K"], batch: Mapping[str, jax.Array], loss: Loss
) -> Float[Array, ""]:
    """The weighted sum over a batch of the examples' losses; see `TrainStep.run_step`."""
    targets = batch.get("target")
    if targets is None:
        targets = jax.nn.one_hot(batch["label"], logits.shape[-1])
    factor: Any = 1.0
    if loss.class_weights:  # of the targets before they are smoothed
        weights = jnp.array(loss.class_weights, jnp.float32)
        factor = jnp.dot(targets, weights, precision=jax.lax.Precision.HIGHEST)
    if loss.label_smoothing:
        targets = optax.smooth_labels(targets, loss.label_smoothing)
    losses = optax.softmax_cross_entropy(logits, targets)
    return jnp.sum(losses * factor * batch["weight"])


def _count_stages_trained(params: PyTree, frontiers: Sequence[Frontier]) -> PyTree:
    """For each parameter, in how many of the last of these stages it trained without a break."""
    counts = jax.tree.map(lambda _: 0, params)
    for frontier in frontiers:
        mask = frontier.mask(params)
        counts = jax.tree.map(lambda count, trains: count + 1 if trains else 0, counts, mask)
    return counts


def _global_norm(tree: PyTree) -> Float[Array, ""]:
    """`optax.tree.norm` of one vector, because it compiles a sum of its own for each leaf."""
    vector = jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(tree)])
    return jnp.sqrt(jnp.vdot(vector, vector, precision=jax.lax.Precision.HIGHEST))
