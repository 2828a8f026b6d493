"""From a configuration to the objects of a run.

A configuration is resolved in two steps, so that a mistake in it is found before anything slow:

1. `resolve`, from the configuration alone: types, ranges, unknown keys, the network and its units,
   the frontier and the optimizer of each stage. Nothing is read from disk.
2. The builders, once the data set is open and split: the number of classes (`build_model`), the
   steps of a stage (`build_stages`) and the weights of the classes (`build_loss`).
"""

import dataclasses
from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np
from jaxtyping import Int
from ml_collections import ConfigDict

from densenet_flax.common.errors import InputError, errors_in
from densenet_flax.common.trees import JsonDict
from densenet_flax.data.images.stain_normalization import resolve_settings
from densenet_flax.experiments.experiment import Experiment, LossConfig, ModelConfig, StageConfig
from densenet_flax.inference.saliency import next_unit
from densenet_flax.models import frontier
from densenet_flax.models.densenet import NETWORKS, DenseNet
from densenet_flax.training.optimizer import OptimizerSettings, duration_to_steps, parse_duration
from densenet_flax.training.stage import Loss, Stage

_MIN_IMAGE_SIZE = 32


def resolve(config: ConfigDict | JsonDict) -> Experiment:
    """Reads a configuration and checks all that can be checked without the data.

    In the `config.json` of a run keys of a later version may be missing; they take their default.

    Raises:
      InputError: an unknown key, or a bad value; the message names the key.
    """
    if isinstance(config, ConfigDict):
        config = config.to_dict()
    config = _with_plain_weights(config)
    experiment = Experiment.from_config(config, "config", config=config)
    if min(experiment.data.image_size) < _MIN_IMAGE_SIZE:
        raise InputError(
            f"config.data.image_size={experiment.data.image_size}: expected (height, width) of at "
            f"least {_MIN_IMAGE_SIZE} pixels, as the network halves an image five times"
        )
    model = build_model(experiment.model)
    build_stages(experiment.ordered_stages, model)
    with errors_in("config."):
        resolve_settings(experiment.data.stain, measure=False)
    if experiment.evaluation.explain:
        with errors_in("config.explain: "):
            next_unit(model, experiment.evaluation.explain)
    return experiment


def _with_plain_weights(config: JsonDict) -> JsonDict:
    """Spells `model.weights` as we do: 'ImageNet' is 'imagenet', and Keras's None is 'random'."""
    model = config.get("model")
    if not isinstance(model, dict) or "weights" not in model:
        return config
    plain = {"none": "random", "random": "random", "imagenet": "imagenet"}
    weights = plain.get(str(model["weights"]).lower(), model["weights"])
    return {**config, "model": {**model, "weights": weights}}


def build_model(config: ModelConfig, num_classes: int = 2) -> DenseNet:
    """The network of a configuration with a head for `num_classes`."""
    return NETWORKS[config.name](
        num_classes=num_classes,
        hidden=config.hidden,
        dropout=config.dropout,
        momentum=config.bn_momentum,
        dtype=jnp.dtype(config.dtype),
        remat=None if config.remat == "auto" else config.remat,
        implementation=None if config.implementation == "auto" else config.implementation,
    )


def build_stages(
    stages: Mapping[str, StageConfig],
    model: DenseNet,
    *,
    examples: int | None = None,
    batch_size: int = 1,
    monitor: str = "loss",
) -> list[Stage]:
    """The stages of a run with their lengths in steps, of epochs of so many examples.

    Without the number of examples the lengths mean nothing, and only the settings are checked.

    Raises:
      InputError: a bad value; the message names the stage and the key.
    """
    built = []
    # The message of an invalid value begins with its key.
    for name, stage in stages.items():
        with errors_in(f"config.stages.{name}."):
            built.append(_build_stage(name, stage, model, examples, batch_size))
    return [dataclasses.replace(stage, monitor=monitor) for stage in built]


def _build_stage(
    name: str, stage: StageConfig, model: DenseNet, examples: int | None, batch_size: int
) -> Stage:
    def in_steps(key: str, total: int | None = None) -> int:
        with errors_in(f"{key}: "):
            return duration_to_steps(
                getattr(stage, key), examples=examples or 1, batch_size=batch_size, total=total
            )

    steps = in_steps("duration")
    warmup = in_steps("warmup", total=steps)
    # Epochs and steps can be compared only when the number of examples is known.
    has_same_unit = parse_duration(stage.warmup)[1] == parse_duration(stage.duration)[1]
    is_comparable = examples or has_same_unit
    if warmup > steps > 0 and is_comparable:
        raise InputError(
            f"warmup={stage.warmup!r}: longer than the stage, whose duration is "
            f"{stage.duration!r}; choose a shorter one, or '5%'"
        )
    # The other keys of the optimizer have the same names in both classes.
    keys = {field.name for field in dataclasses.fields(OptimizerSettings)} - {"name", "warmup"}
    return Stage(
        name=name,
        frontier=frontier.resolve(stage.unfreeze_from, model.blocks, bn_mode=stage.bn_mode),
        steps=steps,
        optimizer=OptimizerSettings(
            name=stage.optimizer,
            warmup=warmup,
            **{key: getattr(stage, key) for key in keys},
        ),
        keep_moments=stage.keep_moments,
        patience=stage.patience,
        restore_best=stage.restore_best,
    )


def build_loss(config: LossConfig, labels: Int[np.ndarray, " N"]) -> Loss:
    """The loss for these labels of the training images.

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
