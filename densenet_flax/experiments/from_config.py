"""From a configuration to the objects of a run.

A configuration is resolved in two steps, so that a mistake in it is found before anything slow:

1. `resolve`, from the configuration alone: types, ranges, unknown keys, the network and its units,
   the frontier and the optimizer of each stage. Nothing is read from disk.
2. The builders, once the data set is open and split: the number of classes (`build_model`), the
   steps of a stage (`build_stages`), the weights of the classes (`build_loss`) and the colors of
   the training images (`build_views`).
"""

from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np
from jaxtyping import Int
from ml_collections import ConfigDict

from densenet_flax.common.errors import InputError
from densenet_flax.common.types import JsonDict
from densenet_flax.data.augmentation.color import with_stain_statistics
from densenet_flax.data.augmentation.settings import AugmentConfig
from densenet_flax.data.dataset import Dataset
from densenet_flax.experiments.experiment import Experiment, LossConfig, ModelConfig, StageConfig
from densenet_flax.inference.saliency import next_unit
from densenet_flax.models import frontier
from densenet_flax.models.densenet import NETWORKS, DenseNet
from densenet_flax.training.input_pipeline import Views
from densenet_flax.training.optimizer import OptimizerSettings, duration_to_steps
from densenet_flax.training.stage import Loss, Stage

_DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def resolve(config: ConfigDict | JsonDict) -> Experiment:
    """Reads a configuration and checks all that can be checked without the data.

    Args:
      config: see `configs/keras_recipe.py`; or the content of a run's `config.json`, where keys of
        a later version may be missing and take their default.

    Raises:
      InputError: an unknown key, or a bad value; the message names the key.
    """
    if isinstance(config, ConfigDict):
        config = config.to_dict()
    experiment = Experiment.from_config(config, "config", config=config)
    model = build_model(experiment.model)
    # Any number of examples does: whether a duration makes sense does not depend on it.
    build_stages(experiment.ordered_stages, model, examples=1, batch_size=1)
    unit = experiment.evaluation.explain
    if unit:
        try:
            next_unit(model, unit)
        except InputError as error:
            raise InputError(f"config.explain: {error}") from error
    return experiment


def build_model(config: ModelConfig, num_classes: int = 2) -> DenseNet:
    """The network of a configuration with a head for `num_classes`."""
    return NETWORKS[config.name](
        num_classes=num_classes,
        hidden=config.hidden,
        dropout=config.dropout,
        momentum=config.bn_momentum,
        dtype=_DTYPES[config.dtype],
        remat=config.remat,
        implementation=None if config.implementation == "auto" else config.implementation,
    )


def build_stages(
    stages: Mapping[str, StageConfig], model: DenseNet, *, examples: int, batch_size: int
) -> list[Stage]:
    """The stages of a run with their lengths in steps.

    Args:
      stages: by name, in their order.
      model: whose units their frontiers are.
      examples: in an epoch.
      batch_size: examples in a step.

    Raises:
      InputError: a bad value; the message names the stage and the key.
    """
    built = []
    for name, stage in stages.items():
        try:
            built.append(_build_stage(name, stage, model, examples, batch_size))
        except ValueError as error:
            raise InputError(f"config.stages.{name}.{error}") from error
    return built


def _build_stage(
    name: str, stage: StageConfig, model: DenseNet, examples: int, batch_size: int
) -> Stage:
    def in_steps(key: str, total: int | None = None) -> int:
        duration = getattr(stage, key)
        try:
            return duration_to_steps(
                duration, examples=examples, batch_size=batch_size, total=total
            )
        except ValueError as error:
            raise ValueError(f"{key}: {error}") from error

    steps = in_steps("duration")
    optimizer = OptimizerSettings(
        learning_rate=stage.learning_rate,
        name=stage.optimizer,
        schedule=stage.schedule,
        warmup=in_steps("warmup", total=steps),
        weight_decay=stage.weight_decay,
        momentum=stage.momentum,
        clip_norm=stage.clip_norm,
        layer_decay=stage.layer_decay,
        accumulate=stage.accumulate,
        plateau_factor=stage.plateau_factor,
        plateau_patience=stage.plateau_patience,
    )
    return Stage(
        name=name,
        frontier=frontier.resolve(stage.unfreeze_from, model.blocks, bn_mode=stage.bn_mode),
        steps=steps,
        optimizer=optimizer,
        keep_moments=stage.keep_moments,
        patience=stage.patience,
        restore_best=stage.restore_best,
    )


def build_views(
    config: AugmentConfig, dataset: Dataset, rows: Int[np.ndarray, " N"], seed: int
) -> Views:
    """How training images are augmented.

    Args:
      config: how to augment. Where stains are jittered and `stain_statistics` is empty, they are
        measured on the training images, as RandStainNA does.
      dataset: where the images are.
      rows: the training subset.
      seed: of the run.
    """
    return Views(with_stain_statistics(config.settings, dataset, rows), config.views, seed)


def build_loss(config: LossConfig, labels: Int[np.ndarray, " N"]) -> Loss:
    """The loss, given the labels of the training images.

    Raises:
      InputError: the number of class weights is not that of the classes.
    """
    classes, images = np.unique(labels, return_counts=True)
    weights = config.listed_weights
    if config.class_weights == "balanced":
        # Every class gets the same total weight, and an image 1 on average.
        weights = tuple((len(labels) / (len(classes) * images)).tolist())
    if weights and len(weights) != len(classes):
        raise InputError(
            f"config.class_weights={config.class_weights!r}: expected 'none', 'balanced' or "
            f"{len(classes)} numbers, one for each class, with commas between"
        )
    return Loss(config.label_smoothing, weights)
