"""The stages of a run: epochs, validation, checkpoints, and going on where a run stopped.

A run is a function of its configuration, its data and the step: the order of an epoch comes from
the seed and the epoch's number, dropout from the seed and the step, and whether a stage stops
early or lowers its rate from the history. A checkpoint therefore needs no state of iterators or
generators, and a run that was stopped ends with the bits of one that was not.
"""

import dataclasses
import functools
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import logging
from jax.sharding import Mesh
from tqdm import tqdm

from densenet_flax.common.errors import InputError, Stopped
from densenet_flax.common.host_memory import trim_host_memory
from densenet_flax.common.sharding import multiple_processes, replicate
from densenet_flax.data.dataset import Dataset
from densenet_flax.data.splits.sampling import Sampler
from densenet_flax.data.splits.split import Split
from densenet_flax.inference.dataset_predictions import predict_logits
from densenet_flax.inference.segments import SegmentedModel
from densenet_flax.models.densenet import DenseNet
from densenet_flax.models.frontier import Frontier
from densenet_flax.storage.checkpoint import Checkpoints, Restored, by_name, from_names
from densenet_flax.training import prefix_cache
from densenet_flax.training.input_pipeline import StageInputs, Views, batch_shapes
from densenet_flax.training.progress import SUMS, TrainProgress, best_step
from densenet_flax.training.raveled import ravel_like, unravel_to_host
from densenet_flax.training.stage import Loss, Stage
from densenet_flax.training.train_state import TrainState
from densenet_flax.training.train_step import TrainStep


@dataclasses.dataclass
class Trainer:
    """Trains a network through its stages.

    Attributes:
      model: with a head.
      stages: all of the run, those that are done included.
      dataset: where the images are.
      split: which of them train and which validate.
      checkpoints: where the run is kept.
      mesh: the devices.
      batch_size: images in a step over all devices; the last batch of an epoch may be smaller.
      seed: of the order of the images and of the dropout.
      loss: options of the loss.
      ema_decay: of the average of the weights; 0 for none.
      cache: mode of the prefix cache.
      cache_directory: where its files go, if they do.
      kept_features: where a copy of what is small is kept for other runs; None for nowhere.
      views: how training images are augmented.
      sampler: which images an epoch shows; by default each once, shuffled.
      workers: processes that decode what is streamed.
      preprocessing: mode of `preprocess_input`.
      log_every: steps between two lines of metrics.
      network: what the network is, kept with every checkpoint.
      write_metrics: takes lines that are a function of configuration, data and step.
      write_timing: takes lines on how fast it went.
    """

    model: DenseNet
    stages: Sequence[Stage]
    dataset: Dataset
    split: Split
    checkpoints: Checkpoints
    mesh: Mesh
    batch_size: int
    seed: int
    loss: Loss = dataclasses.field(default_factory=Loss)
    ema_decay: float = 0.0
    cache: str = "auto"
    cache_directory: Path | None = None
    kept_features: Path | None = None
    views: Views = dataclasses.field(default_factory=Views)
    sampler: Sampler | None = None
    workers: int = 0
    preprocessing: str = "torch"
    log_every: int = 10
    network: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    write_metrics: Callable[[dict[str, Any]], None] = lambda line: None
    write_timing: Callable[[dict[str, Any]], None] = lambda line: None

    def __post_init__(self):
        """Prepares the compiled segments of the network that all stages share."""
        cuts = [stage.frontier.cut for stage in self.stages]
        self.pipeline = SegmentedModel(
            self.model, self.mesh, cuts=cuts, preprocessing=self.preprocessing
        )
        rows = self.split.train
        self._sampler = self.sampler or Sampler(len(rows), 1, self.seed, rows)
        self.steps_per_epoch = -(-self._sampler.size // self.batch_size)
        seen = self._epochs(self.stages) * self._sampler.repeats
        if self.views.count > seen:  # views that no epoch shows are not worth computing
            self.views = dataclasses.replace(self.views, count=seen)
        self._stop_signal = 0
        self._first_step_at = 0.0
        self._has_begun = threading.Event()  # the first pass of the frozen part, or a step

    def run(
        self,
        variables: Mapping[str, Any],
        position: TrainProgress,
        restored: Restored | None = None,
    ) -> Mapping[str, Any]:
        """Trains what is left, with a checkpoint after every epoch.

        Args:
          variables: of the whole network, as they are at `position`.
          position: where the run stands; it is moved on.
          restored: the checkpoint that `position` comes from, if it comes from one.

        Returns:
          The variables that the last stage hands on.

        Raises:
          InputError: the loss is no longer finite, or a checkpoint cannot be written.
          Stopped: the process got SIGTERM or SIGINT.
        """
        carried: Mapping[str, np.ndarray] = restored.train if restored else {}
        coming = self.stages[position.stage :]
        programs = [self._program(stage, variables) for stage in coming]
        features = self._prefix_cache(coming)
        first = position.stage
        # Several processes must stop at the same step: there JAX's own handler tells them all.
        numbers = () if multiple_processes() else (signal.SIGTERM, signal.SIGINT)
        before = {number: signal.signal(number, self._ask_to_stop) for number in numbers}
        compiler = ThreadPoolExecutor(1)
        interval = sys.getswitchinterval()
        try:
            if not multiple_processes():  # there, compiling is kept in step with the others
                # Tracing holds Python's lock; each of the many arrays that go to the device
                # meanwhile would wait this long to get it back, 5 ms by default.
                sys.setswitchinterval(1e-4)
                for number, program in enumerate(programs):
                    if number == 1:  # where nothing is left to run before the first step, that
                        compiler.submit(self._has_begun.wait)  # comes first
                    shapes = batch_shapes(
                        self.pipeline,
                        program.stage.frontier.cut,
                        self.dataset.images.shape,
                        self.batch_size,
                        mixes=self.views.mixes,
                    )
                    compiler.submit(program.compile, shapes)
                compiler.submit(sys.setswitchinterval, interval)
            while position.stage < len(self.stages):
                stage = self.stages[position.stage]
                if not position.is_over(stage, self.steps_per_epoch):
                    logging.info("%s", self._headline(stage, position, variables))
                    index = position.stage - first
                    inputs = features.of(index, variables)
                    trim_host_memory()
                    programs[index].bind(variables)
                    variables, carried = self._run_stage(
                        programs[index], variables, carried, inputs, position
                    )
                variables, carried = self._hand_on(stage, variables, carried, position)
                position.stage, position.stage_step = position.stage + 1, 0
        finally:
            self._has_begun.set()
            compiler.shutdown(wait=False, cancel_futures=True)
            sys.setswitchinterval(interval)
            try:
                self.checkpoints.finish()  # nobody is told of an epoch that could not be kept
            finally:
                for number, handler in before.items():
                    signal.signal(number, handler)
        return variables

    def _program(self, stage: Stage, variables: Mapping[str, Any]) -> TrainStep:
        return TrainStep(
            self.model,
            stage,
            variables,
            self.mesh,
            seed=self.seed,
            loss=self.loss,
            ema_decay=self.ema_decay,
            preprocessing=self.preprocessing,
            before=self._before(stage),
        )

    def _before(self, stage: Stage) -> list[Frontier]:
        """Frontiers of the stages before it, as far back as moments have been kept."""
        at = last = list(self.stages).index(stage)
        while at and self.stages[at].keep_moments:
            at -= 1
        return [earlier.frontier for earlier in self.stages[at:last]]

    def _epochs(self, stages: Sequence[Stage]) -> int:
        return sum(-(-stage.steps // self.steps_per_epoch) for stage in stages)

    def _prefix_cache(self, stages: Sequence[Stage]) -> prefix_cache.PrefixCache:
        return prefix_cache.PrefixCache(
            self.dataset,
            self.pipeline,
            [stage.frontier for stage in stages],
            self.split.train,
            self.split.validation,
            self.batch_size,
            mode=self.cache,
            views=self.views,
            directory=self.cache_directory,
            kept=self.kept_features,
            epochs=self._epochs(stages),
            before_pass=self._has_begun.set,
            workers=self.workers,
        )

    def _ask_to_stop(self, number: int, _: Any) -> None:
        self._stop_signal = number

    def _headline(self, stage: Stage, position: TrainProgress, variables: Mapping[str, Any]) -> str:
        return (
            f"stage {position.stage + 1}/{len(self.stages)} {stage.name}: "
            f"{stage.frontier.describe(variables['params'])} · "
            f"{stage.steps / self.steps_per_epoch:g} epochs of {self.steps_per_epoch} steps · "
            f"{stage.optimizer.name} {stage.optimizer.learning_rate:g}"
        )

    def _hand_on(
        self,
        stage: Stage,
        variables: Mapping[str, Any],
        carried: Mapping[str, np.ndarray],
        position: TrainProgress,
    ) -> tuple[Mapping[str, Any], Mapping[str, np.ndarray]]:
        """What the next stage starts from: the last epoch, or the best one."""
        best = best_step(position.of_stage(stage))
        if not stage.restore_best or best is None or best == position.step:
            return variables, carried
        logging.info("%s: back to its best epoch, step %d", stage.name, best)
        checkpoint = self.checkpoints.restore(best)
        return checkpoint.variables, checkpoint.train

    def _run_stage(
        self,
        program: TrainStep,
        variables: Mapping[str, Any],
        carried: Mapping[str, np.ndarray],
        inputs: StageInputs,
        position: TrainProgress,
    ) -> tuple[Mapping[str, Any], Mapping[str, np.ndarray]]:
        """The steps of a stage that are left, with a validation at the end of each epoch."""
        stage = program.stage
        state = self._start(program, carried, position)
        n = self._sampler.size
        whole, part = divmod(position.stage_step, self.steps_per_epoch)
        total = round(stage.steps / self.steps_per_epoch * n)
        bar = tqdm(
            total=total,
            initial=min(whole * n + part * self.batch_size, total),
            desc=stage.name,
            unit="img",
            dynamic_ncols=True,
            disable=None,
        )
        with bar:
            while not position.is_over(stage, self.steps_per_epoch):
                timing: dict[str, Any] = {"compile_seconds": 0.0}
                started = time.perf_counter()
                first = position.stage_step
                state = self._train_epoch(program, state, inputs, position, bar, timing)
                seconds = time.perf_counter() - started - timing["compile_seconds"]
                loss, correct, count = position.sums
                summary = {
                    "stage": stage.name,
                    "epoch": (position.stage_step - 1) // self.steps_per_epoch,
                    "global_epoch": len(position.history),
                    "step": position.step,
                    "train_loss": loss / count,
                    "train_accuracy": correct / count,
                    **self._validate(program.tail_variables(state), inputs, stage.frontier.cut),
                    "learning_rate": self._rate(program, position.stage_step - 1, position),
                }
                images = min((position.stage_step - first) * self.batch_size, n)
                timing |= {"seconds": seconds, "images_per_second": images / seconds}
                self._log_epoch(stage, summary, timing)
                position.history.append(summary)
                position.sums = [0.0] * len(SUMS)
                variables = self._save(program, state, position)
                self.write_metrics({"kind": "epoch", **summary})
                self.write_timing({"stage": stage.name, "step": position.step, **timing})
                if self._stop_signal:
                    raise self._stopped(position)
        return variables, by_name(_besides_model(state))

    def _start(
        self, program: TrainStep, carried: Mapping[str, np.ndarray], position: TrainProgress
    ) -> TrainState:
        """The state at the beginning of a stage, or where a checkpoint left it."""
        state = program.init(position.step)
        fresh = _besides_model(state)
        if position.stage_step:
            found = from_names(carried, fresh)
        elif program.stage.keep_moments:
            names = by_name(fresh)
            kept = {
                name: value
                for name, value in carried.items()
                if _is_moment(name) and name in names and value.shape == names[name].shape
            }
            found = from_names({**names, **kept}, fresh)
        else:
            return state
        packed = {name: ravel_like(tree, getattr(state, name)) for name, tree in found.items()}
        return dataclasses.replace(state, **replicate(packed, self.mesh))

    def _train_epoch(
        self,
        program: TrainStep,
        state: TrainState,
        inputs: StageInputs,
        position: TrainProgress,
        bar: tqdm,
        timing: dict[str, Any],
    ) -> TrainState:
        """The steps that are left of the epoch in progress."""
        stage = program.stage
        order, views = self._sampler.epoch(len(position.history))
        done = position.stage_step % self.steps_per_epoch
        left = min(self.steps_per_epoch - done, stage.steps - position.stage_step)
        scale = position.rate_scale(stage)
        waiting: list[tuple[dict[str, Any], np.ndarray]] = []
        collect = functools.partial(self._collect, program, position, scale, waiting, bar)
        part = slice(done * self.batch_size, (done + left) * self.batch_size)
        for ids, weight, batch in inputs.batches(order[part], self.batch_size, views[part]):
            timing["compile_seconds"] += program.compile(batch)
            state, metrics = program.run_step(state, batch, scale)
            if not self._first_step_at:
                jax.block_until_ready(metrics)
                timing["first_step_at"] = self._first_step_at = time.time()
                self._has_begun.set()
            waiting.append((metrics, ids[weight > 0]))
            bar.update(int(weight.sum()))
            if len(waiting) >= self.log_every:
                collect()
            if self._should_stop(position.step + len(waiting)):
                collect()
                if position.stage_step % self.steps_per_epoch and position.stage_step < stage.steps:
                    self._save(program, state, position)
                    raise self._stopped(position)
        collect()
        return state

    def _collect(
        self,
        program: TrainStep,
        position: TrainProgress,
        scale: float,
        waiting: list[tuple[dict[str, Any], np.ndarray]],
        bar: tqdm,
    ) -> None:
        """Reads the metrics of the steps so far, which waits for them, and moves the position."""
        for metrics, ids in waiting:
            values = {name: float(value) for name, value in metrics.items()}
            if not np.isfinite(values["loss"]):
                files = ", ".join(self.dataset.files[ids].tolist())
                raise InputError(
                    f"stage {program.stage.name!r}: the loss became {values['loss']} at step "
                    f"{position.step + 1}; the checkpoint before is kept; try a learning rate "
                    f"below {program.stage.optimizer.learning_rate:g}; its images are {files}"
                )
            rate = self._rate(program, position.stage_step, position)
            position.stage_step += 1
            position.step += 1
            position.sums = [
                total + values[name] for total, name in zip(position.sums, SUMS, strict=True)
            ]
            if position.step % self.log_every == 0:
                self.write_metrics(
                    {
                        "kind": "step",
                        "stage": program.stage.name,
                        "step": position.step,
                        "loss": values["loss"] / values["count"],
                        "accuracy": values["correct"] / values["count"],
                        "learning_rate": rate,
                        "gradient_norm": values["gradient_norm"],
                        "update_norm": values["update_norm"],
                    }
                )
        waiting.clear()
        loss, correct, count = position.sums
        bar.set_postfix_str(f"loss {loss / count:.3f}, accuracy {correct / count:.3f}")

    def _stopped(self, position: TrainProgress) -> Stopped:
        reason = signal.Signals(self._stop_signal or signal.SIGTERM).name
        return Stopped(
            f"{reason}: stopped at step {position.step}, which is saved; the same command goes on"
        )

    def _should_stop(self, step: int) -> bool:
        return bool(self._stop_signal) or self.checkpoints.reached_preemption(step)

    def _rate(self, program: TrainStep, stage_step: int, position: TrainProgress) -> float:
        return program.learning_rate(stage_step) * position.rate_scale(program.stage)

    def _validate(
        self, variables: Mapping[str, Any], inputs: StageInputs, cut: str
    ) -> dict[str, float]:
        ids = self.split.validation
        logits = predict_logits(
            self.pipeline,
            variables,
            self.dataset,
            ids,
            self.batch_size,
            start=cut,
            batches=inputs.batches(ids, self.batch_size),
        )
        labels = self.dataset.labels[ids]
        losses = optax.softmax_cross_entropy_with_integer_labels(jnp.asarray(logits), labels)
        return {
            "validation_loss": float(losses.mean()),
            "validation_accuracy": float((logits.argmax(-1) == labels).mean()),
        }

    def _save(
        self, program: TrainStep, state: TrainState, position: TrainProgress
    ) -> Mapping[str, Any]:
        """Has a checkpoint of this moment written; keeps the best of the run and of the stage."""
        variables = program.variables(state)
        histories = (position.history, position.of_stage(program.stage))
        bests = (best_step(history) for history in histories)
        keep = [step for step in bests if step is not None]
        meta = {"position": dataclasses.asdict(position), "network": dict(self.network)}
        self.checkpoints.save_soon(position.step, variables, _besides_model(state), meta, keep=keep)
        return variables

    def _log_epoch(
        self, stage: Stage, summary: Mapping[str, Any], timing: Mapping[str, Any]
    ) -> None:
        compiled = timing["compile_seconds"]
        with tqdm.external_write_mode():  # or the line would run into the bar
            logging.info(
                "%s %d/%d: loss %.4f, accuracy %.4f · validation loss %.4f, accuracy %.4f · "
                "%.0f images/s%s",
                stage.name,
                summary["epoch"] + 1,
                -(-stage.steps // self.steps_per_epoch),
                summary["train_loss"],
                summary["train_accuracy"],
                summary["validation_loss"],
                summary["validation_accuracy"],
                timing["images_per_second"],
                f" after {compiled:.0f} s of compilation" if compiled > 1 else "",
            )


def _besides_model(state: TrainState) -> dict[str, Any]:
    """What a checkpoint needs besides the network: with an average, also the raw weights."""
    opt_state = unravel_to_host(state.opt_state)
    if state.ema is None:
        return {"opt_state": opt_state}
    return {"opt_state": opt_state, "params": unravel_to_host(state.params)}


def _is_moment(name: str) -> bool:
    return any(part in name for part in (".mu[", ".nu[", ".steps[", ".trace["))
