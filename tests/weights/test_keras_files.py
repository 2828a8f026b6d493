"""Reading Keras's files."""

import json
import zipfile

import h5py
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from densenet_flax.common.errors import InputError
from densenet_flax.weights import convert, load_weights, read_weights, save_weights
from densenet_flax.weights.keras_graph import read_graph
from densenet_flax.weights.save import export_weights
from tests.weights.helpers import (
    RECIPE,
    TINY,
    assert_same,
    info_of,
    keras_function,
    keras_head,
    keras_recipe,
    keras_tiny,
    keras_values,
    random_variables,
    randomize_keras,
    save_keras,
)

FORMS = ("m.h5", "m.keras", "m.weights.h5", "m.legacy.h5")


@pytest.mark.parametrize("name", [*FORMS, "m.2018.h5"])
@pytest.mark.parametrize("classes", [0, 5])
def test_the_bare_network_in_every_format(name, classes, tmp_path):
    model = keras_tiny(classes)
    randomize_keras(model)
    variables, info = read_weights(save_keras(model, tmp_path / name))
    assert_same(variables, keras_values(model))
    assert (info.layout.blocks, info.num_classes) == (TINY.blocks, classes)


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("build", ["sequential", "nested", "flat"])
def test_the_fine_tuned_model_in_every_format(name, build, tmp_path):
    """With its head, half frozen and with optimizer state: the probabilities are Keras's."""
    base = keras_tiny()
    model = keras_recipe(build, base)
    randomize_keras(model)
    for layer in base.layers[:20]:
        layer.trainable = False
    model.compile("adam", "sparse_categorical_crossentropy")
    model.optimizer.build(model.trainable_variables)
    variables, info = read_weights(save_keras(model, tmp_path / name))
    assert_same(variables, keras_values(model))
    assert (info.num_classes, info.hidden, info.activation) == (2, (256,), "softmax")
    x = np.random.default_rng(0).standard_normal((3, 32, 32, 3), np.float32)
    logits = np.asarray(info.build_model().apply(variables, x))
    ours = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    theirs = np.asarray(keras_function(model)(x))
    assert np.ptp(theirs[:, 0]) > 1e-3
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)


def test_the_order_of_many_numbered_dense_layers(tmp_path):
    """`dense_10` comes after `dense_9`, whatever order HDF5 lists them in."""
    import keras

    base = keras_tiny()
    x = keras.layers.GlobalAveragePooling2D()(base.output)
    for _ in range(11):
        x = keras.layers.Dense(8, activation="relu")(x)
    model = keras.Model(base.input, keras.layers.Dense(3)(x))
    randomize_keras(model)
    for name in FORMS:
        variables, info = read_weights(save_keras(model, tmp_path / name))
        assert info.hidden == (8,) * 11
        assert_same(variables, keras_values(model))


def test_bfloat16_and_float16_are_widened(tmp_path):
    path = tmp_path / "m.weights.h5"
    variables = random_variables(TINY)
    export_weights(path, variables, info_of(TINY))
    with h5py.File(path, "r+") as file:
        group = file["layers/conv2d/vars"]
        values = group["0"][()]
        del group["0"]
        group["0"] = values.astype(np.float16)
    kernel = load_weights(path, info_of(TINY).build_model())["params"]["conv1"]["conv"]["kernel"]
    assert kernel.dtype == np.float32
    assert np.array_equal(kernel, values.astype(np.float16).astype(np.float32))

    keras = pytest.importorskip("keras")
    keras.config.set_dtype_policy("bfloat16")
    try:
        model = keras_tiny()
        model.save_weights(tmp_path / "b.weights.h5")
        variables, _ = read_weights(tmp_path / "b.weights.h5")
    finally:
        keras.config.set_dtype_policy("float32")
    kernel = np.asarray(model.get_layer("conv1_conv").kernel).astype(np.float32)
    assert np.array_equal(variables["params"]["conv1"]["conv"]["kernel"], kernel)


# What the configuration of a whole model says.


def test_rescaling_in_the_model_means_scale(tmp_path):
    keras = pytest.importorskip("keras")
    base = keras_tiny()
    model = keras.Sequential([keras.layers.Rescaling(1 / 255), base, *keras_head()])
    model.build((None, 32, 32, 3))
    for name in ("m.keras", "m.h5"):
        _, info = read_weights(save_keras(model, tmp_path / name))
        assert info.preprocessing == "scale"


@pytest.mark.parametrize("kind", ["Resizing", "Normalization"])
def test_pixels_that_this_package_cannot_prepare_need_a_stated_mode(kind, tmp_path):
    keras = pytest.importorskip("keras")
    size = (None, None, 3) if kind == "Resizing" else (32, 32, 3)
    layer = keras.layers.Resizing(32, 32) if kind == "Resizing" else keras.layers.Normalization()
    layers = [layer, keras_tiny(), *keras_head()]
    model = keras.Sequential([keras.Input(size), *layers])
    path, target = save_keras(model, tmp_path / "m.keras"), tmp_path / "m.safetensors"
    with pytest.raises(InputError, match=f"{kind.lower()}.*--preprocessing"):
        read_weights(path)
    info = convert(path, target, verify=False, preprocessing="tf").info
    assert (info.preprocessing, info.inference.image_size) == ("tf", (32, 32))


def test_keras_2_counts_the_calls_of_inner_models_from_one():
    def layer(kind, name, *inbound, **config):
        return {"class_name": kind, "name": name, "inbound_nodes": list(inbound), "config": config}

    def functional(name, layers, output, *inbound):
        ends = {"input_layers": [[f"in_{name}", 0, 0]], "output_layers": [output]}
        layers = [layer("InputLayer", f"in_{name}"), *layers]
        return layer("Functional", name, *inbound, layers=layers, **ends)

    relu = layer("ReLU", "relu", [["in_inner", 0, 0, {}]])
    inner = functional("inner", [relu], ["relu", 0, 0], [["in_outer", 0, 0, {"training": False}]])
    dense = layer("Dense", "dense", [["inner", 1, 0, {}]])
    graph = read_graph(functional("outer", [inner, dense], ["dense", 0, 0]))
    assert [(call.name, call.inputs) for call in graph.calls][1:] == [
        ("relu", (0,)),
        ("dense", (1,)),
    ]
    assert graph.outputs == [2] and graph.calls[1].path == "functional/relu"
    inner["inbound_nodes"] *= 2  # two calls, of which one is used
    dense["inbound_nodes"] = [[["inner", 2, 0, {}]]]
    assert len(read_graph(functional("outer", [inner, dense], ["dense", 0, 0])).calls) == 4


def test_epsilon_and_a_missing_last_relu_come_from_the_configuration(tmp_path):
    keras = pytest.importorskip("keras")
    base = keras_tiny()
    cut = keras.Model(base.input, base.get_layer("bn").output)
    _, info = read_weights(save_keras(cut, tmp_path / "m.keras"))
    assert info.final_relu is False
    for layer in base.layers:
        if hasattr(layer, "epsilon"):
            layer.epsilon = 1e-3
    _, info = read_weights(save_keras(base, tmp_path / "e.keras"))
    assert (info.final_relu, info.epsilon) == (True, 1e-3)


@pytest.mark.parametrize("case", ["sigmoid", "linear"])
def test_the_last_activation(case, tmp_path):
    keras = pytest.importorskip("keras")
    last = keras.layers.Dense(1 if case == "sigmoid" else 3, activation=case)
    model = keras.Sequential([keras_tiny(), keras.layers.GlobalAveragePooling2D(), last])
    _, info = read_weights(save_keras(model, tmp_path / "m.keras"))
    assert info.activation == ("sigmoid" if case == "sigmoid" else "softmax")


@pytest.mark.parametrize(
    ("layer", "word"),
    [
        (lambda k: k.layers.Dense(4, activation="tanh"), "tanh"),
        (lambda k: k.layers.LayerNormalization(), "LayerNormalization"),
        (lambda k: k.layers.BatchNormalization(), "is a BatchNormalization"),
        (lambda k: k.layers.Rescaling(2.0), "is a Rescaling"),
        (lambda k: type("Dropout", (k.layers.Dropout,), {})(0.5), "is a custom Dropout"),
        (lambda k: k.layers.Flatten(data_format="channels_first"), "channels_first"),
    ],
)
def test_layers_that_our_network_lacks_are_rejected(layer, word, tmp_path):
    keras = pytest.importorskip("keras")
    pool = keras.layers.GlobalAveragePooling2D()
    model = keras.Sequential([keras_tiny(), pool, layer(keras), keras.layers.Dense(2)])
    with pytest.raises(InputError, match=word):
        read_weights(save_keras(model, tmp_path / "m.keras"))


def test_a_cast_to_integers_is_rejected(tmp_path):
    keras = pytest.importorskip("keras")
    base = keras_tiny()
    x = keras.layers.GlobalAveragePooling2D()(base.output)
    x = keras.ops.cast(keras.ops.cast(x, "int32"), "float32")
    model = keras.Model(base.input, keras.layers.Dense(2)(x))
    with pytest.raises(InputError, match="is a Cast"):
        read_weights(save_keras(model, tmp_path / "m.keras"))


def test_another_network_is_rejected(tmp_path):
    keras = pytest.importorskip("keras")
    model = keras.applications.ResNet50(weights=None, include_top=False, input_shape=(32, 32, 3))
    with pytest.raises(InputError, match="DenseNet") as error:
        read_weights(save_keras(model, tmp_path / "m.legacy.h5"))
    assert "\n" not in str(error.value)
    export_weights(tmp_path / "m.weights.h5", random_variables(TINY), info_of(TINY))
    with h5py.File(tmp_path / "m.weights.h5", "r+") as file:
        file.move("layers/conv2d_1", "layers/conv2d_99")
    with pytest.raises(InputError, match=r"layers/conv2d_1/vars/0 is missing"):
        read_weights(tmp_path / "m.weights.h5")


# Files that mean harm, or are none.


@pytest.fixture
def exported(tmp_path):
    path = tmp_path / "m.weights.h5"
    export_weights(path, random_variables(RECIPE), info_of(RECIPE))
    return path


@pytest.mark.parametrize("kind", ["external", "soft", "storage", "virtual"])
def test_links_and_external_data_are_rejected(kind, exported, tmp_path):
    (tmp_path / "secret").write_bytes(b"\0" * 1024)
    with h5py.File(exported, "r+") as file:
        group = file["layers/conv2d/vars"]
        shape = group["0"].shape
        del group["0"]
        if kind == "external":
            group["0"] = h5py.ExternalLink("secret", "/x")
        elif kind == "soft":
            group["0"] = h5py.SoftLink("/layers/conv2d_1/vars/0")
        elif kind == "storage":
            secret = str(tmp_path / "secret")
            group.create_dataset("0", shape, "f4", external=[(secret, 0, h5py.h5f.UNLIMITED)])
        else:
            layout = h5py.VirtualLayout(shape, "f4")
            layout[:] = h5py.VirtualSource(str(tmp_path / "secret"), "x", shape)
            group.create_virtual_dataset("0", layout)
    with pytest.raises(InputError, match=r"layers/conv2d/vars/0.*do not trust"):
        read_weights(exported)


def test_a_group_that_contains_itself_is_read_once(exported):
    with h5py.File(exported, "r+") as file:
        file["layers/conv2d/loop"] = file["layers"]
    variables, _ = read_weights(exported)
    assert_same(variables, random_variables(RECIPE))


@pytest.mark.parametrize("layer", ["layers/dense_1/vars", "layers/conv2d/vars"])
def test_an_array_larger_than_the_file_is_rejected_unread(layer, exported):
    with h5py.File(exported, "r+") as file:
        del file[layer]["0"]
        file[layer].create_dataset("0", (256, 10**9), "f4", chunks=(256, 1024))
    with pytest.raises(InputError, match="unpack"):
        read_weights(exported)


def test_an_array_of_lists_is_rejected_unread(exported, monkeypatch):
    """A few bytes of them can refer to the same megabytes again and again."""
    name = "layers/conv2d/vars/0"
    with h5py.File(exported, "r+") as file:
        shape = file[name].shape
        del file[name]
        file.create_dataset(name, shape, h5py.vlen_dtype(np.uint8))
    read = h5py.Dataset.__getitem__

    def refuse(self, *arguments):
        assert not self.dtype.hasobject
        return read(self, *arguments)

    monkeypatch.setattr(h5py.Dataset, "__getitem__", refuse)
    with pytest.raises(InputError, match=f"{name} is object; expected floats"):
        read_weights(exported)


def archive_of(path, config, weights, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("config.json", config)
        archive.writestr("model.weights.h5", weights)


def test_a_zip_bomb_is_rejected_unread(tmp_path):
    path = tmp_path / "m.keras"
    archive_of(path, "{}", b"\0" * (1 << 28), zipfile.ZIP_DEFLATED)
    with pytest.raises(InputError, match="unpack"):
        read_weights(path)


def test_path_traversal_in_an_archive_writes_nothing(tmp_path):
    inside = tmp_path / "a" / "b"
    inside.mkdir(parents=True)
    path = inside / "m.keras"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("../../climbed", "x")
        archive.writestr("config.json", "{}")
    with pytest.raises(InputError, match=r"model\.weights\.h5"):
        read_weights(path)
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["a", "b", "m.keras"]


@pytest.mark.parametrize("config", ["", "[]", '{"config": 3}', "{", "\xff", "[" * 100_000])
def test_a_malformed_configuration_is_one_line(config, exported, tmp_path):
    path = tmp_path / "m.keras"
    archive_of(path, config, exported.read_bytes())
    with pytest.raises(InputError) as error:
        read_weights(path)
    assert "\n" not in str(error.value)


def test_our_own_metadata_in_the_file_take_precedence(tmp_path):
    path = tmp_path / "m.h5"
    info = info_of(RECIPE, class_names=("benign", "malignant"), preprocessing="scale", sha256="ab")
    export_weights(path, random_variables(RECIPE), info)
    assert read_weights(path)[1] == info
    save_weights(tmp_path / "m.safetensors", *read_weights(path))
    assert read_weights(tmp_path / "m.safetensors")[1] == info
    with h5py.File(path, "r+") as file:
        file.attrs["densenet_flax"] = json.dumps({"blocks": 3})
    with pytest.raises(InputError, match="metadata: "):
        read_weights(path)


# One wrong tensor.


@pytest.mark.parametrize("name", ["m.weights.h5", "m.h5"])
def test_a_bad_tensor_is_named(name, tmp_path):
    layer = {"m.h5": "conv3_block2_1_conv/conv3_block2_1_conv/kernel"}
    array = layer.get(name, "layers/conv2d_6/vars/0")

    def spoil(change):
        path = tmp_path / name
        export_weights(path, random_variables(RECIPE), info_of(RECIPE))
        with h5py.File(path, "r+") as file:
            change(file)
        with pytest.raises(InputError) as error:
            read_weights(path)
        assert "\n" not in str(error.value)
        return str(error.value)

    def replace(file, values):
        del file[array]
        file[array] = values

    kernel = random_variables(RECIPE)["params"]["conv3_block2"]["1_conv"]["kernel"]
    message = spoil(lambda file: file.__delitem__(array))
    assert "missing" in message
    assert (array if "layers" in array else "conv3_block2/1_conv/kernel") in message
    message = spoil(lambda file: replace(file, kernel.transpose(0, 1, 3, 2)))
    assert "1 of another shape" in message and array in message
    bad = kernel.copy()
    bad[0, 0, 3, 4] = np.nan
    message = spoil(lambda file: replace(file, bad))
    assert array in message and "1 values that are NaN" in message
    message = spoil(lambda file: replace(file, kernel.astype(np.int32)))
    assert array in message and "int32" in message
    message = spoil(lambda file: replace(file, kernel.astype(np.float64) * 1e300))
    assert array in message and "infinite in float32" in message
    message = spoil(lambda file: file.create_dataset("layers/strange/vars/0", data=[1.0]))
    assert "1 unexpected (layers/strange/vars/0)" in message


def test_a_negative_variance_is_rejected(tmp_path):
    variables = random_variables(TINY)
    variables["batch_stats"]["bn"]["var"][3] = -1
    path = tmp_path / "m.h5"
    export_weights(path, variables, info_of(TINY))
    with pytest.raises(InputError, match="bn/bn/moving_variance is a variance"):
        read_weights(path)
    assert flatten_dict(variables)
