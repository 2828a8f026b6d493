import dataclasses
import logging
import os
import shutil
import signal

import jax
import numpy as np
import pytest

from densenet_flax.common.errors import InputError, Stopped
from densenet_flax.common.sharding import make_mesh
from densenet_flax.data.augmentation.settings import AugmentSettings
from densenet_flax.models import frontier as fr
from densenet_flax.storage.checkpoint import Checkpoints
from densenet_flax.training.input_pipeline import Views
from densenet_flax.training.optimizer import OptimizerSettings
from densenet_flax.training.prefix_cache import share_a_pass
from densenet_flax.training.progress import TrainProgress, best_step
from densenet_flax.training.stage import Loss, Stage
from densenet_flax.training.trainer import Trainer

TINY = (2, 2, 3, 2)
ADAM = OptimizerSettings(1e-3)


def stage(name, at, epochs=2, settings=ADAM, per_epoch=3, **kwargs):
    return Stage(name, fr.resolve(at, TINY), epochs * per_epoch, settings, **kwargs)


RECIPE = (stage("head", "head"), stage("tail", "conv5_block2_1_conv"))


class Run:
    """A trainer in a folder, with what it wrote."""

    def __init__(self, folder, tiny, dataset, split, stages=RECIPE, **kwargs):
        self.lines, self.timing = [], []
        self.checkpoints = Checkpoints(folder / "checkpoints")
        self.trainer = Trainer(
            model=tiny,
            stages=stages,
            dataset=dataset,
            split=split,
            checkpoints=self.checkpoints,
            mesh=make_mesh(),
            batch_size=11,  # three batches an epoch, the last one short
            seed=0,
            log_every=2,
            write_metrics=kwargs.pop("write_metrics", self.lines.append),
            write_timing=self.timing.append,
            **kwargs,
        )

    def __call__(self, variables):
        """Starts, or goes on from the last checkpoint."""
        if not self.checkpoints.steps:
            self.position = TrainProgress()
            return self.trainer.run(variables, self.position)
        restored = self.checkpoints.restore(self.checkpoints.steps[-1])
        self.position = TrainProgress(**restored.meta["position"])
        return self.trainer.run(restored.variables, self.position, restored)


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for (path, x), y in zip(
        jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True
    ):
        np.testing.assert_array_equal(x, y, err_msg=jax.tree_util.keystr(path))


def files_of(run):
    """All that the last checkpoint holds."""
    return run.checkpoints.restore(run.checkpoints.steps[-1])


@pytest.fixture(scope="module")
def straight(tmp_path_factory, tiny, tiny_variables, dataset, split):
    run = Run(tmp_path_factory.mktemp("straight"), tiny, dataset, split)
    run.result = run(tiny_variables)
    return run


def test_a_run_from_start_to_end(straight, split):
    assert len(split.train) == 30  # else the batches are not what the tests below say
    assert [line["stage"] for line in straight.lines if line["kind"] == "epoch"] == [
        "head",
        "head",
        "tail",
        "tail",
    ]
    assert straight.position.step == 12
    steps = [line["step"] for line in straight.lines if line["kind"] == "step"]
    assert steps == [2, 4, 6, 8, 10, 12]
    losses = [line["train_loss"] for line in straight.lines if line["kind"] == "epoch"]
    assert np.isfinite(losses).all() and losses[-1] != losses[-2]
    assert all(line["seconds"] > 0 for line in straight.timing)
    kept = {12, best_step(straight.position.history)}
    of_tail = [e for e in straight.position.history if e["stage"] == "tail"]
    assert set(straight.checkpoints.steps) == kept | {best_step(of_tail)}


def test_metrics_are_means_over_examples(straight, tiny, dataset, split, tiny_variables):
    """The last epoch's validation, computed in one piece."""
    from densenet_flax.models.preprocessing import preprocess_input

    rows = split.validation
    logits = np.asarray(tiny.apply(straight.result, preprocess_input(dataset.images[rows])))
    labels = dataset.labels[rows]
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    last = straight.position.history[-1]
    assert last["validation_loss"] == pytest.approx(
        float(-log_p[np.arange(len(rows)), labels].mean()), rel=1e-4
    )
    assert last["validation_accuracy"] == pytest.approx((logits.argmax(-1) == labels).mean())


@pytest.mark.parametrize("stop_after", [1, 3, 5, 6, 7, 11])
def test_stopped_and_resumed_ends_with_the_same_bits(
    straight, tmp_path, tiny, tiny_variables, dataset, split, stop_after
):
    """SIGTERM in the middle of an epoch, at its end, and on both sides of a stage's end."""
    run = Run(tmp_path, tiny, dataset, split)
    step = {"count": 0}
    program_step = run.trainer._should_stop

    def stop_at(now):
        if now >= stop_after and not step["count"]:
            step["count"] += 1
            os.kill(os.getpid(), signal.SIGTERM)
        return program_step(now)

    run.trainer._should_stop = stop_at
    with pytest.raises(Stopped, match=r"SIGTERM.*saved"):
        run(tiny_variables)
    assert run.checkpoints.steps[-1] in (stop_after, stop_after + 1)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    again = Run(tmp_path, tiny, dataset, split)
    result = again(tiny_variables)
    assert_same(result, straight.result)
    mine, theirs = files_of(again), files_of(straight)
    assert_same(mine.train, theirs.train)
    assert mine.meta == theirs.meta
    assert again.checkpoints.steps == straight.checkpoints.steps
    assert run.lines + again.lines == straight.lines


def test_a_finished_run_has_nothing_left_to_do(straight, tiny_variables):
    before = list(straight.lines)
    again = straight(tiny_variables)
    assert_same(again, straight.result)
    assert straight.lines == before


@pytest.mark.parametrize(
    "options",
    [
        {"ema_decay": 0.9},
        {
            "stages": (
                stage("one", "conv5", settings=OptimizerSettings(1e-3, accumulate=2)),
                stage("two", "conv5_block2", keep_moments=True, restore_best=True),
                stage(
                    "three",
                    "pool4",
                    keep_moments=True,
                    settings=OptimizerSettings(1e-2, schedule="plateau", plateau_patience=1),
                ),
            ),
            "ema_decay": 0.5,
        },
        {
            "stages": (
                stage(
                    "s",
                    "conv5",
                    epochs=4,
                    settings=OptimizerSettings(
                        1e-3, schedule="cosine", warmup=2, name="adamw", weight_decay=0.1
                    ),
                ),
            ),
            "loss": Loss(label_smoothing=0.1, class_weights=(0.7, 1.3)),
        },
    ],
)
def test_options_resume_to_the_bit_as_well(tmp_path, tiny, tiny_variables, dataset, split, options):
    whole = Run(tmp_path / "a", tiny, dataset, split, **options)
    wanted = whole(tiny_variables)
    calls = {"left": 0}
    stops = 0
    for _ in range(8):  # stopped after every few steps until it is done
        run = Run(tmp_path / "b", tiny, dataset, split, **options)
        calls["left"] = 4
        real = run.trainer._should_stop

        def stop_soon(now, run=run, real=real):
            calls["left"] -= 1
            if calls["left"] == 0:
                run.trainer._stop_signal = signal.SIGTERM
            return real(now)

        run.trainer._should_stop = stop_soon
        try:
            result = run(tiny_variables)
            break
        except Stopped:
            stops += 1
    assert stops > 1
    assert_same(result, wanted)
    assert_same(files_of(run).train, files_of(whole).train)
    assert files_of(run).meta == files_of(whole).meta


def test_the_prefix_cache_changes_nothing(straight, tmp_path, tiny, tiny_variables, dataset, split):
    run = Run(tmp_path, tiny, dataset, split, cache="off")
    result = run(tiny_variables)
    for (path, got), wanted in zip(
        jax.tree_util.tree_leaves_with_path(result),
        jax.tree.leaves(straight.result),
        strict=True,
    ):
        # Rounding only: the same rows in other batches.
        np.testing.assert_allclose(
            got, wanted, rtol=2e-3, atol=2e-4, err_msg=jax.tree_util.keystr(path)
        )


@pytest.mark.parametrize("mode", ["device", "disk"])
def test_it_does_not_matter_where_features_are_kept(
    straight, tmp_path, tiny, tiny_variables, dataset, split, mode, caplog
):
    run = Run(tmp_path, tiny, dataset, split, cache=mode, cache_directory=tmp_path / "cache")
    run(tiny_variables)
    assert run.lines == straight.lines
    if mode == "disk":
        shutil.rmtree(tmp_path / "checkpoints")
        again = Run(tmp_path, tiny, dataset, split, cache=mode, cache_directory=tmp_path / "cache")
        with caplog.at_level(logging.INFO):
            again(tiny_variables)
        assert "has been run before" in caplog.text
        assert again.lines == straight.lines


@pytest.mark.parametrize("mode", ["auto", "device"])
def test_a_later_run_finds_the_frozen_part_done(
    straight, tmp_path, tiny, tiny_variables, dataset, split, mode, caplog
):
    def make(name):
        kept = tmp_path / "features"
        return Run(tmp_path / name, tiny, dataset, split, cache=mode, kept_features=kept)

    other_weights = jax.tree.map(lambda leaf: leaf * np.float32(1.01), tiny_variables)
    for name, variables, reused in (
        ("first", tiny_variables, False),
        ("second", tiny_variables, True),
        ("other", other_weights, False),
    ):
        run = make(name)
        caplog.clear()
        with caplog.at_level(logging.INFO):
            run(variables)
        assert ("has been run before" in caplog.text) == reused, name
        if variables is tiny_variables:
            assert run.lines == straight.lines


def test_as_many_cached_views_as_epochs_are_augmenting_anew(
    straight, tmp_path, tiny, tiny_variables, dataset, split, caplog
):
    settings = AugmentSettings(symmetries=True, brightness_range=(0.8, 1.2))
    cached = Run(tmp_path / "cached", tiny, dataset, split, views=Views(settings, count=4))
    online = Run(tmp_path / "online", tiny, dataset, split, views=Views(settings), cache="off")
    fewer = Run(tmp_path / "fewer", tiny, dataset, split, views=Views(settings, count=1))
    more = Run(tmp_path / "more", tiny, dataset, split, views=Views(settings, count=9))
    for run in (cached, online, fewer):
        run(tiny_variables)
    with caplog.at_level(logging.INFO):
        more(tiny_variables)
    assert "4 views of those that train" in caplog.text
    assert more.lines == cached.lines
    losses = [[e["train_loss"] for e in run.position.history] for run in (cached, online, fewer)]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-3)
    assert losses[0][0] == losses[2][0] and losses[0][1] != losses[2][1]
    assert losses[0] != [e["train_loss"] for e in straight.position.history]


def test_mixed_images_are_trained_on_and_never_cached(
    tmp_path, tiny, tiny_variables, dataset, split
):
    views = Views(AugmentSettings(mixup=0.4))
    with pytest.raises(InputError, match="mixup"):
        Run(tmp_path / "a", tiny, dataset, split, views=views, cache="memory")(tiny_variables)
    run = Run(tmp_path / "b", tiny, dataset, split, views=views)
    run(tiny_variables)
    assert len(run.position.history) == 4


def test_stages_share_a_pass_while_their_prefix_is_as_it_was():
    def share(*names):
        return share_a_pass([fr.resolve(name, TINY) for name in names])

    assert share("head", "conv5", "conv4_block2_2_conv") == [True, True, True]
    assert share("conv5", "head", "conv5", "pool4") == [True, False, True, True]
    assert share("head", "conv5", "head") == [True, True, False]
    assert share("all", "conv5") == [True, False]
    live = fr.resolve("conv5", TINY, bn_mode="live")  # it moves all statistics
    assert share_a_pass([live, fr.resolve("conv5", TINY)]) == [True, False]


@pytest.mark.parametrize("order", [("head", "conv5", "head"), ("conv5_block2", "all", "conv5")])
def test_no_stage_trains_on_features_of_older_weights(
    tmp_path, tiny, tiny_variables, dataset, split, order
):
    fast = OptimizerSettings(3e-2)
    stages = tuple(stage(f"s{i}", at, 1, fast) for i, at in enumerate(order))
    results = [
        Run(tmp_path / cache, tiny, dataset, split, stages, cache=cache)
        for cache in ("memory", "off")
    ]
    for run in results:
        run(tiny_variables)
    with_cache, without = (
        [line["train_loss"] for line in r.lines if line["kind"] == "epoch"] for r in results
    )
    np.testing.assert_allclose(with_cache, without, rtol=2e-2)


def test_later_stages_keep_the_moments_if_asked(tmp_path, tiny, tiny_variables, dataset, split):
    def first_update(keep):
        stages = (
            stage("a", "conv5_block2"),
            stage("b", "conv5", epochs=1, keep_moments=keep),
        )
        run = Run(tmp_path / str(keep), tiny, dataset, split, stages)
        run(tiny_variables)
        train = files_of(run).train
        steps = {n: int(v) for n, v in train.items() if ".steps[" in n}
        return {value for name, value in steps.items() if "conv5_block2" in name}, {
            value for name, value in steps.items() if "conv5_block1" in name
        }

    assert first_update(keep=True) == ({6 + 3}, {3})
    assert first_update(keep=False) == ({3}, {3})


def test_early_stopping_hands_the_best_epoch_on(tmp_path, tiny, tiny_variables, dataset, split):
    wild = OptimizerSettings(0.5, name="sgd")  # far too fast: the first epochs stay the best
    stages = (
        stage("a", "head", epochs=10, settings=wild, patience=2, restore_best=True),
        stage("b", "head", epochs=1, settings=OptimizerSettings(1e-9)),
    )
    run = Run(tmp_path, tiny, dataset, split, stages)
    result = run(tiny_variables)
    losses = [e["validation_loss"] for e in run.position.history if e["stage"] == "a"]
    assert len(losses) < 10 and len(losses) - 1 - int(np.argmin(losses)) == 2
    after = run.position.history[-1]["validation_loss"]
    assert after == pytest.approx(min(losses), rel=1e-3) and after < losses[-1]
    del result


def test_a_plateau_lowers_the_rate(tmp_path, tiny, tiny_variables, dataset, split):
    settings = OptimizerSettings(1e-30, schedule="plateau", plateau_patience=1)
    run = Run(tmp_path, tiny, dataset, split, (stage("a", "head", 4, settings),))
    run(tiny_variables)
    rates = [line["learning_rate"] for line in run.lines if line["kind"] == "epoch"]
    np.testing.assert_allclose(rates, [1e-30, 1e-30, 5e-31, 2.5e-31], rtol=1e-6)


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, tiny, tiny_variables, dataset, split):
    stages = (
        stage("fine", "head", 1),
        stage("bad", "conv5", 2, OptimizerSettings(1e30, name="sgd")),
    )
    run = Run(tmp_path, tiny, dataset, split, stages)
    with pytest.raises(InputError, match=r"'bad': the loss became .* at step [45].*tile-\d+\.png"):
        run(tiny_variables)
    assert run.checkpoints.steps == [3]
    good = run.checkpoints.restore(3)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(good.variables))


def test_a_stage_may_end_in_the_middle_of_an_epoch(tmp_path, tiny, tiny_variables, dataset, split):
    stages = (dataclasses.replace(stage("a", "head"), steps=4),)
    run = Run(tmp_path, tiny, dataset, split, stages)
    run(tiny_variables)
    assert [e["step"] for e in run.position.history] == [3, 4]


def test_stages_say_what_they_train(tmp_path, tiny, tiny_variables, dataset, split, caplog):
    with caplog.at_level(logging.INFO, logger="absl"):
        Run(tmp_path, tiny, dataset, split, (stage("a", "pool4_conv", 1),))(tiny_variables)
    assert "stage 1/1 a: frozen" in caplog.text and "from pool4_conv (Keras layer" in caplog.text
    assert "prefix cache: 40 images at pool4" in caplog.text


@pytest.mark.parametrize("when", ["before", "while writing"])
def test_a_full_disk_keeps_the_old_checkpoint(
    tmp_path, tiny, tiny_variables, dataset, split, monkeypatch, when
):
    run = Run(tmp_path, tiny, dataset, split)
    real_save, real_usage = run.checkpoints._manager.save, shutil.disk_usage

    def save(step, **kwargs):
        if step > 3:
            raise OSError(28, "No space left on device")
        return real_save(step, **kwargs)

    def usage(path):
        full = len(run.checkpoints._manager.all_steps()) > 0
        return real_usage(path)._replace(free=1_000_000) if full else real_usage(path)

    if when == "before":
        monkeypatch.setattr(shutil, "disk_usage", usage)
    else:
        monkeypatch.setattr(run.checkpoints._manager, "save", save)
    reason = "needs 2 MB, 1 are free" if when == "before" else "No space left"
    with pytest.raises(InputError, match=rf"checkpoint (6|9|12) could not be written.*{reason}"):
        run(tiny_variables)
    monkeypatch.undo()
    assert Checkpoints(tmp_path / "checkpoints").steps == [3]
    again = Run(tmp_path, tiny, dataset, split)
    again(tiny_variables)
    assert again.position.step == 12
