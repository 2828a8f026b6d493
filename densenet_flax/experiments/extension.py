"""More epochs for a run: the one change of a configuration that is no other run.

A run is a function of configuration, data and step. A longer `duration` of the stage that it is in,
or of one that has not begun, and a longer `patience`, change no step that is done, so a run that is
extended ends with the same bits as one that was that long from the start. There is one exception, a
schedule that depends on the length of the stage (a cosine, a warm-up in per cent). Such a stage
goes on with the schedule of the new length from the step that it is at, and the report says so.
"""

import dataclasses
from typing import Any

from absl import logging

from densenet_flax.common.errors import InputError
from densenet_flax.common.sharding import is_first_process
from densenet_flax.experiments.experiment import ADDED_KEYS, Experiment, StageConfig
from densenet_flax.storage.workdir import Workdir
from densenet_flax.training.optimizer import parse_duration
from densenet_flax.training.progress import TrainProgress
from densenet_flax.training.stage import Stage

_KEYS = ("duration", "patience")


@dataclasses.dataclass(frozen=True)
class Extension:
    """A change that gives a stage more epochs.

    Attributes:
      step: of the whole run, at which it was made.
      stage: its name.
      key: 'duration' or 'patience'.
      before, after: the values.
      exact: whether the steps before it were those of a run that was that long from the start.
    """

    step: int
    stage: str
    key: str
    before: str | int
    after: str | int
    exact: bool

    def describe(self) -> str:
        """One line for the log and the report."""
        change = f"{self.key} {self.before} is now {self.after}"
        line = f"{self.stage} was extended at step {self.step}: {change}"
        if self.exact:
            return line
        return f"{line}; until then its learning rate followed the schedule of the shorter stage"


def find_extensions(
    experiment: Experiment, workdir: Workdir, progress: TrainProgress
) -> list[Extension]:
    """The extensions that the configuration makes to the run in the directory.

    Raises:
      InputError: the directory belongs to another configuration.
    """
    changes = workdir.changes(experiment.config, ADDED_KEYS)
    extensions = []
    for index, (name, stage) in enumerate(experiment.ordered_stages.items()):
        for key in _KEYS:
            full_key = f"stages.{name}.{key}"
            before, after = changes.get(full_key, (None, None))
            if index < progress.stage or not _is_longer(key, before, after):
                continue
            has_begun = index == progress.stage and progress.stage_step > 0
            exact = key != "duration" or not has_begun or not _depends_on_length(stage)
            extensions.append(Extension(progress.step, name, key, before, after, exact))
    accepted = [f"stages.{extension.stage}.{extension.key}" for extension in extensions]
    workdir.check(experiment.config, ADDED_KEYS, accepted)
    return extensions


def extend(
    experiment: Experiment,
    workdir: Workdir,
    stages: list[Stage],
    progress: TrainProgress,
    steps_per_epoch: int,
) -> None:
    """Makes the configuration that of the work directory, and notes what changed.

    Raises:
      InputError: as `find_extensions`; or the stage cannot go on from where it is.
    """
    extensions = find_extensions(experiment, workdir, progress)
    if not extensions:
        return
    stage = stages[progress.stage]
    if any(extension.stage == stage.name for extension in extensions):
        _check_can_go_on(stage, progress, steps_per_epoch)
    for extension in extensions:
        logging.info("%s", extension.describe())
    if is_first_process():
        # First the note: after a kill between the two the same command writes both again.
        notes = [*read_notes(workdir), *extensions]
        workdir.write_extensions([dataclasses.asdict(note) for note in dict.fromkeys(notes)])
        # All else stays as it was written: a later version may have more keys.
        config = workdir.require_config()
        for extension in extensions:
            config["stages"][extension.stage][extension.key] = extension.after
        workdir.write_config(config)


def _check_can_go_on(stage: Stage, progress: TrainProgress, steps_per_epoch: int) -> None:
    ended = bool(progress.history) and progress.history[-1]["step"] == progress.step
    if ended and progress.stage_step % steps_per_epoch:
        raise InputError(
            f"config.stages.{stage.name}.duration: the stage ended within an epoch, after "
            f"{progress.stage_step} steps of {steps_per_epoch} each, and cannot be extended; only "
            "a stage of whole epochs can; choose another --workdir for a longer run"
        )
    if progress.stage_step < stage.steps and progress.is_over(stage, steps_per_epoch):
        raise InputError(
            f"config.stages.{stage.name}.patience={stage.patience}: the stage ended after "
            f"{progress.stage_step // steps_per_epoch} epochs because the validation "
            f"{stage.monitor} got no better; a longer duration changes nothing unless patience is "
            "larger, too, or 0"
        )


def read_notes(workdir: Workdir) -> list[Extension]:
    """The extensions of a run so far."""
    try:
        return [Extension(**note) for note in workdir.read_extensions()]
    except TypeError as error:
        raise InputError(f"{workdir.extensions}: cannot be read ({error}); put it back") from error


def _is_longer(key: str, before: Any, after: Any) -> bool:
    if key == "patience":
        return isinstance(before, int) and bool(before) and (after == 0 or after > before)
    (old, old_unit), (new, new_unit) = parse_duration(before), parse_duration(after)
    return old_unit == new_unit != "" and new > old


def _depends_on_length(stage: StageConfig) -> bool:
    warmup, unit = parse_duration(stage.warmup)
    return stage.schedule == "cosine" or (unit == "%" and warmup > 0)
