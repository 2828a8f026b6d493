"""The network in compiled segments."""

import jax
import numpy as np
import pytest

from densenet_flax.common.sharding import make_mesh
from densenet_flax.inference import segments
from densenet_flax.inference.segments import SegmentedModel
from densenet_flax.models.preprocessing import preprocess_input

IMAGES = np.random.default_rng(0).integers(0, 256, (2, 40, 64, 3), np.uint8)
CUTS = ("pool2", "conv4_block2")


@pytest.fixture(scope="module")
def segmented(tiny):
    return SegmentedModel(tiny, make_mesh(), cuts=CUTS)


def test_the_cuts_are_in_the_order_of_the_network_and_end_before_norm_and_head(segmented):
    assert segmented.cuts == ("stem", *CUTS, "norm", "head")


@pytest.mark.parametrize("preprocessing", ["torch", "scale"])
def test_the_chain_of_segments_is_the_network(preprocessing, tiny, tiny_variables):
    segmented = SegmentedModel(tiny, make_mesh(), cuts=CUTS, preprocessing=preprocessing)
    logits = segmented.run(tiny_variables, IMAGES)
    expected = tiny.apply(tiny_variables, preprocess_input(IMAGES, preprocessing))
    assert np.allclose(logits, expected, atol=1e-5)


def test_any_cut_can_be_left_and_entered(segmented, tiny_variables):
    logits = segmented.run(tiny_variables, IMAGES)
    for cut in segmented.cuts[1:]:
        x = segmented.run(tiny_variables, IMAGES, stop=cut)
        spec = segmented.input_spec(cut, IMAGES.shape)
        assert (x.shape, x.dtype) == (spec.shape, spec.dtype)
        assert np.array_equal(segmented.run(tiny_variables, x, start=cut), logits)


def test_the_features_at_the_head_are_pooled_in_float32(segmented, tiny, tiny_variables):
    in_bfloat16 = SegmentedModel(tiny.clone(dtype="bfloat16"), make_mesh())
    for network in (segmented, in_bfloat16):
        maps = network.run(tiny_variables, IMAGES, stop="norm")
        features = network.run(tiny_variables, IMAGES, stop="head")
        assert maps.ndim == 4 and features.ndim == 2 and features.dtype == np.float32
        assert network.input_spec("norm", IMAGES.shape).dtype == maps.dtype


def test_networks_with_other_cuts_share_the_segments_between_common_cuts(segmented, tiny_variables):
    segmented.run(tiny_variables, IMAGES, stop="pool2")
    compiled = segments.run_segment._cache_size()
    other = segmented.with_cut("conv5_block1")
    assert other.cuts == ("stem", *CUTS, "conv5_block1", "norm", "head")
    assert other.with_cut("norm") is other
    other.run(tiny_variables, IMAGES, stop="pool2")
    assert segments.run_segment._cache_size() == compiled


def test_a_segment_gets_only_the_variables_that_it_uses(segmented, tiny_variables):
    selected = segmented._select(tiny_variables, "norm", "head")
    assert {kind: set(tree) for kind, tree in selected.items()} == {
        "params": {"bn"},
        "batch_stats": {"bn"},
    }
    whole = segmented._select(tiny_variables, "stem", None)
    assert jax.tree.structure(whole) == jax.tree.structure(dict(tiny_variables))
