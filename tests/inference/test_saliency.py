"""Saliency maps against their definitions, and the test of maps by shuffled weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from densenet_flax.common.errors import InputError
from densenet_flax.common.sharding import make_mesh
from densenet_flax.inference import saliency
from densenet_flax.inference.saliency import (
    cascading_units,
    is_cam,
    mean_rank_correlation,
    next_unit,
    saliency_maps,
    sanity_check,
    shuffle_weights,
)
from densenet_flax.inference.segments import SegmentedModel
from densenet_flax.models.densenet import DenseNet
from densenet_flax.models.init import init_variables
from densenet_flax.models.preprocessing import preprocess_input
from tests.helpers.networks import TINY_BLOCKS, randomize

IMAGES = np.random.default_rng(0).integers(0, 256, (3, 64, 96, 3), np.uint8)
TARGET = np.array([1, 0, 2])


def network(**kwargs):
    model = DenseNet(blocks=TINY_BLOCKS, num_classes=3, **kwargs)
    return model, randomize(init_variables(model, seed=1), seed=2)


@pytest.fixture(scope="module")
def linear():
    return network()


@pytest.fixture(scope="module")
def deep():
    return network(hidden=(8,), dropout=0.5)


def run(network, **kwargs):
    model, variables = network
    return saliency_maps(SegmentedModel(model, make_mesh()), variables, IMAGES, TARGET, **kwargs)


def scores(logits):
    """The target's logit minus the mean of the others, for each image."""
    rows = np.arange(len(TARGET))
    others = (logits.sum(1) - logits[rows, TARGET]) / (logits.shape[1] - 1)
    return logits[rows, TARGET] - others


def test_a_cam_decomposes_the_score_exactly(linear):
    model, variables = linear
    maps = run(linear)
    assert maps.shape == (3, 2, 3) and is_cam(model, "norm")
    bias = np.asarray(variables["params"]["head"]["predictions"]["bias"])
    logits = np.asarray(model.apply(variables, preprocess_input(IMAGES)))
    expected = scores(logits) - scores(np.tile(bias, (3, 1)))
    assert np.allclose(maps.mean((1, 2)), expected, atol=1e-5)
    # A position contributes what the score loses when its features are removed.
    x = np.array(model.apply(variables, preprocess_input(IMAGES), stop="head"))
    x[:, 1, 2] = 0
    without = np.asarray(model.apply(variables, x, start="head"))
    assert np.allclose(scores(logits) - scores(without), maps[:, 1, 2] / 6, atol=1e-5)


def test_cam_and_grad_cam_are_equal_where_both_exist(linear):
    exact = run(linear)
    model, variables = linear
    segmented = SegmentedModel(model, make_mesh())
    x = segmented.run(variables, IMAGES, stop="norm")
    features = model.apply(variables, x, start="norm", stop="head")
    contrast = saliency.contrast(jnp.asarray(TARGET), 3)

    def score(features):
        return jnp.sum(model.apply(variables, features, start="head") * contrast)

    weight = jax.grad(score)(features).sum((1, 2))
    assert np.allclose(jnp.einsum("nhwc,nc->nhw", features, weight), exact, atol=1e-5)


def test_grad_cam_through_a_hidden_layer(deep):
    """Against the gradient of a Dense, ReLU, Dense head written by hand."""
    model, variables = deep
    features = np.asarray(model.apply(variables, preprocess_input(IMAGES), stop="head"))
    first, last = (variables["params"]["head"][name] for name in ("dense_1", "predictions"))
    hidden = features.mean((1, 2)) @ first["kernel"] + first["bias"]
    maps = run(deep)
    for i, target in enumerate(TARGET):
        contrast = np.full(3, -0.5)
        contrast[target] = 1
        weight = first["kernel"] @ ((hidden[i] > 0) * (last["kernel"] @ contrast))
        assert np.allclose(maps[i], features[i] @ weight, atol=1e-5)
    assert not is_cam(model, "norm")


@pytest.mark.parametrize(("unit", "shape"), [("conv4_block3", (4, 6)), ("stem", (16, 24))])
def test_grad_cam_of_any_unit(deep, unit, shape):
    model, variables = deep
    maps = run(deep, unit=unit)
    assert maps.shape == (3, *shape)
    after = next_unit(model, unit)
    x = model.apply(variables, preprocess_input(IMAGES), stop=after)

    def score(x):
        logits = model.apply(variables, x, start=after)
        picked = logits[jnp.arange(3), TARGET]
        return jnp.sum(picked - (logits.sum(1) - picked) / 2)

    weight = jax.grad(score)(x).sum((1, 2))
    assert np.allclose(maps, jnp.einsum("nhwc,nc->nhw", x, weight), atol=1e-4)


def test_a_constant_added_to_all_logits_changes_no_map(linear):
    model, variables = linear
    head = variables["params"]["head"]["predictions"]
    shift = np.random.default_rng(3).normal(0, 1, (head["kernel"].shape[0], 1))
    shifted = {**head, "kernel": np.asarray(head["kernel"] + shift, np.float32)}
    params = {**variables["params"], "head": {"predictions": shifted}}
    same = run((model, {**variables, "params": params}))
    assert np.allclose(same, run(linear), atol=1e-4)


def test_the_known_input_of_the_norm_replaces_the_images(linear):
    model, variables = linear
    segmented = SegmentedModel(model, make_mesh())
    norm_input = segmented.run(variables, IMAGES, stop="norm")
    maps = saliency_maps(segmented, variables, None, TARGET, norm_input=norm_input)
    assert np.array_equal(maps, run(linear))


def test_an_unknown_unit_is_rejected(deep):
    model, _ = deep
    assert next_unit(model, "conv3_block2") == "pool3" and next_unit(model, "norm") == "head"
    for name in ("head", "conv9", ""):
        with pytest.raises(InputError, match=r"expected a unit of the backbone, such as norm"):
            next_unit(model, name)


def test_the_cascade_runs_from_the_head_to_the_stem_and_omits_no_unit(deep):
    model, _ = deep
    steps = cascading_units(model)
    assert [name for name, _ in steps] == ["head", "conv5", "conv4", "conv3", "conv2", "stem"]
    assert set(steps[-1][1]) == set(model.units)
    order = [model.units.index(unit) for unit in steps[-1][1]]
    assert order == sorted(order, reverse=True)
    assert "norm" in steps[1][1] and "pool4" in steps[2][1] and "pool4" not in steps[1][1]


def test_shuffled_tensors_keep_their_values_and_lose_their_order(deep):
    _, variables = deep
    shuffled = shuffle_weights(variables, ["head", "norm"])
    flat = lambda tree: jax.tree_util.tree_leaves_with_path(tree)  # noqa: E731
    for (path, before), (_, after) in zip(flat(variables), flat(shuffled), strict=True):
        touched = path[1].key in ("head", "bn")
        assert np.array_equal(np.sort(np.ravel(before)), np.sort(np.ravel(after)))
        assert np.array_equal(before, after) or touched
        if touched and np.ptp(before) > 0:
            assert not np.array_equal(before, after)


def test_rank_correlation_of_maps():
    maps = np.random.default_rng(5).normal(size=(4, 3, 5))
    assert mean_rank_correlation(maps, 3 * maps - 1) == pytest.approx(1)
    assert mean_rank_correlation(maps, -maps) == pytest.approx(-1)
    assert mean_rank_correlation(maps, np.zeros_like(maps)) == 0
    half = np.concatenate([maps[:2], -maps[2:]])
    assert mean_rank_correlation(maps, half) == pytest.approx(0)
    assert mean_rank_correlation(maps[:, :1, :1], maps[:, :1, :1]) is None


def test_the_sanity_check_reports_every_step_of_the_cascade(deep):
    model, variables = deep
    segmented = SegmentedModel(model, make_mesh())
    maps = run(deep)
    correlations = sanity_check(segmented, variables, IMAGES, TARGET, maps)
    assert list(correlations) == ["head", "conv5", "conv4", "conv3", "conv2", "stem"]
    assert all(-1 <= value < 0.999 for value in correlations.values())
    assert mean_rank_correlation(maps, run(deep)) == pytest.approx(1)


@pytest.mark.parametrize("hidden", [(), (8,)], ids=["CAM", "Grad-CAM"])
def test_maps_are_summed_in_full_precision(hidden, linear, deep):
    """The default is bfloat16 on a TPU and TF32 on a GPU, which no test on a CPU would see."""
    model, variables = deep if hidden else linear
    x = jnp.ones((3, 2, 3, model.input_shape("norm", IMAGES.shape)[-1]))

    def maps(variables, x, target):
        return saliency._weighted_channels(model, variables, x, target, start="norm", after="head")

    jaxpr = str(jax.make_jaxpr(maps)(variables, x, jnp.asarray(TARGET)))
    assert "Precision.HIGHEST" in jaxpr
