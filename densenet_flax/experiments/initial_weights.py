"""The variables that a run starts from, and what a user of the trained network must know."""

import os

import jax
import numpy as np
from absl import logging
from jaxtyping import UInt8

from densenet_flax.common.sharding import broadcast, is_first_process
from densenet_flax.common.trees import Variables
from densenet_flax.data.batching import epoch_order
from densenet_flax.data.dataset import Dataset
from densenet_flax.data.splits.split import Split
from densenet_flax.experiments.experiment import Experiment
from densenet_flax.models import frontier
from densenet_flax.models.densenet import DenseNet
from densenet_flax.models.init import draw_variables
from densenet_flax.models.preprocessing import preprocess_input
from densenet_flax.weights.inference_settings import InferenceSettings
from densenet_flax.weights.info import InfoFields, WeightsInfo
from densenet_flax.weights.layout import Layout
from densenet_flax.weights.load import load_backbone

# Each gives many positions to the mean and the variance of a channel.
_CALIBRATION_IMAGES = 64


def initial_variables(
    experiment: Experiment, model: DenseNet, dataset: Dataset, split: Split
) -> tuple[Variables, WeightsInfo]:
    """A pretrained backbone with a random head, or all random; and what checkpoints say of them.

    Raises:
      InputError: the weights file cannot be read or is of another network.
    """
    source, seed = experiment.model.weights, experiment.seed
    variables: Variables = draw_variables(Layout.of(model).shapes(), seed)
    if source == "random":
        logging.warning("starting from random weights: config.model.weights is 'random'")
        order = epoch_order(len(split.train), seed, 0)
        # Sorted, because the images may lie in a file, which is read fastest in its order.
        rows = np.sort(split.train[order[:_CALIBRATION_IMAGES]])
        statistics = variables["batch_stats"]
        if is_first_process():
            statistics = measure_batch_stats(model, variables, dataset.images[rows])
        variables = {**variables, "batch_stats": broadcast(statistics)}
        origin: InfoFields = {"source": "random"}
    else:
        verify = experiment.model.verify_weights
        backbone, origin = load_backbone(os.path.expanduser(source), model, verify=verify)
        # A backbone has no head, so the one that was drawn stays.
        variables = {kind: {**tree, **backbone[kind]} for kind, tree in variables.items()}
    (height, width), field = dataset.images.shape[1:3], dataset.field
    inference = InferenceSettings(
        image_size=(height, width),
        stain=dataset.stain,
        bits=experiment.data.bits,
        dtype=experiment.model.dtype,
        patient_group=split.policy.group,
        patient_pattern=experiment.data.patient_pattern,
        patient_source=dataset.provenance.patient_source,
        merge_patients=experiment.data.similar_names == "merge",
        mpp=field.mpp if field else None,
        field_um=field.size_um if field else None,
    )
    fields: InfoFields = {**origin, "class_names": dataset.class_names, "inference": inference}
    return variables, WeightsInfo.of(model, **fields)


def measure_batch_stats(
    model: DenseNet, variables: Variables, images: UInt8[np.ndarray, "N H W 3"]
) -> Variables:
    """The BatchNorm statistics of random weights on one batch of images.

    The initial ones, mean 0 and variance 1, describe nothing: stages that keep them frozen would
    see features that hardly differ between images.
    """
    all_norms = frontier.resolve("all", model.blocks).train_norms
    # Momentum 0 replaces the statistics by those of the batch.
    backbone = model.clone(num_classes=0, momentum=0.0)

    def measure(variables: Variables, images: jax.Array) -> Variables:
        x = preprocess_input(images)
        _, updated = backbone.apply(variables, x, train_norms=all_norms, mutable=["batch_stats"])
        return updated["batch_stats"]

    return jax.tree.map(np.asarray, jax.jit(measure)(variables, images))


def with_weights_info(model: DenseNet, info: WeightsInfo) -> DenseNet:
    """The network with the epsilon and the last ReLU that the weights were trained with."""
    return model.clone(epsilon=info.epsilon, final_relu=info.final_relu)
