"""The stages of a run: epochs, validation, checkpoints, and going on where a run stopped."""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
from absl import logging
from jax.sharding import Mesh
from tqdm import tqdm

from densenet_flax import prefix_cache
from densenet_flax.checkpoint import Checkpoints
from densenet_flax.data.source import Dataset, batches, epoch_order
from densenet_flax.data.splits import Split
from densenet_flax.errors import InputError
from densenet_flax.model import DenseNet
from densenet_flax.predict import Pipeline, predict_logits
from densenet_flax.sharding import replicate, replicated
from densenet_flax.step import Stage, StageProgram, TrainState


@dataclasses.dataclass
class Position:
    """Where a run stands; kept with every checkpoint.

    Attributes:
      stage: index of the stage in progress.
      epoch: epochs of that stage that are complete.
      step: steps of the whole run.
      history: a summary of each complete epoch of the run.
      best_step: the checkpoint with the lowest validation loss.
    """

    stage: int = 0
    epoch: int = 0
    step: int = 0
    history: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    best_step: int = 0


@dataclasses.dataclass
class Trainer:
    """Trains a network through its stages.

    Attributes:
      model: with a head.
      stages: all of the run, those that are done included.
      dataset: where the images are.
      split: which of them train and which validate.
      checkpoints: where an epoch's result is kept.
      mesh: the devices.
      batch_size: images in a step over all devices; the last batch of an epoch may be smaller.
      seed: of the order of the images and of the dropout.
      cache: mode of the prefix cache.
      preprocessing: mode of `preprocess_input`.
      network: what the network is, kept with every checkpoint.
      write_metrics: takes a line for each epoch.
    """

    model: DenseNet
    stages: Sequence[Stage]
    dataset: Dataset
    split: Split
    checkpoints: Checkpoints
    mesh: Mesh
    batch_size: int
    seed: int
    cache: str = "auto"
    preprocessing: str = "torch"
    network: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    write_metrics: Callable[[dict[str, Any]], None] = lambda line: None

    def __post_init__(self):
        cuts = [stage.frontier.cut for stage in self.stages]
        self.pipeline = Pipeline(self.model, self.mesh, cuts=cuts, preprocessing=self.preprocessing)

    def run(self, variables: Mapping[str, Any], position: Position) -> Mapping[str, Any]:
        """Trains what is left, with a checkpoint after every epoch.

        Args:
          variables: of the whole network, as they are at `position`.
          position: where the run stands; it is moved on. Inside a stage, the optimizer's state is
            read from the checkpoint of `position.step`.

        Returns:
          The variables after the last epoch.

        Raises:
          InputError: the loss is no longer finite, or a checkpoint cannot be written.
        """
        cached: dict[str, prefix_cache.Cached] = {}
        shared = prefix_cache.shared_cuts(
            [stage.frontier for stage in self.stages[position.stage :]]
        )
        pass_done = False
        for index in range(position.stage, len(self.stages)):
            stage = self.stages[index]
            if position.epoch >= stage.epochs:
                position.stage, position.epoch = index + 1, 0
                continue
            logging.info(
                "stage %d/%d %s: %s · %d epochs · learning rate %g",
                index + 1,
                len(self.stages),
                stage.name,
                stage.frontier.describe(variables["params"]),
                stage.epochs,
                stage.learning_rate,
            )
            device = replicate(variables, self.mesh)
            cut = stage.frontier.cut
            if not pass_done or cut not in shared:
                cached |= prefix_cache.compute(
                    self.pipeline,
                    device,
                    self.dataset,
                    np.concatenate([self.split.train, self.split.validation]),
                    [cut] if pass_done else shared,
                    batch_size=self.batch_size,
                    mode=self.cache,
                )
                pass_done = True
            inputs = prefix_cache.StageInputs(
                self.dataset, self.pipeline, device, cut, cached.get(cut)
            )
            variables = self._run_stage(stage, variables, inputs, position)
            position.stage, position.epoch = index + 1, 0
        return variables

    def _run_stage(
        self,
        stage: Stage,
        variables: Mapping[str, Any],
        inputs: prefix_cache.StageInputs,
        position: Position,
    ) -> Mapping[str, Any]:
        """The epochs of a stage that are left."""
        program = StageProgram(
            self.model,
            stage,
            variables,
            self.mesh,
            seed=self.seed,
            preprocessing=self.preprocessing,
        )
        state = program.init(position.step)
        if position.epoch:
            opt_state = self.checkpoints.restore_opt_state(
                position.step, state.opt_state, replicated(self.mesh)
            )
            state = dataclasses.replace(state, opt_state=opt_state)
        n = len(self.split.train)
        bar = tqdm(
            total=stage.epochs * n,
            initial=position.epoch * n,
            desc=stage.name,
            unit="img",
            dynamic_ncols=True,
            disable=None,
        )
        with bar:
            for epoch in range(position.epoch, stage.epochs):
                started = time.perf_counter()
                state, trained = self._train_epoch(
                    program, state, inputs, len(position.history), bar
                )
                seconds = time.perf_counter() - started
                summary = {
                    "stage": stage.name,
                    "epoch": epoch,
                    "global_epoch": len(position.history),
                    **trained,
                    **self._validate(program.tail_variables(state), inputs, stage.frontier.cut),
                    "learning_rate": stage.learning_rate,
                    "images_per_second": n / seconds,
                    "seconds": seconds,
                }
                self._log(summary, stage)
                variables = program.variables(state)
                self._keep(position, state, variables, summary)
        return variables

    def _train_epoch(
        self,
        program: StageProgram,
        state: TrainState,
        inputs: prefix_cache.StageInputs,
        number: int,
        bar: tqdm,
    ) -> tuple[TrainState, dict[str, float]]:
        """One pass over the training images, in the order of the run's epoch `number`."""
        order = self.split.train[epoch_order(len(self.split.train), self.seed, number)]
        steps = []
        shown = 0.0
        for ids, weight in batches(order, self.batch_size):
            batch = {"inputs": inputs(ids), "label": self.dataset.labels[ids], "weight": weight}
            state, sums = program.run_step(state, batch)
            steps.append(sums)
            bar.update(int(weight.sum()))
            if time.perf_counter() - shown > 0.5:  # to read a sum is to wait for the step
                shown = time.perf_counter()
                loss, accuracy = (float(sums[name] / sums["count"]) for name in ("loss", "correct"))
                bar.set_postfix_str(f"loss {loss:.3f}, accuracy {accuracy:.3f}")
        losses = np.array([float(sums["loss"]) for sums in steps])
        if not np.isfinite(losses).all():
            bad = int(np.flatnonzero(~np.isfinite(losses))[0])
            files = self.dataset.files[order[bad * self.batch_size :][:3]]
            raise InputError(
                f"stage {program.stage.name!r}: the loss became {losses[bad]} at step "
                f"{int(state.step) - len(steps) + bad + 1} (images {', '.join(files)}, …); the "
                "checkpoint before this epoch is kept; try a learning rate below "
                f"{program.stage.learning_rate:g}"
            )
        count = sum(float(sums["count"]) for sums in steps)
        correct = sum(float(sums["correct"]) for sums in steps)
        return state, {"train_loss": float(losses.sum() / count), "train_accuracy": correct / count}

    def _validate(
        self, variables: Mapping[str, Any], inputs: prefix_cache.StageInputs, cut: str
    ) -> dict[str, float]:
        ids = self.split.validation
        logits = predict_logits(
            self.pipeline,
            variables,
            self.dataset,
            ids,
            self.batch_size,
            start=cut,
            inputs=inputs,
        )
        labels = self.dataset.labels[ids]
        losses = optax.softmax_cross_entropy_with_integer_labels(jnp.asarray(logits), labels)
        return {
            "validation_loss": float(losses.mean()),
            "validation_accuracy": float((logits.argmax(-1) == labels).mean()),
        }

    def _keep(
        self,
        position: Position,
        state: TrainState,
        variables: Mapping[str, Any],
        summary: dict[str, Any],
    ) -> None:
        """Moves the position on by an epoch and writes its checkpoint."""
        position.epoch += 1
        position.step = int(state.step)
        position.history.append(summary)
        if summary["validation_loss"] <= min(e["validation_loss"] for e in position.history):
            position.best_step = position.step
        self.checkpoints.save(
            position.step,
            variables,
            state.opt_state,
            {**dataclasses.asdict(position), "network": dict(self.network)},
            validation_loss=summary["validation_loss"],
        )
        self.write_metrics({"kind": "epoch", "step": position.step, **summary})

    def _log(self, summary: Mapping[str, Any], stage: Stage) -> None:
        with tqdm.external_write_mode():  # or the line would run into the bar
            logging.info(
                "%s %d/%d: loss %.4f, accuracy %.4f · validation loss %.4f, accuracy %.4f · "
                "%.0f images/s",
                stage.name,
                summary["epoch"] + 1,
                stage.epochs,
                summary["train_loss"],
                summary["train_accuracy"],
                summary["validation_loss"],
                summary["validation_accuracy"],
                summary["images_per_second"],
            )
