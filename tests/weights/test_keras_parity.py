"""DenseNet201 of Keras and ours on the same weights: the same features and logits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from densenet_flax.models import densenet as models
from densenet_flax.weights import load_weights, load_with_info, read_weights
from tests.weights.helpers import (
    assert_same,
    keras_function,
    keras_values,
    randomize_keras,
    save_keras,
    torch_state,
)

keras = pytest.importorskip("keras", reason="Keras is the reference here; pip install keras")

FORMS = ("w.legacy.h5", "w.weights.h5", "w.keras", "w.h5", "w.2018.h5")
SIZES = ((224, 224), (123, 160))  # the usual one, and an odd and oblong one


@pytest.fixture(scope="module")
def network():
    """Keras's DenseNet201 with a top, for any image size, with random weights and statistics."""
    base = keras.applications.DenseNet201(
        include_top=False, weights=None, input_shape=(None, None, 3)
    )
    x = keras.layers.GlobalAveragePooling2D(name="avg_pool")(base.output)
    x = keras.layers.Dense(1000, name="predictions")(x)
    top = keras.Model(base.input, x, name="densenet201")
    randomize_keras(top)
    return top


@pytest.fixture(scope="module")
def files(network, tmp_path_factory):
    folder = tmp_path_factory.mktemp("keras201")
    return {name: save_keras(network, folder / name) for name in FORMS}


@pytest.fixture(scope="module")
def keras_outputs(network):
    """Drawn images of every size, and the features and logits that Keras computes of them."""
    inner = network.get_layer("avg_pool").input
    run = keras_function(keras.Model(network.input, [inner, network.output]))
    images = {
        size: np.random.default_rng(size[0]).standard_normal((2, *size, 3), np.float32)
        for size in SIZES
    }
    return {size: (x, [np.asarray(y) for y in run(x)]) for size, x in images.items()}


@pytest.fixture(scope="module")
def exact(network, keras_outputs, files):
    """Features and logits in float64 at every size, by PyTorch from Keras's own arrays."""
    torch = pytest.importorskip("torch", reason="the float64 reference runs in PyTorch")
    from densenet_flax.weights.torch_reference import run_state_dict

    state = {k: torch.tensor(v) for k, v in torch_state(keras_values(network)).items()}
    _, info = read_weights(files["w.2018.h5"])
    outputs = {}
    for size, (x, _) in keras_outputs.items():
        units = run_state_dict(state, info, x, torch.float64)
        outputs[size] = units["norm"], units["head"]
    return outputs


@pytest.fixture(scope="module", params=models.IMPLEMENTATIONS)
def outputs(request, keras_outputs, files):
    """Features and logits of both at every size, ours from each implementation."""
    model = models.DenseNet201(num_classes=1000, implementation=request.param)
    variables = load_weights(files["w.weights.h5"], model)

    @jax.jit
    def ours(variables, x):
        features = model.apply(variables, x, stop="head")
        return features, model.apply(variables, features, start="head")

    return {
        size: {
            "ours": [np.asarray(y) for y in ours(variables, jnp.asarray(x))],
            "keras": theirs,
        }
        for size, (x, theirs) in keras_outputs.items()
    }


def distance(a, b):
    return np.abs(a - b).max() / np.abs(b).max()


@pytest.mark.parametrize("name", FORMS)
def test_every_format_has_the_variables_of_keras(name, network, files):
    model = models.DenseNet201(num_classes=1000)
    variables, info = load_with_info(files[name], model)
    assert_same(variables, keras_values(network))
    assert (info.network, info.num_classes, info.hidden) == ("densenet201", 1000, ())
    assert (info.preprocessing, info.final_relu) == ("torch", True)
    assert info.epsilon == pytest.approx(1.001e-5, rel=1e-6)


@pytest.mark.parametrize("size", SIZES, ids="{0[0]}x{0[1]}".format)
def test_features_and_logits_agree_with_keras(size, outputs):
    for ours, theirs in zip(outputs[size]["ours"], outputs[size]["keras"], strict=True):
        assert ours.shape == theirs.shape
        assert np.abs(theirs).max() > 1e-3  # a dead network would agree with anything
        print(f"{size}: apart {distance(ours, theirs):.2e}")
        assert distance(ours, theirs) <= 1e-4


@pytest.mark.parametrize("size", SIZES, ids="{0[0]}x{0[1]}".format)
def test_distance_from_float64_is_at_most_twice_that_of_keras(size, outputs, exact):
    apart = zip(outputs[size]["ours"], outputs[size]["keras"], exact[size], strict=True)
    for ours, theirs, right in apart:
        assert right.dtype == np.float64
        our_own, keras_own = distance(ours, right), distance(theirs, right)
        print(f"{size}: from float64, ours {our_own:.2e}, Keras {keras_own:.2e}")
        assert our_own <= 1e-4
        assert our_own <= 2 * keras_own


def test_parameter_totals(files):
    backbone = load_weights(files["w.keras"], models.DenseNet201(), ignore_head=True)
    assert sum(v.size for v in flatten_dict(backbone["params"]).values()) == 18_092_928
    assert sum(v.size for v in flatten_dict(backbone).values()) == 18_321_984
    top = load_weights(files["w.keras"], models.DenseNet201(num_classes=1000))
    assert sum(v.size for v in flatten_dict(top).values()) == 20_242_984
