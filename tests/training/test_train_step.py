import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from densenet_flax.common.sharding import make_mesh, put_batch
from densenet_flax.models import frontier as fr
from densenet_flax.models.units import select_units
from densenet_flax.training.optimizer import OptimizerSettings
from densenet_flax.training.raveled import unravel_to_host
from densenet_flax.training.stage import Loss, Stage
from densenet_flax.training.train_state import merge, partition
from densenet_flax.training.train_step import TrainStep

TINY = (2, 2, 3, 2)
HARSH = OptimizerSettings(1e-2, name="adamw", weight_decay=0.3, clip_norm=0.1)


def stage(at, settings=HARSH, **kwargs):
    return Stage("s", fr.resolve(at, TINY, **kwargs), steps=10, optimizer=settings)


def make_step(tiny, variables, at="conv5", settings=HARSH, bn_mode="keras", **kwargs):
    return TrainStep(
        tiny, stage(at, settings, bn_mode=bn_mode), variables, make_mesh(), seed=0, **kwargs
    )


def batch_for(tiny, variables, cut, n=6, pad=0):
    """Images, or the features that enter at the cut, of `n` examples and some padding."""
    rng = np.random.default_rng(5)
    x = rng.integers(0, 256, (n, 32, 32, 3), dtype=np.uint8)
    if cut != "stem":
        x = np.asarray(tiny.apply(variables, jnp.asarray(x, jnp.float32) / 255, stop=cut))
    label = np.arange(n, dtype=np.int32) % 2
    x = np.concatenate([x, np.repeat(x[:1] * 7, pad, axis=0)]) if pad else x
    label = np.concatenate([label, np.ones(pad, np.int32)])
    weight = np.concatenate([np.ones(n, np.float32), np.zeros(pad, np.float32)])
    return put_batch(
        np.arange(n + pad), weight, lambda i: {"inputs": x[i], "label": label[i]}, make_mesh()
    )


def run_steps(train_step, batch, count=3):
    state = train_step.init(0)
    for _ in range(count):
        state, metrics = train_step.run_step(state, batch)
    return state, metrics


# Every kind of layer that a frontier can stand before, at both ends of the line and between.
@pytest.mark.parametrize(
    "at",
    [
        "head",
        "bn",
        "conv5_block2_2_conv",
        "conv5_block2_1_bn",
        "conv5_block2_1_conv",
        "conv5_block2_0_bn",
        "pool4_conv",
        "pool4_bn",
        "conv4_block2",
        "conv1_bn",
        "all",
    ],
)
def test_frozen_variables_stay_to_the_bit(tiny, tiny_variables, at):
    """With weight decay, clipping, an average of the weights, and statistics on the move."""
    train_step = make_step(tiny, tiny_variables, at, ema_decay=0.5)
    frontier = train_step.stage.frontier
    state, _ = run_steps(train_step, batch_for(tiny, tiny_variables, frontier.cut))
    after = train_step.variables(state)
    assert jax.tree.structure(after) == jax.tree.structure(tiny_variables)
    for name, trains in (
        ("params", frontier.mask(after["params"])),
        ("batch_stats", frontier.batch_stats_mask(after["batch_stats"])),
    ):
        for (path, moves), was, now in zip(
            jax.tree_util.tree_leaves_with_path(trains),
            jax.tree.leaves(tiny_variables[name]),
            jax.tree.leaves(after[name]),
            strict=True,
        ):
            assert np.array_equal(was, now) != moves, jax.tree_util.keystr(path)


def test_only_what_trains_has_optimizer_state(tiny, tiny_variables):
    train_step = make_step(tiny, tiny_variables, "conv5_block2_1_conv")
    mask = train_step.stage.frontier.mask(tiny_variables["params"])
    trained = [
        leaf
        for leaf, trains in zip(
            jax.tree.leaves(tiny_variables["params"]), jax.tree.leaves(mask), strict=True
        )
        if trains
    ]
    state_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(train_step.init(0).opt_state))
    # Two moments of each number that trains; counts of what decays, what does not, and the rates.
    assert state_bytes == 2 * sum(leaf.nbytes for leaf in trained) + 3 * 4


@pytest.mark.parametrize("bn_mode", fr.BN_MODES)
def test_padding_changes_nothing(tiny, tiny_variables, bn_mode):
    train_step = make_step(tiny, tiny_variables, "conv5", bn_mode=bn_mode, loss=Loss(dropout=False))
    cut = train_step.stage.frontier.cut
    exact, exact_metrics = run_steps(train_step, batch_for(tiny, tiny_variables, cut))
    other = make_step(tiny, tiny_variables, "conv5", bn_mode=bn_mode, loss=Loss(dropout=False))
    padded, padded_metrics = run_steps(other, batch_for(tiny, tiny_variables, cut, pad=3))
    for name in ("loss", "correct", "count"):
        np.testing.assert_allclose(padded_metrics[name], exact_metrics[name], rtol=1e-4)
    for leaf, expected in zip(
        jax.tree.leaves(padded.batch_stats), jax.tree.leaves(exact.batch_stats), strict=True
    ):
        np.testing.assert_allclose(leaf, expected, rtol=1e-3, atol=1e-4)


def test_which_statistics_a_bn_mode_moves(tiny, tiny_variables):
    def moved_units(bn_mode):
        train_step = make_step(tiny, tiny_variables, "conv5", bn_mode=bn_mode)
        state, _ = run_steps(
            train_step, batch_for(tiny, tiny_variables, train_step.stage.frontier.cut), 1
        )
        after = train_step.variables(state)["batch_stats"]
        return {
            path[0].key
            for (path, was), now in zip(
                jax.tree_util.tree_leaves_with_path(tiny_variables["batch_stats"]),
                jax.tree.leaves(after),
                strict=True,
            )
            if not np.array_equal(was, now)
        }

    all_units = set(tiny_variables["batch_stats"])
    assert moved_units("frozen") == set()
    assert moved_units("keras") == {"conv5_block1", "conv5_block2", "bn"}
    assert moved_units("live") == all_units


def test_the_loss_and_its_options(tiny, tiny_variables):
    batch = batch_for(tiny, tiny_variables, "conv5_block1")
    frozen = {"at": "conv5", "bn_mode": "frozen", "settings": OptimizerSettings(1e-9)}

    def loss(**options):
        train_step = make_step(tiny, tiny_variables, **frozen, loss=Loss(dropout=False, **options))
        _, metrics = run_steps(train_step, batch, 1)
        return float(metrics["loss"] / metrics["count"])

    tail = {
        name: select_units(tree, tiny.units[tiny.units.index("conv5_block1") :])
        for name, tree in tiny_variables.items()
    }
    logits = np.asarray(tiny.apply(tail, batch["inputs"], start="conv5_block1"), np.float64)
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    label = np.asarray(batch["label"])
    plain = -log_p[np.arange(6), label]
    assert loss() == pytest.approx(plain.mean(), rel=1e-5)
    smooth = 0.9 * plain + 0.1 * -log_p.mean(-1)
    assert loss(label_smoothing=0.1) == pytest.approx(smooth.mean(), rel=1e-5)
    # As Keras's class_weight: weighted once, divided by the number of examples.
    weighted = plain * np.array([0.5, 2.0])[label]
    assert loss(class_weights=(0.5, 2.0)) == pytest.approx(weighted.sum() / 6, rel=1e-5)


def test_the_moving_average_of_the_weights(tiny, tiny_variables):
    batch = batch_for(tiny, tiny_variables, "head")
    settings = OptimizerSettings(1e-2, accumulate=2)
    train_step = make_step(tiny, tiny_variables, "head", settings, ema_decay=0.75)
    state = train_step.init(0)
    average = np.asarray(unravel_to_host(state.params)["head"]["predictions"]["kernel"])
    for step in range(4):
        state, _ = train_step.run_step(state, batch)
        if step % 2:  # an update is made of two steps
            now = np.asarray(unravel_to_host(state.params)["head"]["predictions"]["kernel"])
            average = 0.75 * average + 0.25 * now
    kept = train_step.variables(state)["params"]["head"]["predictions"]["kernel"]
    np.testing.assert_allclose(kept, average, rtol=1e-5, atol=1e-7)
    assert not np.array_equal(kept, unravel_to_host(state.params)["head"]["predictions"]["kernel"])


def test_dropout_is_a_function_of_seed_and_step(tiny, tiny_variables):
    batch = batch_for(tiny, tiny_variables, "head")
    losses = []
    for seed, step in ((0, 0), (0, 0), (0, 1), (1, 0)):
        train_step = TrainStep(tiny, stage("head"), tiny_variables, make_mesh(), seed=seed)
        _, metrics = train_step.run_step(train_step.init(step), batch)
        losses.append(float(metrics["loss"]))
    assert losses[0] == losses[1] and len(set(losses)) == 3


def test_rate_scale_scales_the_update(tiny, tiny_variables):
    batch = batch_for(tiny, tiny_variables, "head")
    settings = OptimizerSettings(1e-2)
    norms = []
    for scale in (1.0, 0.25, 0.0):
        train_step = make_step(tiny, tiny_variables, "head", settings)
        _, metrics = train_step.run_step(train_step.init(0), batch, scale)
        norms.append(float(metrics["update_norm"]))
    assert norms[1] == pytest.approx(norms[0] / 4, rel=1e-5) and norms[2] == 0


def test_the_state_is_donated(tiny, tiny_variables):
    train_step = make_step(tiny, tiny_variables, "head")
    state = train_step.init(0)
    train_step.run_step(state, batch_for(tiny, tiny_variables, "head"))
    assert all(vector.is_deleted() for vector in jax.tree.leaves((state.params, state.opt_state)))


def test_merge_undoes_partition(tiny_variables):
    params = tiny_variables["params"]
    mask = fr.resolve("pool4_conv", TINY).mask(params)
    chosen, rest = partition(params, mask)
    assert len(jax.tree.leaves(chosen)) == sum(jax.tree.leaves(mask))
    again = merge(chosen, rest, mask)
    assert jax.tree.all(jax.tree.map(lambda a, b: a is b, again, params))


def test_a_stage_is_a_value(tiny):
    assert stage("conv5") == stage("conv5") != stage("conv4")
    assert dataclasses.replace(stage("conv5"), steps=3).steps == 3
