import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from densenet_flax.training import optimizer as opt
from densenet_flax.training.keras_adam import scale_by_keras_adam
from densenet_flax.training.optimizer import OptimizerSettings


def tree(seed=0, scale=1.0):
    rng = np.random.default_rng(seed)
    draw = lambda *shape: jnp.asarray(rng.normal(0, scale, shape), jnp.float32)  # noqa: E731
    return {
        "conv5_block1": {"1_conv": {"kernel": draw(3, 4)}, "0_bn": {"scale": draw(3)}},
        "head": {"predictions": {"kernel": draw(4, 2), "bias": draw(2)}},
    }


def mask(value=True):
    return jax.tree.map(lambda _: value, tree())


def only_head():
    return {**mask(False), "head": mask()["head"]}


def run(settings, gradients, start=None, marks=None, **kwargs):
    params = start or tree(1)
    optimizer = opt.make_optimizer(settings, marks or mask(), **kwargs)
    state = optimizer.init(params)
    for gradient in gradients:
        updates, state = optimizer.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
    return params


@pytest.mark.parametrize("scale", [1.0, 1e-6])
@pytest.mark.parametrize(
    ("settings", "make"),
    [
        (OptimizerSettings(1e-2), lambda o: o.Adam(1e-2)),
        (
            OptimizerSettings(1e-2, name="adamw", weight_decay=0.1),
            lambda o: o.AdamW(1e-2, weight_decay=0.1),
        ),
        (OptimizerSettings(1e-2, name="sgd", momentum=0.9), lambda o: o.SGD(1e-2, momentum=0.9)),
        (OptimizerSettings(1e-2, clip_norm=0.5), lambda o: o.Adam(1e-2, global_clipnorm=0.5)),
    ],
)
def test_updates_are_keras_updates(settings, make, scale):
    """Small gradients too: there Keras's epsilon weighs more than optax's would."""
    keras = pytest.importorskip("keras")
    gradients = [tree(seed, scale) for seed in range(2, 8)]
    ours = run(settings, gradients)
    variables = jax.tree.map(keras.Variable, tree(1))
    theirs = make(keras.optimizers)
    names = [jax.tree_util.keystr(p) for p, _ in jax.tree_util.tree_leaves_with_path(variables)]
    flat = jax.tree.leaves(variables)
    if settings.weight_decay:  # Keras decays everything by default; we decay kernels
        theirs.exclude_from_weight_decay(
            [v for v, n in zip(flat, names, strict=True) if "kernel" not in n]
        )
    for gradient in gradients:
        theirs.apply(jax.tree.leaves(gradient), flat)
    for leaf, expected, begin in zip(
        jax.tree.leaves(ours), flat, jax.tree.leaves(tree(1)), strict=True
    ):
        change = np.asarray(expected) - np.asarray(begin)
        np.testing.assert_allclose(leaf - begin, change, rtol=2e-4, atol=3e-7)


def test_optax_adam_has_another_epsilon():
    gradient = jax.tree.map(lambda x: x * 1e-6, tree(2))
    ours, _ = (o := scale_by_keras_adam()).update(gradient, o.init(tree()))
    theirs, _ = (o := optax.scale_by_adam(eps=1e-7)).update(gradient, o.init(tree()))
    ratio = ours["head"]["predictions"]["bias"] / theirs["head"]["predictions"]["bias"]
    assert float(jnp.abs(ratio - 1).max()) > 0.5


def test_frozen_leaves_get_nothing_even_if_gradients_are_handed_in():
    settings = OptimizerSettings(1e-2, name="adamw", weight_decay=0.5, clip_norm=0.1)
    start = tree(1)
    after = run(settings, [tree(2), tree(3)], start, only_head())
    for leaf, was in zip(
        jax.tree.leaves(after["conv5_block1"]), jax.tree.leaves(start["conv5_block1"]), strict=True
    ):
        np.testing.assert_array_equal(leaf, was)
    assert not np.array_equal(
        after["head"]["predictions"]["kernel"], start["head"]["predictions"]["kernel"]
    )


def test_frozen_leaves_take_no_part_in_clipping():
    settings = OptimizerSettings(1.0, name="sgd", clip_norm=1.0)
    huge = {**tree(2), "conv5_block1": jax.tree.map(lambda x: 1e6 * x, tree(2)["conv5_block1"])}
    np.testing.assert_array_equal(
        run(settings, [huge], marks=only_head())["head"]["predictions"]["bias"],
        run(settings, [tree(2)], marks=only_head())["head"]["predictions"]["bias"],
    )


def test_optimizer_state_holds_only_what_trains():
    optimizer = opt.make_optimizer(OptimizerSettings(), only_head())
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(optimizer.init(tree())))
    head = sum(leaf.nbytes for leaf in jax.tree.leaves(tree()["head"]))
    assert size == 2 * head + 4 + 4  # two moments, a count of updates, one of the schedule


def test_only_kernels_decay():
    settings = OptimizerSettings(0.1, name="sgd", weight_decay=0.5)
    zeros = jax.tree.map(jnp.zeros_like, tree())
    start = tree(1)
    after = run(settings, [zeros], start)
    np.testing.assert_allclose(
        after["conv5_block1"]["1_conv"]["kernel"],
        start["conv5_block1"]["1_conv"]["kernel"] * (1 - 0.1 * 0.5),
        rtol=1e-6,
    )
    np.testing.assert_array_equal(
        after["conv5_block1"]["0_bn"]["scale"], start["conv5_block1"]["0_bn"]["scale"]
    )
    np.testing.assert_array_equal(
        after["head"]["predictions"]["bias"], start["head"]["predictions"]["bias"]
    )


def test_layers_further_from_the_head_move_less():
    settings = OptimizerSettings(1.0, name="sgd", layer_decay=0.5)
    units = ["conv4_block1", "conv5_block1", "bn", "head"]
    ones = jax.tree.map(jnp.ones_like, tree())
    start = tree(1)
    after = run(settings, [ones], start, units=units)
    step = jax.tree.map(lambda a, b: float((a - b).mean()), start, after)
    assert step["head"]["predictions"]["bias"] == pytest.approx(1)
    assert step["conv5_block1"]["0_bn"]["scale"] == pytest.approx(0.25)


def test_accumulated_gradients_make_one_update_of_their_mean():
    gradients = [tree(2), tree(3), tree(4)]
    mean = jax.tree.map(lambda *g: sum(g) / 3, *gradients)
    once = run(OptimizerSettings(1e-2), [mean])
    thrice = run(OptimizerSettings(1e-2, accumulate=3), gradients)
    for leaf, expected in zip(jax.tree.leaves(thrice), jax.tree.leaves(once), strict=True):
        np.testing.assert_allclose(leaf, expected, rtol=1e-5, atol=1e-6)
    nothing_yet = run(OptimizerSettings(1e-2, accumulate=3), gradients[:2])
    for leaf, expected in zip(jax.tree.leaves(nothing_yet), jax.tree.leaves(tree(1)), strict=True):
        np.testing.assert_array_equal(leaf, expected)


def test_the_schedule_rises_and_falls():
    settings = OptimizerSettings(1.0, schedule="cosine", warmup=4)
    rates = [float(opt.learning_rate_schedule(settings, 24)(i)) for i in range(25)]
    np.testing.assert_allclose(rates[:5], [0.2, 0.4, 0.6, 0.8, 1.0], rtol=1e-6)
    assert rates[14] == pytest.approx(0.5) and rates[24] == pytest.approx(0, abs=1e-6)
    constant = opt.learning_rate_schedule(OptimizerSettings(0.3), 10)
    assert [float(constant(i)) for i in (0, 9)] == pytest.approx([0.3, 0.3])


def test_a_plateau_is_that_of_keras():
    keras = pytest.importorskip("keras")
    losses = [1.0, 0.9, 0.9, 0.95, 0.8, 0.8, 0.80001, 0.9, 0.7, 0.9, 0.9, 0.9, 0.9]

    class Model:
        optimizer = keras.optimizers.SGD(1.0)

    callback = keras.callbacks.ReduceLROnPlateau(factor=0.5, patience=2)
    callback.set_model(Model)
    callback.on_train_begin()
    for epoch, loss in enumerate(losses):
        callback.on_epoch_end(epoch, {"val_loss": loss})
        theirs = float(Model.optimizer.learning_rate)
        assert opt.plateau_scale(losses[: epoch + 1], 0.5, 2) == theirs


@pytest.mark.parametrize(
    ("duration", "steps"),
    [
        ("10 epochs", 40),
        ("1 epoch", 4),
        ("0.5 epochs", 2),
        ("7 steps", 7),
        ("50 examples", 2),
        ("5%", 10),
        ("0 steps", 0),
    ],
)
def test_durations(duration, steps):
    assert opt.duration_to_steps(duration, examples=100, batch_size=32, total=200) == steps


@pytest.mark.parametrize("duration", ["10", "ten epochs", "-1 steps", "5 minutes", ""])
def test_other_texts_are_not_durations(duration):
    with pytest.raises(ValueError, match="no duration"):
        opt.duration_to_steps(duration, examples=100, batch_size=32)
    with pytest.raises(ValueError, match="no duration"):
        opt.duration_to_steps("5%", examples=100, batch_size=32)


@given(st.integers(1, 50), st.integers(1, 300), st.integers(1, 64))
def test_epochs_are_whole_epochs(epochs, examples, batch_size):
    steps = opt.duration_to_steps(f"{epochs} epochs", examples=examples, batch_size=batch_size)
    assert steps == epochs * -(-examples // batch_size)


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"name": "lion"}, "optimizer"),
        ({"schedule": "step"}, "schedule"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"momentum": 1.0}, "momentum"),
        ({"layer_decay": 0.0}, "layer_decay"),
        ({"accumulate": 0}, "accumulate"),
        ({"plateau_factor": 1.0}, "plateau_factor"),
    ],
)
def test_the_key_of_a_wrong_setting_is_named(settings, key):
    with pytest.raises(ValueError, match=key):
        OptimizerSettings(**settings)
