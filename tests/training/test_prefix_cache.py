"""Features of the frozen part: computed once, kept anywhere, and never out of date."""

import logging
import shutil

import jax
import numpy as np
import pytest

from densenet_flax.common.errors import InputError
from densenet_flax.data.augmentation.settings import AugmentSettings
from densenet_flax.models import frontier as fr
from densenet_flax.storage import feature_store
from densenet_flax.training import prefix_cache
from densenet_flax.training.input_pipeline import Views
from densenet_flax.training.optimizer import OptimizerSettings
from densenet_flax.training.prefix_cache import can_share_pass
from tests.helpers.networks import TINY_BLOCKS
from tests.training.runs import Run, stage


def test_the_cache_changes_nothing(straight, tmp_path, tiny, tiny_variables, dataset, split):
    run = Run(tmp_path, tiny, dataset, split, cache="off")
    result = run(tiny_variables)
    for (path, leaf), cached in zip(
        jax.tree.leaves_with_path(result), jax.tree.leaves(straight.result), strict=True
    ):
        # Rounding only: the same rows in other batches.
        np.testing.assert_allclose(
            leaf, cached, rtol=2e-3, atol=2e-4, err_msg=jax.tree_util.keystr(path)
        )


@pytest.mark.parametrize("mode", ["device", "disk"])
def test_it_does_not_matter_where_features_are_kept(
    straight, tmp_path, tiny, tiny_variables, dataset, split, mode, caplog
):
    options = {"cache": mode, "cache_directory": tmp_path / "cache"}
    run = Run(tmp_path, tiny, dataset, split, **options)
    run(tiny_variables)
    assert run.lines == straight.lines
    if mode == "disk":
        shutil.rmtree(tmp_path / "checkpoints")
        again = Run(tmp_path, tiny, dataset, split, **options)
        with caplog.at_level(logging.INFO):
            again(tiny_variables)
        assert "has been run before" in caplog.text
        assert again.lines == straight.lines


@pytest.mark.parametrize("mode", ["auto", "device"])
def test_a_later_run_finds_the_features_if_all_that_they_depend_on_is_the_same(
    straight, tmp_path, tiny, tiny_variables, dataset, split, mode, caplog, monkeypatch
):
    def reuses_features(name, variables):
        options = {"cache": mode, "kept_features": tmp_path / "features"}
        run = Run(tmp_path / name, tiny, dataset, split, **options)
        caplog.clear()
        with caplog.at_level(logging.INFO):
            run(variables)
        if variables is tiny_variables:
            assert run.lines == straight.lines
        return "has been run before" in caplog.text

    assert not reuses_features("first", tiny_variables)
    assert reuses_features("second", tiny_variables)
    other_weights = jax.tree.map(lambda leaf: leaf * np.float32(1.01), tiny_variables)
    assert not reuses_features("other weights", other_weights)
    monkeypatch.setattr(prefix_cache, "package_digest", lambda: "of another version")
    assert not reuses_features("other code", tiny_variables)


def test_features_too_large_to_keep_are_not_kept(
    tmp_path, tiny, tiny_variables, dataset, split, monkeypatch
):
    kept = tmp_path / "features"
    monkeypatch.setattr(feature_store, "is_kept", lambda size: size < 10)
    Run(tmp_path, tiny, dataset, split, kept_features=kept)(tiny_variables)
    assert not kept.exists()


def test_as_many_cached_views_as_epochs_are_a_new_view_in_each(
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
    losses = [run.epochs("train_loss") for run in (cached, online, fewer)]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-3)
    assert losses[0][0] == losses[2][0] and losses[0][1] != losses[2][1]
    assert losses[0] != straight.epochs("train_loss")


def test_mixed_images_are_trained_on_and_never_cached(
    tmp_path, tiny, tiny_variables, dataset, split
):
    views = Views(AugmentSettings(mixup=0.4))
    with pytest.raises(InputError, match="mixup"):
        Run(tmp_path / "a", tiny, dataset, split, views=views, cache="memory")(tiny_variables)
    run = Run(tmp_path / "b", tiny, dataset, split, views=views)
    run(tiny_variables)
    assert len(run.progress.history) == 4


def test_stages_share_a_pass_while_their_prefix_is_unchanged():
    def can_share(*names):
        return can_share_pass([fr.resolve(name, TINY_BLOCKS) for name in names])

    assert can_share("head", "conv5", "conv4_block2_2_conv") == [True, True, True]
    assert can_share("conv5", "head", "conv5", "pool4") == [True, False, True, True]
    assert can_share("head", "conv5", "head") == [True, True, False]
    assert can_share("all", "conv5") == [True, False]
    # Batch statistics everywhere, so that all running statistics change.
    live_bn = fr.resolve("conv5", TINY_BLOCKS, bn_mode="live")
    assert can_share_pass([live_bn, fr.resolve("conv5", TINY_BLOCKS)]) == [True, False]


@pytest.mark.parametrize("order", [("head", "conv5", "head"), ("conv5_block2", "all", "conv5")])
def test_no_stage_trains_on_features_of_older_weights(
    tmp_path, tiny, tiny_variables, dataset, split, order
):
    fast = OptimizerSettings(3e-2)
    stages = tuple(stage(f"s{i}", at, 1, fast) for i, at in enumerate(order))
    losses = []
    for cache in ("memory", "off"):
        run = Run(tmp_path / cache, tiny, dataset, split, stages, cache=cache)
        run(tiny_variables)
        losses.append(run.epochs("train_loss"))
    np.testing.assert_allclose(*losses, rtol=2e-2)
