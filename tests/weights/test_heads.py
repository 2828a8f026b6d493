"""Heads of Keras and PyTorch, composed at random: our probabilities are theirs, or one line.

What a state dict cannot say is assumed and said, see docs/weights.md: where a head of PyTorch has
no ReLU between two layers and names leave that open, it is the same head with ReLUs that we read.
"""

import itertools
import os
import random
from collections import OrderedDict

import numpy as np
import pytest

from densenet_flax.common.errors import InputError
from densenet_flax.inference.results import to_probabilities
from densenet_flax.models.preprocessing import preprocess_input
from densenet_flax.weights import inspect, read_weights
from tests.weights.helpers import (
    TINY,
    keras_function,
    keras_tiny,
    random_variables,
    randomize_keras,
    torch_state,
)

# More of them by hand: HEADS=500 pytest tests/weights/test_heads.py
COUNT = int(os.environ.get("HEADS", "12"))
PIXELS = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3)).astype(np.float32)


def our_probabilities(variables, info, features):
    """Of the head alone, from the features that enter it, as the framework gives them."""
    model = info.build_model()
    logits = np.asarray(model.apply(variables, features, start="head"))
    p = to_probabilities(logits, info.activation)
    return p[:, 1:] if logits.shape[-1] == 1 else p


@pytest.fixture(scope="module")
def keras_base():
    """A tiny network of Keras, cut after its last norm and after its last ReLU, and its outputs."""
    base = keras_tiny(input_shape=(64, 64, 3))
    randomize_keras(base)
    import keras

    both = keras.Model(base.input, [base.get_layer("bn").output, base.output])
    maps = [np.asarray(x) for x in keras_function(both)(preprocess_input(PIXELS))]
    return base, {"bn": maps[0], "relu": maps[1]}


def draw_keras_head(rng):
    """Layers after the backbone, of what people put there and of what our head has, mixed."""
    from keras import layers as L

    def maybe(share, *made):
        return [rng.choice(made)] if rng.random() < share else []

    act = ["relu", "tanh", "elu", "linear", "relu", "relu", None]
    pool = [
        [L.GlobalAveragePooling2D()],
        [L.GlobalAveragePooling2D()],
        [L.GlobalAveragePooling2D()],
        [L.GlobalAveragePooling2D(keepdims=True), L.Flatten()],
        [L.AveragePooling2D(2), L.Flatten()],
        [L.MaxPooling2D(2), L.Flatten()],
        [L.GlobalMaxPooling2D()],
        [L.Flatten()],
    ]
    head = maybe(0.2, L.Activation("relu"), L.Activation("tanh"), L.ReLU(), L.ReLU(6.0))
    head += rng.choice(pool)
    for _ in range(rng.choice([0, 0, 1, 2])):
        head += maybe(0.4, L.Dropout(0.5), L.GaussianNoise(0.1))
        head += maybe(0.1, L.BatchNormalization(), L.LayerNormalization())
        form = rng.random()
        if form < 0.6:
            head.append(L.Dense(8, activation=rng.choice(["relu", "relu", "relu", *act])))
        else:
            head.append(L.Dense(8, use_bias=rng.random() < 0.8))
            head += maybe(0.9, L.Activation("relu"), L.ReLU(), L.LeakyReLU(), L.Activation("gelu"))
    outputs = rng.choice([1, 2, 3, 14])
    last = rng.choice(["softmax", "sigmoid", "linear"])
    if rng.random() < 0.5:
        head.append(
            L.Dense(outputs, activation=last, name=rng.choice([None, "out", "predictions"]))
        )
    else:
        head += [L.Dense(outputs), *maybe(0.8, L.Activation(last), L.Softmax())]
    return head + maybe(0.1, L.Activation("softmax"), L.Dropout(0.1))


def keras_form(form, base, cut, head):
    import keras

    if form == "nested" and cut == "relu":
        return keras.Sequential([base, *head])
    if form == "models in models":
        features = keras.Model(base.input, base.get_layer(cut).output)
        start = keras.Input(base.input_shape[1:])
        first = keras.Model(start, keras.Sequential(head[:2])(features(start)))
        return keras.Sequential([first, keras.Sequential(head[2:])] if head[2:] else [first])
    if form == "head model":
        inner = keras.Sequential(head)
        return keras.Model(base.input, inner(base.get_layer(cut).output))
    x = base.get_layer(cut).output
    for layer in head:
        x = layer(x)
    return keras.Model(base.input, x)


@pytest.mark.parametrize("seed", range(COUNT))
def test_keras_heads_are_exact_or_refused(seed, keras_base, tmp_path):
    import keras

    rng = random.Random(seed)
    base, outputs = keras_base
    cut = rng.choice(["relu", "relu", "relu", "bn"])
    head = draw_keras_head(rng)
    model = keras_form(
        rng.choice(["flat", "nested", "head model", "models in models"]), base, cut, head
    )
    generator = np.random.default_rng(seed)
    theirs = outputs[cut]
    for layer in head:
        for weight in layer.weights:
            if "seed" not in weight.path:
                weight.assign(generator.uniform(0.1, 0.5, weight.shape) * generator.choice([-1, 1]))
        theirs = layer(theirs, training=False) if layer.weights else layer(theirs)
    theirs = np.asarray(theirs)
    path = tmp_path / rng.choice(["m.keras", "m.keras", "m.h5"])
    model.save(path)
    names = [f"{type(x).__name__} {getattr(x, 'activation', '')}" for x in head]
    try:
        variables, info = read_weights(path)
    except InputError as error:
        assert "\n" not in str(error)
        assert "damaged" not in str(error), str(error)
        print("refused", names, str(error)[:200])
        return
    ours = our_probabilities(variables, info, outputs["relu" if info.final_relu else "bn"])
    last = next(x for x in reversed(head) if not isinstance(x, keras.layers.Dropout))
    if getattr(last, "activation", None) is keras.activations.linear:  # logits, as `because` says
        theirs = to_probabilities(theirs, info.activation)
        theirs = theirs[:, 1:] if info.num_classes == 1 else theirs
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5, err_msg=str(names))


@pytest.mark.parametrize("seed", range(3 * COUNT))
def test_torch_heads_are_exact_or_refused(seed, tmp_path):
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file
    from torch import nn

    rng = random.Random(seed)
    torch.manual_seed(seed)
    features = TINY.features
    sizes = [features, *(rng.choice([features, 8, 8]) for _ in range(rng.choice([0, 1, 2, 3])))]
    sizes.append(rng.choice([1, 2, 3, 14]))
    pairs = list(itertools.pairwise(sizes))
    linears = [nn.Linear(i, o, bias=rng.random() < 0.9) for i, o in pairs]
    modules = []
    for number, linear in enumerate(linears):
        modules += [nn.Dropout(0.5)] if rng.random() < 0.4 else []
        modules += [linear]
        modules += [nn.ReLU()] if number < len(linears) - 1 and rng.random() < 0.9 else []
    form = rng.choice(["sequential", "named", "shuffled"])
    if form == "sequential":
        head = nn.Sequential(*modules)
        state = {f"classifier.{k}": v for k, v in head.state_dict().items()}
    else:  # attributes, declared in the order of use or in another that shapes may settle
        words = rng.sample(list("abcdefghxyz"), len(modules))
        head = nn.Sequential(OrderedDict(zip(words, modules, strict=True)))
        parts = [(w, m) for w, m in head.named_children() if isinstance(m, nn.Linear)]
        if form == "shuffled" and len({tuple(m.weight.shape) for _, m in parts}) == len(parts):
            rng.shuffle(parts)
        state = {f"{w}.{k}": v for w, m in parts for k, v in m.state_dict().items()}
    prefix = rng.choice(["", "module.", "_orig_mod.module.", "model.net."])
    body = torch_state(random_variables(TINY), f"{prefix}features.")
    backbone = {name: torch.tensor(value) for name, value in body.items()}
    state = backbone | {f"{prefix}{name}": value for name, value in state.items()}
    path = tmp_path / rng.choice(["m.pth", "m.safetensors"])
    if path.suffix == ".pth":
        torch.save(rng.choice([state, {"state_dict": state}, {"model": state, "epoch": 3}]), path)
    else:
        save_file({k: v.contiguous() for k, v in state.items()}, path)
    described = [type(m).__name__ for m in modules]
    try:
        variables, info = read_weights(path)
    except InputError as error:
        assert "\n" not in str(error) and "incomplete" not in str(error)
        print("refused", described, str(error)[-250:])
        return
    if described.count("ReLU") < len(linears) - 1:
        assert form != "sequential" or "Dropout" in described  # numbers show two neighbors
        assert "ReLU between the layers" in "; ".join(inspect(path).evidence)
        relus = [m for linear in linears[:-1] for m in (linear, nn.ReLU())]
        head = nn.Sequential(*relus, linears[-1])
    x = np.random.default_rng(seed).uniform(0, 1, (3, features)).astype(np.float32)
    with torch.inference_mode():
        logits = head.eval()(torch.tensor(x)).numpy()
    ours = our_probabilities(variables, info, x)
    theirs = to_probabilities(logits, info.activation)
    theirs = theirs[:, 1:] if logits.shape[-1] == 1 else theirs
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5, err_msg=str(described))
