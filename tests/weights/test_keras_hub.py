"""Keras Hub's DenseNet, whose stem pads differently, from a repository as it makes them."""

import json

import numpy as np
import pytest

from densenet_flax.common.errors import InputError
from densenet_flax.models.densenet import DenseNet
from densenet_flax.weights import load_weights, read_weights
from densenet_flax.weights.load import load_backbone
from tests.weights.helpers import TINY, keras_function, randomize_keras

TORCH = {
    "scale": [1 / (255 * s) for s in (0.229, 0.224, 0.225)],
    "offset": [-m / s for m, s in ((0.485, 0.229), (0.456, 0.224), (0.406, 0.225))],
}


@pytest.fixture(scope="module")
def backbone():
    """Keras Hub's `DenseNetBackbone`, layer by layer, with the blocks of `TINY`."""
    pytest.importorskip("keras", reason="Keras is the reference here; pip install keras")
    from keras import Input, Model, layers

    def norm(x, name):
        x = layers.BatchNormalization(epsilon=1.001e-5, name=f"{name}_bn")(x)
        return layers.Activation("relu", name=f"{name}_relu")(x)

    def conv(x, features, size, name, **options):
        return layers.Conv2D(features, size, use_bias=False, name=f"{name}_conv", **options)(x)

    start = Input((48, 32, 3))
    x = norm(conv(start, 64, 7, "conv1", strides=2, padding="same"), "conv1")
    x = layers.MaxPooling2D(3, strides=2, padding="same", name="pool1")(x)
    for stack, repeats in enumerate(TINY.blocks, start=1):
        for block in range(1, repeats + 1):
            name = f"stack{stack}_block{block}"
            y = conv(norm(x, f"{name}_1"), 128, 1, f"{name}_1")
            y = conv(norm(y, f"{name}_2"), 32, 3, f"{name}_2", padding="same")
            x = layers.Concatenate(name=f"{name}_concat")([x, y])
        if stack < len(TINY.blocks):
            name = f"transition{stack}"
            x = conv(norm(x, name), x.shape[-1] // 2, 1, name)
            x = layers.AveragePooling2D(2, strides=2, name=f"{name}_pool")(x)
    x = layers.BatchNormalization(epsilon=1.001e-5, name="bn")(x)
    model = Model(start, layers.Activation("relu", name="relu")(x))
    randomize_keras(model)
    return model


@pytest.fixture(scope="module")
def weights(backbone, tmp_path_factory):
    path = tmp_path_factory.mktemp("preset") / "model.weights.h5"
    backbone.save_weights(path)
    return path.read_bytes()


def preprocessor(**numbers):
    return json.dumps({"config": {"image_converter": {"config": numbers}}}).encode()


def test_its_backbone_is_a_start_and_nothing_else(weights, hub, caplog):
    files = {"model.weights.h5": weights, "task.weights.h5": b"x", "README.md": b""}
    commit = hub.push("keras/densenet", {**files, "preprocessor.json": preprocessor(**TORCH)})
    variables, inherited = load_backbone("hf://keras/densenet", DenseNet(blocks=TINY.blocks))
    assert "pads an image of even size by 2 and 3 pixels" in caplog.text
    assert inherited["source"] == f"hf://keras/densenet@{commit}/model.weights.h5"
    assert inherited["preprocessing"] == "torch" and inherited["epsilon"] == 1.001e-5
    assert "head" not in variables["params"]
    for read in (read_weights, lambda name: load_weights(name, DenseNet(blocks=TINY.blocks))):
        with pytest.raises(InputError, match=r"Keras Hub's.*its backbone alone can be used"):
            read("hf://keras/densenet")


def test_it_computes_the_same_of_a_shifted_image_but_for_the_border(backbone, weights, tmp_path):
    """So its filters mean the same here; without the shift the numbers differ."""
    import keras

    path = tmp_path / "model.weights.h5"
    path.write_bytes(weights)
    model = DenseNet(blocks=TINY.blocks)
    variables = load_weights(path, model, ignore_head=True)
    image = np.random.default_rng(0).standard_normal((1, 48, 32, 3), np.float32)
    shifted = np.zeros_like(image)
    shifted[:, :-3, :-3] = image[:, 3:, 3:]
    stem = keras.Model(backbone.input, backbone.get_layer("pool1").output)
    theirs = np.asarray(keras_function(stem)(image))[:, 2:-1, 2:-1]

    def ours(x):
        return np.asarray(model.apply(variables, x, stop="conv2_block1"))[:, 2:-1, 2:-1]

    np.testing.assert_allclose(ours(shifted), theirs, atol=1e-5)
    assert np.abs(ours(image) - theirs).max() > 0.1


@pytest.mark.parametrize(
    ("numbers", "mode"), [({"scale": 1 / 255}, "scale"), ({"scale": 1 / 127.5, "offset": -1}, "tf")]
)
def test_it_states_its_preprocessing(numbers, mode, weights, tmp_path):
    path = tmp_path / "model.weights.h5"
    path.write_bytes(weights)
    (tmp_path / "preprocessor.json").write_bytes(preprocessor(**numbers))
    assert load_backbone(path, DenseNet(blocks=TINY.blocks))[1]["preprocessing"] == mode
    (tmp_path / "preprocessor.json").write_bytes(preprocessor(scale=[0.1, 0.2, 0.3]))
    with pytest.raises(InputError, match=r"preprocessor.json makes .* \[0.1, 0.2, 0.3\]"):
        load_backbone(path, DenseNet(blocks=TINY.blocks))


def test_without_names_of_layers_its_configuration_tells(weights, tmp_path):
    import h5py

    path = tmp_path / "model.weights.h5"
    path.write_bytes(weights)
    with h5py.File(path, "r+") as file:
        file.visititems(lambda _, item: item.attrs.pop("name", None) and None)
    module = "keras_hub.src.models.densenet.densenet_backbone"
    config = {"module": module, "class_name": "DenseNetBackbone"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="Keras Hub's DenseNet"):
        read_weights(path)
