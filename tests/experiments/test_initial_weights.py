"""The variables that a run starts from."""

import dataclasses

import jax
import numpy as np
import pytest

from densenet_flax.data.batching import epoch_order
from densenet_flax.experiments.from_config import build_model, resolve
from densenet_flax.experiments.initial_weights import initial_variables
from densenet_flax.models.densenet import NETWORKS
from densenet_flax.models.init import init_variables
from densenet_flax.models.preprocessing import preprocess_input
from densenet_flax.weights import WeightsInfo, save_weights
from tests.configs import tiny


@pytest.fixture
def experiment():
    return resolve(tiny.get_config())


def test_random_weights_get_the_statistics_of_training_images(experiment, dataset, split):
    """Without them the frozen features would hardly differ between images."""
    model = build_model(experiment.model)
    variables, info = initial_variables(experiment, model, dataset, split)
    assert info.source == "random" and info.class_names == dataset.class_names
    drawn = init_variables(model, experiment.seed)
    jax.tree.map(np.testing.assert_array_equal, variables["params"], drawn["params"])

    # There are fewer than 64 training images, so all of them are measured.
    rows = np.sort(split.train[epoch_order(len(split.train), experiment.seed, 0)[:64]])
    x = preprocess_input(dataset.images[rows])
    kernel = variables["params"]["conv1"]["conv"]["kernel"]
    stem = jax.lax.conv_general_dilated(
        x, kernel, (2, 2), [(3, 3), (3, 3)], dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    statistics = variables["batch_stats"]["conv1"]["bn"]
    np.testing.assert_allclose(statistics["mean"], stem.mean((0, 1, 2)), atol=1e-4)
    np.testing.assert_allclose(statistics["var"], stem.var((0, 1, 2)), rtol=1e-3)

    @jax.jit
    def features(batch_stats):
        values = {"params": drawn["params"], "batch_stats": batch_stats}
        return model.apply(values, x, stop="head")

    def spread_between_images(batch_stats):
        array = np.asarray(features(batch_stats))
        pooled = array.reshape(len(x), -1, array.shape[-1]).mean(1)
        return np.median(pooled.std(0) / (pooled.mean(0) + 1e-6))

    measured = spread_between_images(variables["batch_stats"])
    assert measured > 3 * spread_between_images(drawn["batch_stats"])


def test_a_pretrained_backbone_gets_a_random_head(
    experiment, dataset, split, tmp_path, tiny, tiny_variables, monkeypatch
):
    monkeypatch.setitem(NETWORKS, "tiny", tiny.clone)
    backbone = {
        kind: {name: tree for name, tree in units.items() if name != "head"}
        for kind, units in tiny_variables.items()
    }
    bare = tiny.clone(num_classes=0, hidden=(), epsilon=1e-5, final_relu=False)
    file = tmp_path / "pretrained.safetensors"
    save_weights(file, backbone, dataclasses.replace(WeightsInfo.of(bare), preprocessing="scale"))

    model = build_model(experiment.model)
    config = dataclasses.replace(experiment.model, weights=str(file))
    pretrained = dataclasses.replace(experiment, model=config)
    variables, info = initial_variables(pretrained, model, dataset, split)
    assert (info.epsilon, info.final_relu, info.preprocessing) == (1e-5, False, "scale")
    assert info.inference.image_size == (32, 32) and info.inference.patient_group == "case70"
    head = init_variables(model, experiment.seed)["params"]["head"]
    expected = {**backbone, "params": {**backbone["params"], "head": head}}
    jax.tree.map(np.testing.assert_array_equal, dict(variables), expected)
