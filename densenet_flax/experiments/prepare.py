"""What training and evaluation both need of a run: its data, its split and its stages."""

import dataclasses
import functools
import json
import os
from pathlib import Path

import jax
import numpy as np
from absl import logging
from flax.traverse_util import flatten_dict

from densenet_flax.common.errors import InputError, errors_in
from densenet_flax.common.sharding import device_kinds, is_first_process, require_equal
from densenet_flax.common.trees import JsonDict
from densenet_flax.common.xla_flags import check_deterministic_kernels
from densenet_flax.data.batching import check_batch_size
from densenet_flax.data.data_summary import format_summary, summarize
from densenet_flax.data.dataset import Dataset
from densenet_flax.data.loading import open_dataset
from densenet_flax.data.splits.policies import make_split
from densenet_flax.data.splits.sampling import Sampler, make_sampler
from densenet_flax.data.splits.split import Split, check_copies_apart, load_split
from densenet_flax.evaluation.metrics.operating_point import check_calibration, check_rule
from densenet_flax.experiments.experiment import ADDED_KEYS, Experiment
from densenet_flax.experiments.extension import find_extensions
from densenet_flax.experiments.from_config import build_model, build_stages
from densenet_flax.models.densenet import DenseNet
from densenet_flax.storage.checkpoint import Checkpoints
from densenet_flax.storage.workdir import Workdir
from densenet_flax.training.prefix_cache import package_digest
from densenet_flax.training.progress import TrainProgress
from densenet_flax.training.stage import Stage
from densenet_flax.weights.hub import pin
from densenet_flax.weights.hub_names import is_hub_name

_LOCAL_KEYS = ("cache_dir", "data.path", "data.storage", "data.workers", "tensorboard")


@dataclasses.dataclass(frozen=True, eq=False)
class PreparedRun:
    """An experiment with all that follows from its data."""

    experiment: Experiment
    workdir: Workdir
    dataset: Dataset
    split: Split
    sampler: Sampler  # which training images an epoch shows
    stages: list[Stage]  # with their lengths in steps

    @property
    def model(self) -> DenseNet:
        """The network with a head for the classes of the data."""
        return build_model(self.experiment.model, len(self.dataset.class_names))

    @functools.cached_property  # opening them creates the directory
    def checkpoints(self) -> Checkpoints:
        """The checkpoints in the work directory."""
        return Checkpoints(self.workdir.checkpoints)


def prepare_run(
    experiment: Experiment, workdir: Workdir, *, to_train: bool = False, weights: str = ""
) -> PreparedRun:
    """Opens and splits the data, checking all that depends on it.

    `to_train` allows the experiment to give the run more epochs; `weights` are what a run that has
    not begun starts from, by default those of its configuration.

    Raises:
      InputError: the configuration, the data or the work directory.
    """
    if workdir.has_begun:  # checked first, as data may take minutes to prepare
        experiment = _by_rules_of_run(experiment, workdir)
        if to_train:
            position = Checkpoints(workdir.checkpoints).read_meta().get("position", {})
            find_extensions(experiment, workdir, TrainProgress(**position))
        else:
            workdir.check(experiment.config, ADDED_KEYS)
    elif to_train:
        experiment = _with_weights(experiment, weights or experiment.model.weights)
    dataset = open_dataset(experiment.data, experiment.cache_directory)
    check_rule(experiment.evaluation.threshold, len(dataset.class_names))
    check_calibration(experiment.evaluation.calibration, len(dataset.class_names))
    split = load_or_make_split(experiment, dataset, workdir, save=True)
    log_data(dataset, split)
    batch_size, group = experiment.batch_size, experiment.split.group
    check_batch_size(len(split.train), batch_size)
    sampler = make_sampler(dataset, split.train, experiment.sampling, experiment.seed, group=group)
    # The frontiers of the stages do not depend on the number of classes.
    model, stages = build_model(experiment.model), experiment.ordered_stages
    if experiment.deterministic:
        check_deterministic_kernels()
    logging.info("device: %d × %s; %s", jax.device_count(), device_kinds(), model.computation)
    built = build_stages(
        stages,
        model,
        examples=sampler.size,
        batch_size=batch_size,
        monitor=experiment.monitor,
    )
    # Before anything is computed together: with other batches, or programs, processes would wait
    # for each other forever, or train on each other's labels.
    require_equal(
        {
            "this package's code": package_digest(),
            "the versions of JAX and NumPy": (jax.__version__, np.__version__),
            "--config": _without_local_keys(experiment.config),
            "the data (config.data)": (dataset.fingerprint, dataset.files, dataset.labels),
            "the split": split.hash,
        }
    )
    return PreparedRun(experiment, workdir, dataset, split, sampler, built)


def _with_weights(experiment: Experiment, weights: str) -> Experiment:
    """The experiment with weights that exist; of those on the Hub, which may change, one commit.

    The configuration stays as it was given, so that the same command resumes the run: from its
    first checkpoint on it needs neither the weights nor the Hub.
    """
    with errors_in("config.model.weights="):
        if is_hub_name(weights):
            weights = pin(weights)
        elif weights not in ("imagenet", "random") and not Path(weights).expanduser().exists():
            raise InputError(
                f"{weights!r}: no such file; expected 'imagenet', 'random', the path of a weights "
                "file or hf://owner/name"
            )
    return dataclasses.replace(
        experiment, model=dataclasses.replace(experiment.model, weights=weights)
    )


def log_data(dataset: Dataset, split: Split) -> None:
    """Logs what the data was taken for, so that a mistake is seen before it costs hours."""
    for line in format_summary(summarize(dataset, split)):
        logging.info("%s", line)


def _by_rules_of_run(experiment: Experiment, workdir: Workdir) -> Experiment:
    """The experiment as it was if an earlier version began the run: same files, same classes."""
    old = flatten_dict(workdir.require_config(), sep=".")
    if experiment.data.name != "folder" or "data.earlier_rules" in old:
        return experiment
    experiment = dataclasses.replace(
        experiment, data=dataclasses.replace(experiment.data, earlier_rules=True)
    )
    if experiment.split.policy == "auto":  # which is what configs/folder.py has now
        policy = old.get("split.policy", "patient")
        config = {**experiment.config, "split": {**experiment.config["split"], "policy": policy}}
        split = dataclasses.replace(experiment.split, policy=policy)
        experiment = dataclasses.replace(experiment, config=config, split=split)
    return experiment


def _without_local_keys(config: JsonDict) -> str:
    """A configuration but for keys that may be others on each host."""
    flat = flatten_dict(json.loads(json.dumps(config)), sep=".")
    return json.dumps({key: value for key, value in flat.items() if key not in _LOCAL_KEYS})


def load_or_make_split(
    experiment: Experiment, dataset: Dataset, workdir: Workdir, *, save: bool
) -> Split:
    """The split of the work directory once a run has begun there; before, by the configuration."""
    # Once there are checkpoints the file decides and not the rule that made it: no image may ever
    # move from training to test, whatever later versions of the rule would do.
    if workdir.has_begun:
        if os.path.lexists(workdir.split):
            split = load_split(workdir.split, dataset)
            if dataset.awaits_test and not experiment.split.allow_copies:
                check_copies_apart(split, dataset)
            return split
        logging.warning("%s: missing; it is made again by the configuration", workdir.split)
    split = make_split(dataset, experiment.split)
    if not save or not is_first_process():  # the first one writes the same
        return split
    split.save(workdir.split)
    return load_split(workdir.split, dataset)  # and checks what was written
