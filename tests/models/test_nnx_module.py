"""The network as an NNX module: the same numbers, and training as NNX users write it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.traverse_util import flatten_dict

import densenet_flax
from densenet_flax.models import frontier
from densenet_flax.models.init import init_variables
from tests.helpers.networks import randomize

# Compiled in seconds.
_MODEL = densenet_flax.DenseNet(
    (1, 1, 1, 1), num_classes=2, hidden=(8,), dropout=0.5, implementation="reference"
)


@pytest.fixture(scope="module")
def variables():
    return randomize(init_variables(_MODEL, seed=1), seed=2)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).normal(size=(4, 32, 32, 3)).astype(np.float32)


def _values(module, kind):
    return {
        path: np.asarray(leaf[...]) for path, leaf in nnx.to_flat_state(nnx.state(module, kind))
    }


def test_outputs_and_statistics_are_those_of_the_linen_module(variables, images):
    module = densenet_flax.to_nnx(_MODEL, variables)
    assert isinstance(module.conv5_block1["1_conv"]["kernel"], nnx.Param)
    logits = nnx.jit(lambda module, x: module(x))(module, images)
    assert np.array_equal(logits, jax.jit(_MODEL.apply)(variables, images))

    nnx.jit(lambda module, x: module(x, train=True))(module, images)
    norms = frontier.resolve("all", _MODEL.blocks).train_norms
    options = {"train_norms": norms, "dropout": True, "mutable": ["batch_stats"]}
    apply = jax.jit(lambda v, x, key: _MODEL.apply(v, x, rngs={"dropout": key}, **options))
    _, expected = apply(variables, images, jax.random.key(0))
    expected = flatten_dict(expected["batch_stats"])
    values = _values(module, nnx.BatchStat)
    assert values.keys() == expected.keys()
    for path, value in values.items():
        assert np.array_equal(value, expected[path]), path


def test_it_trains_from_a_layer(variables, images):
    start = "conv5_block1_1_conv"
    module = densenet_flax.to_nnx(_MODEL, variables, unfreeze_from=start)
    optimizer = nnx.Optimizer(module, optax.adam(1e-2), wrt=module.trainable)
    labels = jnp.array([0, 1, 1, 0])

    def loss_of(module):
        logits = module(images, train=True)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    gradient_of = nnx.value_and_grad(loss_of, argnums=nnx.DiffState(0, module.trainable))

    @nnx.jit
    def step(module, optimizer):
        loss, gradient = gradient_of(module)
        optimizer.update(module, gradient)
        return loss

    losses = [float(step(module, optimizer)) for _ in range(20)]
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])  # dropout differs from step to step

    trains = densenet_flax.trainable_mask(variables["params"], start)
    updated = frontier.resolve(start, _MODEL.blocks).batch_stats_mask(variables["batch_stats"])
    for kind, name, mask in (
        (nnx.Param, "params", trains),
        (nnx.BatchStat, "batch_stats", updated),
    ):
        before, changes = flatten_dict(variables[name]), flatten_dict(mask)
        for path, value in _values(module, kind).items():
            assert np.array_equal(value, before[path]) != changes[path], path
