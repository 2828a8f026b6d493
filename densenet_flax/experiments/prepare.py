"""What training and evaluation both need of a run: its data, its split and its stages."""

import dataclasses
import functools

from densenet_flax.common.sharding import is_first_process
from densenet_flax.data.batching import check_batch_size
from densenet_flax.data.dataset import Dataset
from densenet_flax.data.loading import open_dataset
from densenet_flax.data.splits.policies import make_split
from densenet_flax.data.splits.sampling import Sampler, make_sampler
from densenet_flax.data.splits.split import Split, load_split
from densenet_flax.evaluation.metrics.operating_point import check_rule
from densenet_flax.experiments.experiment import ADDED_KEYS, Experiment
from densenet_flax.experiments.from_config import build_model, build_stages
from densenet_flax.models.densenet import DenseNet
from densenet_flax.storage.checkpoint import Checkpoints
from densenet_flax.storage.workdir import Workdir
from densenet_flax.training.stage import Stage


@dataclasses.dataclass(frozen=True, eq=False)
class PreparedRun:
    """An experiment with all that follows from its data.

    Attributes:
      experiment: the resolved configuration.
      workdir: where the run is kept.
      dataset: the images.
      split: which of them train, validate and test.
      sampler: which training images an epoch shows.
      stages: with their lengths in steps.
    """

    experiment: Experiment
    workdir: Workdir
    dataset: Dataset
    split: Split
    sampler: Sampler
    stages: list[Stage]

    @property
    def model(self) -> DenseNet:
        """The network with a head for the classes of the data."""
        return build_model(self.experiment.model, len(self.dataset.class_names))

    @functools.cached_property
    def checkpoints(self) -> Checkpoints:
        """Those of the work directory, which is created if it does not exist."""
        return Checkpoints(self.workdir.checkpoints)


def prepare_run(experiment: Experiment, workdir: Workdir) -> PreparedRun:
    """Opens and splits the data, checking all that depends on it.

    The split is that of the work directory once a run has begun there; before, it is made by the
    configuration and kept.

    Raises:
      InputError: the configuration, the data or the work directory.
    """
    has_begun = workdir.has_begun
    if has_begun:  # checked first, as data may take minutes to prepare
        workdir.check(experiment.config, ADDED_KEYS)
    dataset = open_dataset(experiment.data, experiment.cache_directory)
    check_rule(experiment.evaluation.threshold, len(dataset.class_names))
    # Once there are checkpoints the file decides and not the rule that made it: no image may ever
    # move from training to test, whatever later versions of the rule would do.
    if has_begun and workdir.split.exists():
        split = load_split(workdir.split, dataset)
    else:
        split = _make_and_save_split(experiment, dataset, workdir)
    check_batch_size(len(split.train), experiment.batch_size)
    sampler = make_sampler(
        dataset,
        split.train,
        experiment.sampling,
        experiment.seed,
        group=experiment.split.group,
    )
    stages = build_stages(
        experiment.ordered_stages,
        build_model(experiment.model),
        examples=sampler.size,
        batch_size=experiment.batch_size,
    )
    return PreparedRun(experiment, workdir, dataset, split, sampler, stages)


def _make_and_save_split(experiment: Experiment, dataset: Dataset, workdir: Workdir) -> Split:
    split = make_split(dataset, experiment.split)
    if not is_first_process():
        return split  # the first one writes the same
    split.save(workdir.split)
    return load_split(workdir.split, dataset)  # and checks what was written
