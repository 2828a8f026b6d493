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
from typing import NamedTuple

import numpy as np
import pytest

from densenet_flax.common.sharding import make_mesh, put_batch, replicate
from densenet_flax.common.trees import Variables
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


class KerasStage(NamedTuple):
    """What Keras computed in a stage.

    Attributes:
      losses: of each step.
      weights: after it; those of a layer of the backbone by its name, as `get_weights` gives them.
    """

    losses: list[float]
    weights: dict[str, list[np.ndarray]]


class KerasRuns(NamedTuple):
    """The stages in turn, and the only step of a stage from the frontier on."""

    variables: Variables
    images: np.ndarray
    label: np.ndarray
    stages: dict[int | str, KerasStage]
    first_step: KerasStage


@pytest.fixture(scope="module")
def keras_runs():
    """Keras trains once, whatever number of implementations follow it."""
    from keras.src.applications.densenet import DenseNet as KerasDenseNet

    variables = init_variables(DenseNet(BLOCKS, num_classes=2, hidden=(8,)), seed=1)
    variables = randomize(variables, seed=2)
    base = KerasDenseNet(
        BLOCKS, include_top=False, weights=None, input_shape=(PIXELS, PIXELS, 3), name="base"
    )
    layers = [keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(8, "relu", name="dense_1")]
    layers += [keras.layers.Dense(2, "softmax", name="predictions")]
    theirs = keras.Sequential([keras.Input((PIXELS, PIXELS, 3)), base, *layers])
    rng = np.random.default_rng(3)
    images = rng.integers(0, 256, (STEPS * BATCH, PIXELS, PIXELS, 3), dtype=np.uint8)
    label = rng.integers(0, 2, STEPS * BATCH).astype(np.int32)
    label[:2] = 0, 1  # so that the first step has both
    images[label == 1] //= 2  # something to learn

    def set_weights():
        for layer in fr.keras_layers(BLOCKS):
            if layer.path:
                base.get_layer(layer.name).set_weights(leaves(variables, layer))
        for name in ("dense_1", "predictions"):
            part = variables["params"]["head"][name]
            theirs.get_layer(name).set_weights([part["kernel"], part["bias"]])

    def train(at, steps):
        frontier = fr.resolve(at, BLOCKS)
        for i, layer in enumerate(base.layers):
            layer.trainable = i >= frontier.index
        theirs.compile(keras.optimizers.Adam(1e-3), "sparse_categorical_crossentropy")
        before, losses = [np.array(w) for w in theirs.get_weights()], []
        for step in range(steps):
            theirs.reset_metrics()
            x = np.asarray(preprocess_input(images[rows_of(step)]))
            losses.append(float(theirs.train_on_batch(x, label[rows_of(step)])))
        after = theirs.get_weights()
        assert any(not np.array_equal(was, now) for was, now in zip(before, after, strict=True))
        weights = {
            layer.name: [np.array(w) for w in base.get_layer(layer.name).get_weights()]
            for layer in frontier.layers
            if layer.path
        }
        return KerasStage(losses, weights)

    set_weights()
    first_step = train(FRONTIER, 1)
    set_weights()
    stages = {at: train(at, STEPS) for at in ("head", FRONTIER)}
    return KerasRuns(variables, images, label, stages, first_step)


def rows_of(step):
    return slice(step * BATCH, (step + 1) * BATCH)


def leaves(variables, layer):
    """A layer's variables in Keras's order."""
    params, statistics = variables["params"], variables["batch_stats"]
    for key in layer.path:
        params = params[key]
        statistics = statistics[key] if layer.is_norm else {}
    if layer.is_norm:
        return [params["scale"], params["bias"], statistics["mean"], statistics["var"]]
    return [params["kernel"]]


class Ours:
    """Our steps of the stages, with one implementation."""

    def __init__(self, implementation, runs):
        self.model = DenseNet(BLOCKS, num_classes=2, hidden=(8,), implementation=implementation)
        self.mesh, self.runs = make_mesh(), runs
        cut = fr.resolve(FRONTIER, BLOCKS).cut
        self.pipeline = SegmentedModel(self.model, self.mesh, cuts=[cut])

    def train(self, variables, at, steps):
        """Returns the variables after the stage and its losses."""
        stage = Stage(str(at), fr.resolve(at, BLOCKS), steps, OptimizerSettings(1e-3))
        loss = Loss(dropout=False)
        train_step = TrainStep(self.model, stage, variables, self.mesh, seed=0, loss=loss)
        state, prefix, losses = train_step.init(0), replicate(variables, self.mesh), []
        for step in range(steps):
            rows = rows_of(step)
            part = {"inputs": self.runs.images[rows], "label": self.runs.label[rows]}
            ones = np.ones(BATCH, np.float32)
            batch = put_batch(np.arange(BATCH), ones, lambda i, part=part: part, self.mesh)
            inputs = self.pipeline.run(prefix, batch["inputs"], stop=stage.frontier.cut)
            state, metrics = train_step.run_step(state, {**batch, "inputs": inputs})
            losses.append(float(metrics["loss"]) / BATCH)
        return train_step.variables(state), losses


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_both_stages_follow_keras(implementation, keras_runs):
    ours, variables = Ours(implementation, keras_runs), keras_runs.variables
    for at, theirs in keras_runs.stages.items():
        variables, losses = ours.train(variables, at, STEPS)
        ratio = np.abs(np.array(losses) / theirs.losses - 1)
        print(f"\n{at}: losses apart by {ratio[0]:.1e} at first, {ratio.max():.1e} at most")
        assert len(set(np.round(theirs.losses, 6))) > STEPS // 2, "Keras did not train"
        assert ratio[0] < 1e-4
        assert ratio.max() < 1e-2
        compare(variables, theirs, fr.resolve(at, BLOCKS))


def compare(variables, theirs, frontier):
    """Weights and statistics after the stage; the frozen ones to the bit."""
    apart, statistics = [], []
    for index, layer in enumerate(frontier.layers):
        if not layer.path:
            continue
        for i, (ours, keras_value) in enumerate(
            zip(leaves(variables, layer), theirs.weights[layer.name], strict=True)
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


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_the_first_update_is_that_of_keras(implementation, keras_runs):
    """One step from the frontier: the same change in every weight, which is the same Adam."""
    start, theirs = keras_runs.variables, keras_runs.first_step.weights
    ours, _ = Ours(implementation, keras_runs).train(start, FRONTIER, 1)
    at = fr.resolve(FRONTIER, BLOCKS)
    differences, moves = [], []
    for layer in at.layers[at.index :]:
        if not layer.path:
            continue
        new = theirs[layer.name]
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
