"""The recipe's two stages, step by step against Keras.

From the same weights, batches and head, dropout off, float32, 20 steps of Adam each: the same
losses, updates and BatchNorm statistics. The network is the smallest of the family that has all
kinds of units, a stage of several blocks and a frontier inside a block, so that Keras compiles it
in seconds; DENSENET_FLAX_WHOLE=1 runs DenseNet201 from layer 300 instead.

Tolerance: the first losses agree to 1e-4 (rounding: sums are taken in another order). From there
the difference grows, because Adam divides by the gradient's own size: a weight whose gradient is
all rounding moves by the full learning rate in either direction. 1e-2 bounds it after 20 steps.
"""

import os

import jax
import numpy as np
import pytest

from densenet_flax.common.sharding import make_mesh, put_batch, replicate
from densenet_flax.inference.segments import SegmentedModel
from densenet_flax.models import frontier as fr
from densenet_flax.models.densenet import IMPLEMENTATIONS, DenseNet
from densenet_flax.models.init import init_variables
from densenet_flax.models.preprocessing import preprocess_input
from densenet_flax.training.optimizer import OptimizerSettings
from densenet_flax.training.stage import Loss, Stage
from densenet_flax.training.train_step import TrainStep
from tests.helpers.networks import TINY_BLOCKS, randomize

keras = pytest.importorskip("keras")

WHOLE = bool(os.environ.get("DENSENET_FLAX_WHOLE"))
BLOCKS = (6, 12, 48, 32) if WHOLE else TINY_BLOCKS
FRONTIER = 300 if WHOLE else "conv4_block2_2_conv"  # both inside a block
STEPS, BATCH, PIXELS = 20, 8, 96


@pytest.fixture(scope="module", params=IMPLEMENTATIONS)
def both(request):
    """Our variables, and Keras's recipe model with the same ones, for each implementation."""
    from keras.src.applications.densenet import DenseNet as KerasDenseNet

    model = DenseNet(BLOCKS, num_classes=2, hidden=(8,), implementation=request.param)
    variables = randomize(init_variables(model, seed=1), seed=2)
    base = KerasDenseNet(
        BLOCKS, include_top=False, weights=None, input_shape=(PIXELS, PIXELS, 3), name="base"
    )
    layers = [keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(8, "relu", name="dense_1")]
    layers += [keras.layers.Dense(2, "softmax", name="predictions")]
    theirs = keras.Sequential([keras.Input((PIXELS, PIXELS, 3)), base, *layers])
    for layer in fr.keras_layers(BLOCKS):
        if layer.path:
            base.get_layer(layer.name).set_weights(leaves(variables, layer))
    for name in ("dense_1", "predictions"):
        part = variables["params"]["head"][name]
        theirs.get_layer(name).set_weights([part["kernel"], part["bias"]])
    return model, variables, theirs


def leaves(variables, layer):
    """A layer's variables in Keras's order."""
    params, statistics = variables["params"], variables["batch_stats"]
    for key in layer.path:
        params = params[key]
        statistics = statistics[key] if layer.is_norm else {}
    if layer.is_norm:
        return [params["scale"], params["bias"], statistics["mean"], statistics["var"]]
    return [params["kernel"]]


def test_both_stages_follow_keras(both):
    model, variables, theirs = both
    rng = np.random.default_rng(3)
    images = rng.integers(0, 256, (STEPS * BATCH, PIXELS, PIXELS, 3), dtype=np.uint8)
    label = rng.integers(0, 2, STEPS * BATCH).astype(np.int32)
    images[label == 1] //= 2  # something to learn
    mesh = make_mesh()
    pipeline = SegmentedModel(model, mesh, cuts=[fr.resolve(FRONTIER, BLOCKS).cut])
    base = theirs.get_layer("base")

    for at in ("head", FRONTIER):
        stage = Stage(str(at), fr.resolve(at, BLOCKS), STEPS, OptimizerSettings(1e-3))
        for i, layer in enumerate(base.layers):
            layer.trainable = i >= stage.frontier.index
        theirs.compile(keras.optimizers.Adam(1e-3), "sparse_categorical_crossentropy")
        train_step = TrainStep(model, stage, variables, mesh, seed=0, loss=Loss(dropout=False))
        state = train_step.init(0)
        prefix = replicate(variables, mesh)
        begin = [np.array(w) for w in theirs.get_weights()]
        ours_losses, their_losses = [], []
        for step in range(STEPS):
            rows = slice(step * BATCH, (step + 1) * BATCH)
            part = {"inputs": images[rows], "label": label[rows]}
            ones = np.ones(BATCH, np.float32)
            batch = put_batch(np.arange(BATCH), ones, lambda i, part=part: part, mesh)
            batch["inputs"] = pipeline.run(prefix, batch["inputs"], stop=stage.frontier.cut)
            state, metrics = train_step.run_step(state, batch)
            ours_losses.append(float(metrics["loss"]) / BATCH)
            theirs.reset_metrics()
            x = np.asarray(preprocess_input(images[rows]))
            their_losses.append(float(theirs.train_on_batch(x, label[rows])))
        variables = train_step.variables(state)

        ratio = np.abs(np.array(ours_losses) / their_losses - 1)
        print(f"\n{at}: losses apart by {ratio[0]:.1e} at first, {ratio.max():.1e} at most")
        assert len(set(np.round(their_losses, 6))) > STEPS // 2, "Keras did not train"
        assert ratio[0] < 1e-4
        assert ratio.max() < 1e-2
        compare(variables, theirs, stage.frontier, begin)


def compare(variables, theirs, frontier, begin):
    """Weights and statistics after the stage; the frozen ones to the bit."""
    base = theirs.get_layer("base")
    apart, statistics = [], []
    for index, layer in enumerate(frontier.layers):
        if not layer.path:
            continue
        for i, (ours, keras_value) in enumerate(
            zip(leaves(variables, layer), base.get_layer(layer.name).get_weights(), strict=True)
        ):
            where = f"{layer.name}, variable {i}"
            if index < frontier.index:
                np.testing.assert_array_equal(ours, keras_value, err_msg=where)
            elif i >= 2:
                largest = np.abs(keras_value).max()
                statistics.append(np.abs(ours - keras_value).ravel() / largest)
            else:
                apart.append(np.abs(ours - keras_value).ravel())
    if apart:
        median, most = np.quantile(np.concatenate(apart), [0.5, 0.999])
        print(f"weights apart by {median:.1e} in the median, {most:.1e} at the 99.9th percentile")
        # In units of the learning rate, of which each weight has moved up to 20: a few of those
        # whose gradient is all rounding go their own way.
        assert median < 0.5e-3 and most < 5e-3
        median, most = np.quantile(np.concatenate(statistics), [0.5, 0.999])
        print(f"statistics apart by {median:.1e} of the largest, {most:.1e}")
        assert median < 5e-3 and most < 5e-2
    pairs = zip(begin, theirs.get_weights(), strict=True)
    assert any(not np.array_equal(was, now) for was, now in pairs)


def test_the_first_update_is_that_of_keras(both):
    """One step from the frontier: the same change in every weight, which is the same Adam."""
    model, variables, theirs = both
    start = jax.tree.map(np.array, variables)
    theirs_clone = keras.models.clone_model(theirs)
    theirs_clone.set_weights(theirs.get_weights())
    base = theirs_clone.get_layer("base")
    at = fr.resolve(FRONTIER, BLOCKS)
    for layer in at.layers:
        if layer.path:
            base.get_layer(layer.name).set_weights(leaves(start, layer))
    for name in ("dense_1", "predictions"):
        part = start["params"]["head"][name]
        theirs_clone.get_layer(name).set_weights([part["kernel"], part["bias"]])
    for i, layer in enumerate(base.layers):
        layer.trainable = i >= at.index
    theirs_clone.compile(keras.optimizers.Adam(1e-3), "sparse_categorical_crossentropy")
    rng = np.random.default_rng(4)
    images = rng.integers(0, 256, (BATCH, PIXELS, PIXELS, 3), dtype=np.uint8)
    label = np.arange(BATCH, dtype=np.int32) % 2
    mesh = make_mesh()
    stage = Stage("one", at, 1, OptimizerSettings(1e-3))
    train_step = TrainStep(model, stage, start, mesh, seed=0, loss=Loss(dropout=False))
    batch = put_batch(
        np.arange(BATCH),
        np.ones(BATCH, np.float32),
        lambda i: {"inputs": images, "label": label},
        mesh,
    )
    pipeline = SegmentedModel(model, mesh, cuts=[at.cut])
    batch["inputs"] = pipeline.run(replicate(start, mesh), batch["inputs"], stop=at.cut)
    state, _ = train_step.run_step(train_step.init(0), batch)
    theirs_clone.train_on_batch(np.asarray(preprocess_input(images)), label)
    ours = train_step.variables(state)
    differences, moves = [], []
    for layer in at.layers[at.index :]:
        if not layer.path:
            continue
        new = base.get_layer(layer.name).get_weights()
        for i, value in enumerate(leaves(ours, layer)):
            if i >= 2:
                np.testing.assert_allclose(value, new[i], rtol=1e-4, atol=1e-5)
                continue
            differences.append(np.abs(value - new[i]).ravel())
            moves.append(np.abs(new[i] - leaves(start, layer)[i]).ravel())
    differences, moves = np.concatenate(differences), np.concatenate(moves)
    # A first Adam update is ±1e-3 but where the gradient is as small as rounding or epsilon.
    assert np.median(moves) > 5e-4
    assert np.quantile(differences, 0.99) < 1e-5
