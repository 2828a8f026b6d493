"""From a configuration to a network, its first weights, its stages and its loss."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from densenet_flax.common.errors import InputError
from densenet_flax.data.augmentation.views import settings_for
from densenet_flax.data.batching import epoch_order
from densenet_flax.data.dataset import Dataset
from densenet_flax.data.splits.sampling import Sampler, make_sampler
from densenet_flax.data.splits.split import Split
from densenet_flax.models import frontier
from densenet_flax.models.densenet import NETWORKS, REMAT, DenseNet
from densenet_flax.models.init import draw_variables
from densenet_flax.models.preprocessing import preprocess_input
from densenet_flax.training.input_pipeline import Views
from densenet_flax.training.optimizer import OptimizerSettings, duration_to_steps
from densenet_flax.training.stage import Loss, Stage
from densenet_flax.weights import InferenceSettings, WeightsInfo
from densenet_flax.weights.layout import Layout
from densenet_flax.weights.load import load_with_info, open_source

_DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
_CALIBRATION_IMAGES = 64


def build_model(config: ConfigDict, num_classes: int = 2) -> DenseNet:
    """The network of a configuration, with a head.

    Args:
      config: see `configs/keras_recipe.py`.
      num_classes: of the data.

    Raises:
      InputError: an unknown network or number format, or a head that cannot be.
    """
    name, dtype = config.model.name, config.model.dtype
    if name not in NETWORKS:
        raise InputError(f"config.model.name={name!r}: expected one of {', '.join(NETWORKS)}")
    if dtype not in _DTYPES:
        raise InputError(f"config.model.dtype={dtype!r}: expected one of {', '.join(_DTYPES)}")
    if config.model.remat not in REMAT:
        raise InputError(
            f"config.model.remat={config.model.remat!r}: expected one of {', '.join(REMAT)}"
        )
    hidden = tuple(config.model.hidden)
    if any(size < 1 for size in hidden) or not 0 <= config.model.dropout < 1:
        raise InputError("config.model: hidden sizes must be positive and dropout in [0, 1)")
    return NETWORKS[name](
        num_classes=num_classes,
        hidden=hidden,
        dropout=config.model.dropout,
        momentum=config.model.bn_momentum,
        dtype=_DTYPES[dtype],
        remat=config.model.remat,
    )


def build_stages(config: ConfigDict, examples: int) -> list[Stage]:
    """The stages that `config.stage_order` names.

    Args:
      config: see `configs/keras_recipe.py`.
      examples: training images, which are an epoch.

    Raises:
      InputError: no stage, or one that makes no sense; the message names the key.
    """
    blocks = build_model(config).blocks
    if not config.stage_order:
        raise InputError("config.stage_order is empty: a run needs at least one stage")
    if len(set(config.stage_order)) < len(config.stage_order):  # names tell epochs apart
        raise InputError(
            f"config.stage_order={config.stage_order}: expected each name once; give a stage that "
            "runs twice two names"
        )
    stages = []
    for name in config.stage_order:
        if name not in config.stages:
            raise InputError(
                f"config.stage_order names {name!r}, but config.stages has "
                f"{', '.join(config.stages)}"
            )
        try:
            stages.append(_build_stage(name, config, blocks, examples))
        except ValueError as error:
            raise InputError(f"config.stages.{name}: {error}") from error
    return stages


def _build_stage(name: str, config: ConfigDict, blocks: Sequence[int], examples: int) -> Stage:
    stage = config.stages[name]
    in_steps = functools.partial(duration_to_steps, examples=examples, batch_size=config.batch_size)
    steps = in_steps(stage.duration)
    settings = OptimizerSettings(
        learning_rate=stage.learning_rate,
        name=stage.optimizer,
        schedule=stage.schedule,
        warmup=in_steps(stage.warmup, total=steps),
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
        frontier=frontier.resolve(stage.unfreeze_from, blocks, bn_mode=stage.bn_mode),
        steps=steps,
        optimizer=settings,
        keep_moments=stage.keep_moments,
        patience=stage.patience,
        restore_best=stage.restore_best,
    )


def build_sampler(config: ConfigDict, dataset: Dataset, train: np.ndarray) -> Sampler:
    """Which training images an epoch shows.

    Raises:
      InputError: a rule that there is not, or that the data cannot follow.
    """
    return make_sampler(dataset, train, config.sampling, config.seed, group=config.split.group)


def build_views(config: ConfigDict, dataset: Dataset, train: np.ndarray) -> Views:
    """How training images are augmented.

    Where stains are jittered and `stain_statistics` are not given, they are measured on the
    training images, as RandStainNA does.

    Raises:
      InputError: a setting that there is not, or one that makes no sense.
    """
    settings = settings_for(config.augment, dataset, train)
    return Views(settings, config.augment.views, config.seed)


def build_loss(config: ConfigDict, labels: np.ndarray) -> Loss:
    """The loss of a configuration, given the labels of the training images.

    Raises:
      InputError: an option that makes no sense.
    """
    if config.seed < 0:
        raise InputError(f"config.seed={config.seed}: expected 0 or a positive number")
    if not 0 <= config.label_smoothing < 1 or not 0 <= config.ema_decay < 1:
        raise InputError("config.label_smoothing and config.ema_decay: expected 0 to below 1")
    wanted, classes = config.class_weights, np.unique(labels)
    weights: tuple[float, ...] = ()
    if wanted == "balanced":
        from sklearn.utils.class_weight import compute_class_weight  # slow to import

        balanced = compute_class_weight("balanced", classes=classes, y=labels)
        weights = tuple(float(weight) for weight in balanced)
    elif wanted != "none":
        try:
            weights = tuple(float(part) for part in wanted.split(","))
        except ValueError:
            weights = ()
        if len(weights) != len(classes) or min(weights) < 0:
            raise InputError(
                f"config.class_weights={wanted!r}: expected 'none', 'balanced' or "
                f"{len(classes)} numbers with a comma between"
            )
    return Loss(config.label_smoothing, weights)


def initial_variables(
    config: ConfigDict, model: DenseNet, dataset: Dataset, split: Split
) -> tuple[dict[str, Any], WeightsInfo]:
    """Pretrained backbone and random head, or all random; and what the network means.

    A random backbone gets BatchNorm statistics from one batch of training images: the initial
    ones, mean 0 and variance 1, describe nothing, and the stages that keep them frozen would see
    features that hardly differ between images.
    """
    variables = draw_variables(Layout.of(model).shapes(), config.seed)
    about = {
        "class_names": tuple(dataset.class_names),
        "inference": InferenceSettings(
            image_size=tuple(config.data.image_size),
            stain=dataset.stain,
            dtype=config.model.dtype,
            patient_group=split.policy.group,
            patient_pattern=config.data.get("patient_pattern", ""),
        ),
    }
    source = config.model.weights
    if source != "random":
        if source != "imagenet":
            with open_source(source) as file:  # what these weights were trained in
                meaning = {"epsilon": 1.001e-5, "final_relu": True, **file.meaning}
            model = model.clone(epsilon=meaning["epsilon"], final_relu=meaning["final_relu"])
        backbone, found = load_with_info(source, model, ignore_head=True)
        kept = ("preprocessing", "epsilon", "final_relu", "source", "sha256", "license")
        origin = {name: getattr(found, name) for name in kept}
        merged = {name: {**tree, **backbone[name]} for name, tree in variables.items()}
        return merged, WeightsInfo.of(model, **about, **origin)

    logging.warning("starting from random weights: config.model.weights is 'random'")
    order = epoch_order(len(split.train), config.seed, 0)
    images = dataset.images[np.sort(split.train[order[:_CALIBRATION_IMAGES]])]
    everything = frontier.resolve("all", model.blocks).train_norms
    backbone_alone = model.clone(num_classes=0, momentum=0.0)  # 0: take the batch's statistics

    @jax.jit
    def statistics(variables, images):
        x = preprocess_input(images)
        return backbone_alone.apply(variables, x, train_norms=everything, mutable=["batch_stats"])[
            1
        ]

    measured = jax.tree.map(np.asarray, statistics(variables, images))
    return {**variables, **measured}, WeightsInfo.of(model, source="random", **about)


def as_trained(model: DenseNet, info: WeightsInfo) -> DenseNet:
    """The configuration's network with what the weights brought along."""
    return model.clone(epsilon=info.epsilon, final_relu=info.final_relu)
