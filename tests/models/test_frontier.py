import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from densenet_flax import trainable_mask
from densenet_flax.models import frontier as fr
from densenet_flax.models.densenet import DenseNet201
from densenet_flax.models.init import init_variables

BLOCKS_201 = (6, 12, 48, 32)
TINY = (2, 2, 3, 2)
LAYERS_OF_TINY = len(fr.keras_layers(TINY))


def trainable_count(params, mask):
    pairs = zip(jax.tree.leaves(params), jax.tree.leaves(mask), strict=True)
    return sum(leaf.size for leaf, trains in pairs if trains)


def trained_layers(mask):
    paths = jax.tree_util.tree_leaves_with_path(mask)
    names = {"_".join(key.key for key in path[:-1]): trains for path, trains in paths}
    return {name for name, trains in names.items() if trains and not name.startswith("head")}


@pytest.fixture(scope="module")
def params_201():
    model = DenseNet201(num_classes=2, hidden=(256,))
    return init_variables(model, 0)["params"]


def test_layer_300_is_keras_layers_from_300(params_201):
    assert trainable_count(params_201, trainable_mask(params_201, unfreeze_from=300)) == 14_520_770
    at = fr.resolve(300, BLOCKS_201)
    assert at.first.name == "conv4_block23_2_conv"
    assert at.cut == "conv4_block23"
    # Keras's own cut runs through the block: two norms and the 1×1 before it stay frozen.
    mask = trainable_mask(params_201, 300)["conv4_block23"]
    assert [mask[layer] for layer in ("0_bn", "1_bn")] == [{"scale": False, "bias": False}] * 2
    assert mask["1_conv"] == {"kernel": False} and mask["2_conv"] == {"kernel": True}
    assert not {"conv4_block23_0_bn", "conv4_block23_1_bn"} & at.train_norms
    assert "conv4_block24_0_bn" in at.train_norms


def test_what_is_printed(params_201):
    line = fr.resolve(300, BLOCKS_201).describe(params_201)
    assert "frozen 4.1 M · trainable 14.5 M" in line
    assert "conv4_block23_2_conv (Keras layer 300)" in line
    assert "116 on batch statistics, 85 in inference mode" in line
    head = fr.resolve("head", BLOCKS_201).describe(params_201)
    assert "trainable 0.5 M · from the head" in head and "0 on batch statistics" in head


@pytest.mark.parametrize(
    ("written", "first", "cut"),
    [
        ("all", "conv1_conv", "stem"),
        ("stem", "conv1_conv", "stem"),
        ("conv1_bn", "conv1_bn", "stem"),
        ("conv5", "conv5_block1_0_bn", "conv5_block1"),
        ("conv5_block7", "conv5_block7_0_bn", "conv5_block7"),
        ("conv5_block7_1_conv", "conv5_block7_1_conv", "conv5_block7"),
        ("conv5_block7_concat", "conv5_block8_0_bn", "conv5_block8"),
        ("pool4", "pool4_bn", "pool4"),
        ("pool4_conv", "pool4_conv", "pool4"),
        ("norm", "bn", "norm"),
        ("bn", "bn", "norm"),
        (0, "conv1_conv", "stem"),
        ("300", "conv4_block23_2_conv", "conv4_block23"),
        (-3, "bn", "norm"),
    ],
)
def test_every_way_to_write_a_frontier(written, first, cut):
    at = fr.resolve(written, BLOCKS_201)
    assert (at.first.name, at.cut) == (first, cut)


def test_the_head_alone():
    for written in ("head", -1):  # the last Keras layer, a ReLU, has nothing to train
        at = fr.resolve(written, BLOCKS_201)
        assert at.first is None and at.cut == "head" and not at.train_norms


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("conv4_blok23", "did you mean conv4_block23"),
        ("layer4", "'head' or 'all'"),
        ("conv6", "no unit and no Keras layer"),
        (707, "0 to 706"),
        (-708, "0 to 706"),
        (True, "no unit"),
        ("", "no unit"),
    ],
)
def test_a_name_that_matches_nothing_is_refused(written, message):
    with pytest.raises(ValueError, match=message):
        fr.resolve(written, BLOCKS_201)


def test_bn_modes():
    keras, frozen, live = (fr.resolve("conv5", BLOCKS_201, bn_mode=m) for m in fr.BN_MODES)
    assert keras.cut == frozen.cut == "conv5_block1"
    assert len(keras.train_norms) == 65 and not frozen.train_norms and len(live.train_norms) == 201
    assert live.cut == "stem"  # a prefix whose statistics move is no fixed function
    with pytest.raises(ValueError, match="bn_mode"):
        fr.resolve("conv5", BLOCKS_201, bn_mode="eval")


def test_blocks_are_read_from_names(tiny, tiny_variables):
    assert fr.blocks_of(tiny_variables["params"]) == TINY
    with pytest.raises(ValueError, match="whole parameter tree"):
        fr.blocks_of({"conv5_block1": {}})


@given(st.integers(0, LAYERS_OF_TINY - 1))
def test_everything_follows_from_the_index(tiny, tiny_variables, index):
    at = fr.resolve(index, TINY)
    behind = {layer.name for layer in at.layers[index:] if layer.path}
    params, statistics = tiny_variables["params"], tiny_variables["batch_stats"]
    assert trained_layers(at.mask(params)) == behind
    norms = {layer.name for layer in at.layers if layer.is_norm}
    assert at.train_norms == behind & norms
    assert trained_layers(at.live_statistics(statistics)) == at.train_norms
    assert all(jax.tree.leaves(at.mask(params)["head"]))
    # The cut is the last place where everything before is frozen.
    units = tiny.units
    before = set(units[: units.index(at.cut)])
    assert not any(layer.name in behind for layer in at.layers if layer.unit in before)
    if at.first:
        assert at.first.unit == at.cut


@pytest.fixture(scope="module")
def keras_tiny():
    keras_densenet = pytest.importorskip("keras.src.applications.densenet")
    return keras_densenet.DenseNet(TINY, include_top=False, weights=None, input_shape=(32, 32, 3))


@pytest.mark.parametrize("name", ["DenseNet121", "DenseNet169", "DenseNet201"])
def test_layers_are_keras_layers(name):
    keras = pytest.importorskip("keras")
    from densenet_flax.models.densenet import NETWORKS

    theirs = getattr(keras.applications, name)(
        include_top=False, weights=None, input_shape=(32, 32, 3)
    ).layers
    ours = fr.keras_layers(NETWORKS[name.lower()]().blocks)
    assert len(ours) == len(theirs)
    for mine, layer in zip(ours, theirs, strict=True):
        assert mine.is_norm == (type(layer).__name__ == "BatchNormalization")
        assert bool(mine.path) == bool(layer.weights)
        if mine.path:  # Keras numbers the layers that it names itself
            assert mine.name == layer.name


def test_masks_are_keras_trainable_flags(keras_tiny, tiny_variables):
    """Every frontier over the whole line, against Keras's own flags."""
    for index in range(LAYERS_OF_TINY):
        for i, layer in enumerate(keras_tiny.layers):
            layer.trainable = i >= index
        theirs = {layer.name for layer in keras_tiny.layers if layer.trainable_weights}
        assert trained_layers(trainable_mask(tiny_variables["params"], index)) == theirs
        # A frozen BatchNormalization of Keras runs in inference mode.
        live = {
            layer.name
            for layer in keras_tiny.layers
            if type(layer).__name__ == "BatchNormalization" and layer.trainable
        }
        assert fr.resolve(index, TINY).train_norms == live
        count = sum(int(np.prod(w.shape)) for w in keras_tiny.trainable_weights)
        mask = trainable_mask({k: v for k, v in tiny_variables["params"].items()}, index)
        backbone = {k: v for k, v in tiny_variables["params"].items() if k != "head"}
        assert trainable_count(backbone, {k: mask[k] for k in backbone}) == count
