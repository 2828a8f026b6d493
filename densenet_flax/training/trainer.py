"""Trains a network through its stages, and resumes where a run stopped.

A run is a function of its configuration, its data and the step: the order of an epoch comes from
the seed and the epoch's number, dropout from the seed and the step, and whether a stage stops early
or lowers its rate from the history. A checkpoint therefore needs no state of iterators or random
generators, and a run that was stopped and resumed ends with the same bits as one that was not.
"""

import contextlib
import dataclasses
import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import logging
from jax.sharding import Mesh
from tqdm import tqdm

from densenet_flax.common.console import progress_bar
from densenet_flax.common.errors import InputError
from densenet_flax.common.host_memory import STAGE_BEGINS
from densenet_flax.common.sharding import broadcast, multiple_processes
from densenet_flax.common.trees import JsonDict, Variables
from densenet_flax.data.batching import EpochBatches
from densenet_flax.data.dataset import Dataset
from densenet_flax.data.splits.sampling import Sampler
from densenet_flax.data.splits.split import Split
from densenet_flax.inference.dataset_predictions import Batch, predict_logits
from densenet_flax.inference.segments import SegmentedModel
from densenet_flax.models.densenet import DenseNet
from densenet_flax.models.frontier import Frontier
from densenet_flax.storage.checkpoint import Checkpoints, ReadState, Restored
from densenet_flax.training.background_compiler import BackgroundCompiler
from densenet_flax.training.input_pipeline import StageInputs, Views, training_batch_specs
from densenet_flax.training.monitor import validation_auc
from densenet_flax.training.prefix_cache import PrefixCache
from densenet_flax.training.progress import TrainProgress, best_step, best_steps
from densenet_flax.training.stage import Loss, Stage
from densenet_flax.training.step_metrics import StepMetrics, current_rate
from densenet_flax.training.stop_signal import StopSignal
from densenet_flax.training.train_state import (
    TrainState,
    copy_state,
    restore_moments,
    restore_state,
    saved_arrays,
    state_to_save,
)
from densenet_flax.training.train_step import TrainStep

SavedState: TypeAlias = Mapping[str, np.ndarray]  # of `state_to_save`, by name


@dataclasses.dataclass
class Trainer:
    """Trains a network through its stages.

    Attributes:
      stages: all of the run, those that are done included.
      split: which images train and which validate.
      batch_size: images in a step over all devices; the last batch of an epoch may be smaller.
      seed: of the order of the images and of the dropout.
      ema_decay: of the moving average of the weights; 0 for none.
      cache, cache_directory, kept_features: `mode`, `directory` and `kept` of the `PrefixCache`.
      sampler: which images an epoch shows; by default each once, shuffled.
      workers: processes that decode streamed images.
      preprocessing: mode of `preprocess_input`.
      log_every: steps between two lines of metrics.
      network: fields of its `WeightsInfo`, saved with every checkpoint.
      write_metrics: takes lines that are a function of configuration, data and step.
      write_timing: takes lines on how long it took.
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
    write_metrics: Callable[[JsonDict], None] = lambda line: None
    write_timing: Callable[[JsonDict], None] = lambda line: None

    def __post_init__(self):
        cuts = [stage.frontier.cut for stage in self.stages]
        self.segmented = SegmentedModel(
            self.model, self.mesh, cuts=cuts, preprocessing=self.preprocessing
        )
        train = self.split.train
        self._sampler = self.sampler or Sampler(len(train), 1, self.seed, train)
        self.steps_per_epoch = -(-self._sampler.size // self.batch_size)
        seen = self._epochs(self.stages) * self._sampler.repeats
        if self.views.count > seen:  # views that no epoch shows are not worth computing
            self.views = dataclasses.replace(self.views, count=seen)
        self._stop = StopSignal()
        self._compiler = BackgroundCompiler()
        self._first_step_at = 0.0

    def run(
        self, variables: Variables, progress: TrainProgress, restored: Restored | None = None
    ) -> Variables:
        """Trains what is left, with a checkpoint after every epoch.

        Args:
          variables: of the whole network, as they are at `progress`.
          progress: how far the run is; kept up to date.
          restored: the checkpoint that `progress` comes from, if it comes from one.

        Returns:
          The variables at the end of the last stage.

        Raises:
          InputError: the loss is no longer finite, or a checkpoint cannot be written.
          Stopped: the process received SIGTERM or SIGINT.
        """
        saved: SavedState = restored.train if restored else {}
        stages = self.stages[progress.stage :]
        # All of them now, so that they can compile while the first stage computes its features.
        # The values of the variables are set when a stage begins.
        steps = [self._train_step(stage, variables) for stage in stages]
        cache = self._prefix_cache(stages)
        with self._stop.handled(), contextlib.ExitStack() as at_end:
            at_end.callback(self.checkpoints.finish)  # no epoch counts before it is saved
            at_end.enter_context(self._compiler.compiling(self._compile_jobs(steps)))
            for index, step in enumerate(steps):
                # It is over if the run was stopped between its last step and the next stage.
                if not progress.is_over(step.stage, self.steps_per_epoch):
                    logging.info("%s", self._headline(step.stage, progress, variables))
                    inputs = cache.stage_inputs(index, variables)
                    jax.monitoring.record_event(STAGE_BEGINS)
                    step.set_variables(variables)
                    state = self._initial_state(step, saved, progress)
                    variables, saved = self._run_stage(step, state, inputs, progress)
                variables, saved = self._restore_best(step.stage, progress, variables, saved)
                progress.end_stage()
            if not self.checkpoints.steps:
                logging.info("no stage has a step to train; the network stays as it starts")
                self._save_checkpoint(lambda: (variables, []), TrainProgress())
        return variables

    def _epochs(self, stages: Sequence[Stage]) -> int:
        return sum(-(-stage.steps // self.steps_per_epoch) for stage in stages)

    def _train_step(self, stage: Stage, variables: Variables) -> TrainStep:
        return TrainStep(
            self.model,
            stage,
            variables,
            self.mesh,
            seed=self.seed,
            loss=self.loss,
            ema_decay=self.ema_decay,
            preprocessing=self.preprocessing,
            earlier=self._earlier_frontiers(stage),
        )

    def _earlier_frontiers(self, stage: Stage) -> list[Frontier]:
        """Frontiers of the stages before one, as far back as moments have been kept."""
        begin = end = list(self.stages).index(stage)
        while begin and self.stages[begin].keep_moments:
            begin -= 1
        return [earlier.frontier for earlier in self.stages[begin:end]]

    def _prefix_cache(self, stages: Sequence[Stage]) -> PrefixCache:
        return PrefixCache(
            self.dataset,
            self.segmented,
            [stage.frontier for stage in stages],
            self.split.train,
            self.split.validation,
            self.batch_size,
            mode=self.cache,
            views=self.views,
            directory=self.cache_directory,
            kept=self.kept_features,
            epochs=self._epochs(stages),
            before_pass=self._compiler.release,
            workers=self.workers,
        )

    def _compile_jobs(
        self, steps: Sequence[TrainStep]
    ) -> list[tuple[TrainStep, Mapping[str, Any]]]:
        """The steps to compile in the background, with the shapes of their batches."""
        if multiple_processes():  # they must compile in the same order, so each when it is needed
            return []
        shape, mixes = self.dataset.images.shape, self.views.mixes
        cuts = [step.stage.frontier.cut for step in steps]
        size = self.batch_size
        specs = [training_batch_specs(self.segmented, cut, shape, size, mixes) for cut in cuts]
        return list(zip(steps, specs, strict=True))

    def _headline(self, stage: Stage, progress: TrainProgress, variables: Variables) -> str:
        return (
            f"stage {progress.stage + 1}/{len(self.stages)} {stage.name}: "
            f"{stage.frontier.describe(variables['params'])} · "
            f"{stage.steps / self.steps_per_epoch:g} epochs of {self.steps_per_epoch} steps · "
            f"{stage.optimizer.name} {stage.optimizer.learning_rate:g}"
        )

    def _initial_state(
        self, step: TrainStep, saved: SavedState, progress: TrainProgress
    ) -> TrainState:
        """The state at the start of a stage, or where a checkpoint left it."""
        state = step.init(progress.step)
        if progress.stage_step and not saved:
            raise InputError(
                f"{self.checkpoints.directory / str(progress.step)}: its part 'train' is missing, "
                "so the run can be evaluated (--mode=evaluate) and not go on; put it back, or "
                "remove that folder to go on from an earlier checkpoint"
            )
        # Within a stage `saved` comes from its own checkpoint, else from the end of the one before.
        if progress.stage_step:
            return restore_state(state, saved, self.mesh)
        if step.stage.keep_moments:
            return restore_moments(state, saved, self.mesh)
        return state

    def _restore_best(
        self, stage: Stage, progress: TrainProgress, variables: Variables, saved: SavedState
    ) -> tuple[Variables, SavedState]:
        """What the next stage starts from: the last epoch of this one, or its best."""
        best = best_step(progress.stage_history(stage), stage.monitor)
        if not stage.restore_best or best is None or best == progress.step:
            return variables, saved
        logging.info("%s: back to its best epoch, step %d", stage.name, best)
        kept = self.checkpoints.steps
        # One that is damaged is replaced by the next best: there is no way back to train it again.
        ordered = best_steps(progress.stage_history(stage), kept, stage.monitor)
        checkpoint = self.checkpoints.restore_first(ordered)
        return checkpoint.variables, checkpoint.train

    def _run_stage(
        self, step: TrainStep, state: TrainState, inputs: StageInputs, progress: TrainProgress
    ) -> tuple[Variables, SavedState]:
        """Trains the epochs that are left of a stage, each with validation and a checkpoint."""
        stage = step.stage
        # One iterator for all epochs, so that each begins with batches that have been read ahead.
        batches = inputs.batches(self._batches_left(stage, progress))
        with self._progress_bar(stage, progress) as bar, contextlib.closing(batches):
            while True:
                first = progress.stage_step
                metrics = StepMetrics(
                    step, progress, self.dataset.files, self.log_every, self.write_metrics, bar
                )
                state, timing = self._train_epoch(state, batches, metrics)
                images = min((progress.stage_step - first) * self.batch_size, self._sampler.size)
                timing["images_per_second"] = images / timing["seconds"]
                summary = self._summarize_epoch(step, state, inputs, progress)
                self._log_epoch(stage, summary, timing)
                # In the history before it is saved, and in the log after. If the process is killed
                # before the checkpoint is written, `Workdir.rewind` removes what the log has more.
                progress.end_epoch(summary)
                self._save(step, state, progress)
                self.write_metrics({"kind": "epoch", **summary})
                self.write_timing({"stage": stage.name, "step": progress.step, **timing})
                if self._stop.number:
                    raise self._stop.stopped(progress.step)
                if progress.is_over(stage, self.steps_per_epoch):
                    return step.variables(state), saved_arrays(state)

    def _batches_left(self, stage: Stage, progress: TrainProgress) -> EpochBatches:
        done = progress.stage_step
        start = len(progress.history) * self.steps_per_epoch + done % self.steps_per_epoch
        sampler, stop = self._sampler, start + stage.steps - done
        return EpochBatches(sampler.epoch, sampler.size, self.batch_size, start, stop)

    def _progress_bar(self, stage: Stage, progress: TrainProgress) -> tqdm:
        epochs, steps = divmod(progress.stage_step, self.steps_per_epoch)
        images = self._sampler.size
        total = round(stage.steps / self.steps_per_epoch * images)
        done = min(epochs * images + steps * self.batch_size, total)
        return progress_bar(total, stage.name, initial=done)

    def _train_epoch(
        self, state: TrainState, batches: Iterator[Batch], metrics: StepMetrics
    ) -> tuple[TrainState, dict[str, float]]:
        """Makes the steps that are left of the current epoch; also returns how long they took."""
        started, timing = time.perf_counter(), {"compile_seconds": 0.0}
        step, progress = metrics.step, metrics.progress
        stage = step.stage
        done = progress.stage_step % self.steps_per_epoch
        left = min(self.steps_per_epoch - done, stage.steps - progress.stage_step)
        scale = progress.rate_scale(stage)
        for batch_ids, weight, batch in itertools.islice(batches, left):
            timing["compile_seconds"] += step.compile(batch)
            state, values = step.run_step(state, batch, scale)
            if not self._first_step_at:  # JAX returns before the step is done
                jax.block_until_ready(values)
                timing["first_step_at"] = self._first_step_at = time.time()
                self._compiler.release()
            metrics.add(values, batch_ids[weight > 0])
            if self._should_stop(metrics.last_step):
                metrics.flush()
                # After the last step of an epoch, the stop waits for validation and checkpoint.
                if progress.stage_step % self.steps_per_epoch and progress.stage_step < stage.steps:
                    self._save(step, state, progress)
                    raise self._stop.stopped(progress.step)
        metrics.flush()
        timing["seconds"] = time.perf_counter() - started - timing["compile_seconds"]
        return state, timing

    def _should_stop(self, step: int) -> bool:
        return bool(self._stop.number) or self.checkpoints.reached_preemption(step)

    def _summarize_epoch(
        self, step: TrainStep, state: TrainState, inputs: StageInputs, progress: TrainProgress
    ) -> JsonDict:
        """The results of the epoch that has just been trained, validation included."""
        loss, correct, count = progress.sums
        return {
            "stage": step.stage.name,
            "epoch": (progress.stage_step - 1) // self.steps_per_epoch,
            "global_epoch": len(progress.history),
            "step": progress.step,
            "train_loss": loss / count,
            "train_accuracy": correct / count,
            **self._validate(step.tail_variables(state), inputs),
            "learning_rate": current_rate(step, progress, progress.stage_step - 1),
        }

    def _validate(self, tail: Variables, inputs: StageInputs) -> dict[str, float | None]:
        ids, size = self.split.validation, self.batch_size
        batches = inputs.fixed_batches(ids, size)
        logits = predict_logits(
            self.segmented, tail, self.dataset, ids, size, start=inputs.cut, batches=batches
        )
        labels = self.dataset.labels[ids]
        losses = optax.softmax_cross_entropy_with_integer_labels(jnp.asarray(logits), labels)
        accuracy = (logits.argmax(-1) == labels).mean()
        # They decide when a stage ends and which epoch is best, in all processes alike.
        results = np.array([losses.mean(), accuracy, validation_auc(logits, labels)], np.float64)
        mean_loss, accuracy, auc = broadcast(results).tolist()
        return {
            "validation_loss": mean_loss,
            "validation_accuracy": accuracy,
            "validation_auc": None if np.isnan(auc) else auc,  # NaN is not JSON
        }

    def _save(self, step: TrainStep, state: TrainState, progress: TrainProgress) -> None:
        """Saves a checkpoint of now and keeps the best of the run and of the stage."""
        # The best epoch of the run is what the evaluation reads, that of the stage is what
        # `restore_best` returns to.
        epochs = (progress.history, progress.stage_history(step.stage))
        bests = [best_step(history, step.stage.monitor) for history in epochs]
        keep = [best for best in bests if best is not None]
        # A copy on the devices, because the next step reuses the buffers of this state. The thread
        # that writes copies it to the host.
        copy = copy_state(state)
        self._save_checkpoint(lambda: (step.variables(copy), state_to_save(copy)), progress, keep)

    def _save_checkpoint(
        self, read: ReadState, progress: TrainProgress, keep: Sequence[int] = ()
    ) -> None:
        meta = {"position": dataclasses.asdict(progress), "network": dict(self.network)}
        self.checkpoints.save(progress.step, read, meta, keep=keep, background=True)

    def _log_epoch(self, stage: Stage, summary: JsonDict, timing: Mapping[str, float]) -> None:
        compiled, auc = timing["compile_seconds"], summary["validation_auc"]
        line = (
            f"{stage.name} {summary['epoch'] + 1}/{self._epochs([stage])}: "
            f"loss {summary['train_loss']:.4f}, accuracy {summary['train_accuracy']:.4f} · "
            f"validation loss {summary['validation_loss']:.4f}, "
            f"accuracy {summary['validation_accuracy']:.4f}"
            f"{'' if auc is None else f', AUC {auc:.4f}'} · "
            f"{timing['images_per_second']:.0f} images/s"
        )
        with tqdm.external_write_mode():  # the line must not run into the bar
            after = f" after {compiled:.0f} s of compilation" if compiled > 1 else ""
            logging.info("%s%s", line, after)
