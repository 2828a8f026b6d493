import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import tree_leaves_with_path as leaves_with_path

from densenet_flax.models import densenet as dn
from densenet_flax.models import init, preprocessing, units
from densenet_flax.models.frontier import resolve
from densenet_flax.models.layers import ema_update
from tests.kernels.comparison import assert_close


@pytest.fixture(params=dn.IMPLEMENTATIONS)
def model(request, tiny):
    """The small network, in each implementation."""
    return tiny.clone(implementation=request.param)


def draw_images(n, height=32, width=32, seed=0):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.normal(size=(n, height, width, 3)), jnp.float32)


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def shapes(model):
    return jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))


# Keras's totals, which count the running statistics too; 161 is torchvision's, which does not.
@pytest.mark.parametrize(
    ("make", "without_top", "with_top"),
    [
        (dn.DenseNet121, 7_037_504, 8_062_504),
        (dn.DenseNet169, 12_642_880, 14_307_880),
        (dn.DenseNet201, 18_321_984, 20_242_984),
    ],
)
def test_parameter_totals(make, without_top, with_top):
    assert count(shapes(make())) == without_top
    assert count(shapes(make(num_classes=1000))) == with_top


def test_densenet161_has_torchvisions_parameters():
    assert count(shapes(dn.DenseNet161(num_classes=1000))["params"]) == 28_681_000


def test_parameters_have_keras_names_and_shapes():
    params = shapes(dn.DenseNet201(num_classes=2, hidden=(256,)))["params"]
    assert params["conv4_block23"]["2_conv"]["kernel"].shape == (3, 3, 128, 32)
    assert params["conv1"]["conv"]["kernel"].shape == (7, 7, 3, 64)
    assert params["pool3"]["conv"]["kernel"].shape == (1, 1, 512, 256)
    assert params["bn"]["scale"].shape == (1920,)
    assert params["head"]["dense_1"]["kernel"].shape == (1920, 256)
    assert params["head"]["predictions"]["bias"].shape == (2,)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}


def test_the_line_of_units():
    units = dn.DenseNet201().units
    assert units[0] == "stem" and units[-1] == "norm" and "head" not in units
    assert units.index("conv4_block48") + 1 == units.index("pool4")
    assert len(units) == 1 + 6 + 12 + 48 + 32 + 3 + 1


def test_cutting_the_line_anywhere_changes_nothing(model, tiny_variables):
    x = draw_images(2)
    whole = model.apply(tiny_variables, x)
    for unit in model.units[1:]:
        prefix = model.apply(tiny_variables, x, stop=unit)
        tail = {
            name: units.select_units(tree, model.units[model.units.index(unit) :])
            for name, tree in tiny_variables.items()
        }
        again = model.apply(tail, prefix, start=unit)
        np.testing.assert_allclose(again, whole, rtol=1e-5, atol=1e-6, err_msg=unit)
    pooled = dn.global_average_pool(model.apply(tiny_variables, x, stop="head"))
    np.testing.assert_allclose(model.apply(tiny_variables, pooled, start="head"), whole, rtol=1e-5)


def test_the_backbone_gives_features(model, tiny_variables):
    backbone = model.clone(num_classes=0)
    features = backbone.apply(tiny_variables, jnp.zeros((1, 64, 96, 3)))
    assert features.shape == (1, 2, 3, 144)
    assert float(features.min()) == 0  # a ReLU is last
    bare = backbone.clone(final_relu=False).apply(tiny_variables, jnp.zeros((1, 64, 96, 3)))
    assert float(bare.min()) < 0
    np.testing.assert_array_equal(np.maximum(bare, 0), features)


def test_inference_is_the_default(model, tiny_variables):
    x = draw_images(4)
    together = model.apply(tiny_variables, x)
    alone = jnp.concatenate([model.apply(tiny_variables, x[i : i + 1]) for i in range(4)])
    np.testing.assert_allclose(together, alone, rtol=1e-4, atol=1e-5)


def test_norms_in_training_mode_update_their_statistics_and_no_others(model, tiny_variables):
    x = draw_images(4)
    train_norms = {"conv4_block2_0_bn", "pool4_bn", "bn"}
    _, updated = model.apply(tiny_variables, x, train_norms=train_norms, mutable=["batch_stats"])
    before = dict(jax.tree_util.tree_leaves_with_path(tiny_variables["batch_stats"]))
    moved = {
        "_".join(key.key for key in path[:-1])
        for path, leaf in jax.tree_util.tree_leaves_with_path(updated["batch_stats"])
        if not np.array_equal(leaf, before[path])
    }
    assert moved == train_norms


def test_statistics_move_by_keras_rule(model, tiny_variables):
    x = draw_images(4)
    _, updated = model.apply(tiny_variables, x, train_norms={"conv1_bn"}, mutable=["batch_stats"])
    kernel = tiny_variables["params"]["conv1"]["conv"]["kernel"]
    y = jax.lax.conv_general_dilated(
        x, kernel, (2, 2), ((3, 3), (3, 3)), dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    for name, batch in (("mean", y.mean((0, 1, 2))), ("var", y.var((0, 1, 2)))):
        old = tiny_variables["batch_stats"]["conv1"]["bn"][name]
        new = updated["batch_stats"]["conv1"]["bn"][name]
        np.testing.assert_allclose(new, 0.99 * old + 0.01 * batch, rtol=1e-4, atol=1e-5)


def test_the_batchs_statistics_can_be_had_instead(model, tiny_variables):
    x = draw_images(4)
    train_norms = {"conv4_block2_0_bn", "conv4_block3_1_bn", "pool4_bn", "bn"}
    _, updated = model.apply(
        tiny_variables, x, train_norms=train_norms, mutable=["batch_stats", "mean_var"]
    )
    names = {"_".join(k.key for k in p[:-1]) for p, _ in leaves_with_path(updated["mean_var"])}
    assert names == train_norms
    for path, batch in leaves_with_path(updated["mean_var"]):
        old, new = (
            functools.reduce(lambda tree, key: tree[key.key], path, stats)
            for stats in (tiny_variables["batch_stats"], updated["batch_stats"])
        )
        np.testing.assert_array_equal(ema_update(old, batch, model.momentum), new)


def test_bfloat16_computes_half_and_keeps_float32(model, tiny_variables):
    half = model.clone(dtype=jnp.bfloat16)
    x = draw_images(4)
    assert half.apply(tiny_variables, x, stop="head").dtype == jnp.bfloat16
    logits, updated = half.apply(tiny_variables, x, train_norms={"bn"}, mutable=["batch_stats"])
    assert logits.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(updated)} == {jnp.dtype("float32")}
    expected = model.apply(tiny_variables, x)
    actual = half.apply(tiny_variables, x)
    assert float(jnp.abs(actual - expected).max()) < 0.05 * float(jnp.abs(expected).max())


@pytest.mark.parametrize("implementation", ["fused", "gpu", "tpu"])
@pytest.mark.parametrize("unfreeze_from", ["conv4_block2_1_conv", "conv4_block9_0_bn"])
def test_each_implementation_is_the_reference(implementation, unfreeze_from):
    """Logits, gradients and statistics, with the frontier inside a dense block.

    The block is long enough for its first features to be concatenated twice, before and after the
    first norm that needs their statistics.
    """
    x = draw_images(5, 47, 61)
    weight = jnp.array([1, 1, 2, 0, 1], jnp.float32)
    network = dn.DenseNet((1, 1, 17, 1), num_classes=2, growth_rate=4, stem_features=8)
    variables = init.init_variables(network, seed=0)
    frontier = resolve(unfreeze_from, network.blocks)
    mask = frontier.mask(variables["params"])

    def run(implementation):
        model = network.clone(implementation=implementation)

        def loss(params):
            params = jax.tree.map(
                lambda p, trains: p if trains else jax.lax.stop_gradient(p), params, mask
            )
            logits, updated = model.apply(
                {**variables, "params": params},
                x,
                train_norms=frontier.train_norms,
                weight=weight,
                mutable=["batch_stats"],
            )
            return (logits**2).sum(), (logits, updated)

        return jax.jit(jax.value_and_grad(loss, has_aux=True))(variables["params"])

    assert_close(run(implementation), run("reference"), {"float32": 1e-4})


def test_one_place_says_which_implementation_is_used(tiny, tiny_variables, monkeypatch):
    x = draw_images(1)
    program = lambda model: str(jax.make_jaxpr(model.apply)(tiny_variables, x))  # noqa: E731
    programs = {i: program(tiny.clone(implementation=i)) for i in dn.IMPLEMENTATIONS}
    assert "custom_vjp" not in programs["reference"]
    assert len(set(programs.values())) == len(dn.IMPLEMENTATIONS)
    assert program(tiny) == programs["fused"]  # the tests run on a CPU
    for backend, expected in {"tpu": "tpu", "gpu": "gpu", "other": "reference"}.items():
        monkeypatch.setattr(jax, "default_backend", lambda backend=backend: backend)
        assert program(tiny) == programs[expected]


@pytest.mark.parametrize("remat", ["bottleneck", "block"])
def test_remat_changes_no_gradient_and_no_statistic(model, tiny_variables, remat):
    x = draw_images(4)
    train_norms = {"conv4_block2_0_bn", "conv4_block2_1_bn", "conv4_block3_0_bn", "pool4_bn", "bn"}

    def run(network):
        def loss(params):
            variables = {**tiny_variables, "params": params}
            logits, updated = network.apply(
                variables, x, train_norms=train_norms, mutable=["batch_stats"]
            )
            return (logits**2).sum(), updated

        return jax.jit(jax.grad(loss, has_aux=True))(tiny_variables["params"])

    actual, expected = run(model.clone(remat=remat)), run(model.clone(remat="none"))
    assert_close(actual, expected, {"float32": 1e-4})


def test_remat_keeps_less_for_the_backward_pass(model, tiny_variables):
    x = jnp.zeros((32, 64, 64, 3))
    everything = {"bn"} | {
        f"{unit}_{norm}" for unit in model.units if "_block" in unit for norm in ("0_bn", "1_bn")
    }

    def kept(remat):
        def loss(params):
            variables = {**tiny_variables, "params": params}
            network = model.clone(remat=remat)
            mutable = ["batch_stats"]
            y, _ = network.apply(variables, x, train_norms=everything, mutable=mutable)
            return y.sum()

        _, backward = jax.eval_shape(lambda p: jax.vjp(loss, p), tiny_variables["params"])
        return sum(leaf.size for leaf in jax.tree.leaves(backward))

    # Kernels that read parts also keep those that they concatenate.
    assert kept("block") < kept("bottleneck") < 0.7 * kept("none")


def test_init_variables_are_keras_initial_values(tiny):
    drawn = init.init_variables(tiny, seed=3)
    expected = jax.eval_shape(tiny.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    assert jax.tree.structure(drawn) == jax.tree.structure(expected)
    assert jax.tree.map(np.shape, drawn) == jax.tree.map(np.shape, expected)
    kernel = drawn["params"]["conv5_block1"]["2_conv"]["kernel"]
    limit = np.sqrt(6 / (9 * (128 + 32)))  # Glorot uniform
    assert 0.99 * limit < np.abs(kernel).max() <= limit and abs(kernel.mean()) < 0.02 * limit
    assert (drawn["params"]["bn"]["scale"] == 1).all()
    assert (drawn["batch_stats"]["bn"]["var"] == 1).all()
    again, other = init.init_variables(tiny, seed=3), init.init_variables(tiny, seed=4)
    np.testing.assert_array_equal(kernel, again["params"]["conv5_block1"]["2_conv"]["kernel"])
    assert not np.array_equal(kernel, other["params"]["conv5_block1"]["2_conv"]["kernel"])


@pytest.mark.parametrize("pixels", [(32, 32), (33, 47), (61, 70)])
def test_what_enters_a_unit_has_the_shape_that_is_foretold(tiny, tiny_variables, pixels):
    images = jax.ShapeDtypeStruct((2, *pixels, 3), jnp.float32)
    for unit in tiny.units[1:]:
        run = lambda v, x, unit=unit: tiny.apply(v, x, stop=unit)  # noqa: E731
        entering = jax.eval_shape(run, tiny_variables, images)
        foretold = tiny.input_shape(unit, images.shape)
        if unit == "head":
            entering = jax.eval_shape(dn.global_average_pool, entering)
        assert foretold == entering.shape, unit


def test_preprocessing_is_keras_torch_mode():
    pixels = np.array([[[0, 128, 255]]], np.uint8)
    expected = (pixels / 255.0 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    np.testing.assert_allclose(
        preprocessing.preprocess_input(pixels), expected, rtol=1e-5, atol=1e-6
    )
    np.testing.assert_allclose(
        preprocessing.preprocess_input(pixels, "scale"), pixels / 255.0, rtol=1e-6
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, v: m.apply(v, np.zeros((1, 32, 32, 3), np.uint8)), "preprocess_input"),
        (lambda m, v: m.apply(v, jnp.zeros((1, 31, 40, 3))), "at least 32"),
        (lambda m, v: m.apply(v, jnp.zeros((32, 32, 3))), "at least 32"),
        (lambda m, v: m.apply(v, jnp.zeros((1, 32, 32, 3)), stop="conv9"), "conv9"),
        (lambda m, v: preprocessing.preprocess_input(np.zeros((1, 4, 4, 1))), "3 channels"),
        (lambda m, v: preprocessing.preprocess_input(np.zeros((1, 4, 4, 3)), "caffe"), "caffe"),
    ],
)
def test_wrong_input_is_named(tiny, tiny_variables, call, message):
    with pytest.raises(ValueError, match=message):
        call(tiny, tiny_variables)
