"""Small networks with random weights and statistics, in every spelling."""

import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from densenet_flax.weights.info import WeightsInfo
from densenet_flax.weights.layout import Layout

TINY = Layout((1, 2, 1, 1))
RECIPE = Layout((1, 2, 1, 1), num_classes=2, hidden=(256,))

KERAS_NAMES = {
    ("params", "kernel"): "kernel",
    ("params", "scale"): "gamma",
    ("params", "bias"): "beta",
    ("batch_stats", "mean"): "moving_mean",
    ("batch_stats", "var"): "moving_variance",
}


def random_value(path, shape, rng):
    """Kernels that keep the scale of what passes through; statistics unlike any default."""
    if path[-1] == "kernel":
        return rng.normal(0, (2 / np.prod(shape[:-1])) ** 0.5, shape).astype(np.float32)
    low, high = {"scale": (0.5, 1.5), "var": (0.5, 1.5)}.get(path[-1], (-0.3, 0.3))
    return rng.uniform(low, high, shape).astype(np.float32)


def random_variables(layout, seed=0):
    rng = np.random.default_rng(seed)
    return unflatten_dict({p: random_value(p, s, rng) for p, s in layout.tensors().items()})


def info_of(layout, **kwargs):
    return WeightsInfo.from_layout(layout, **kwargs)


def torch_state(variables, prefix="features.", head="classifier", old=False):
    """Our variables as NumPy arrays in torchvision's spelling."""
    state = {}
    names = {"0_bn": "norm1", "1_conv": "conv1", "1_bn": "norm2", "2_conv": "conv2"}
    old_names = {"norm1": "norm.1", "conv1": "conv.1", "norm2": "norm.2", "conv2": "conv.2"}
    variable = {"kernel": "weight", "scale": "weight", "mean": "running_mean"}
    variable |= {"var": "running_var", "bias": "bias"}
    for path, value in flatten_dict(variables).items():
        unit, last = path[1], variable[path[-1]]
        if unit == "head":
            layer = f"{head}.{path[2]}" if "dense_1" in variables["params"]["head"] else head
            state[f"{layer}.{last}"] = np.ascontiguousarray(value.T)
            continue
        if value.ndim == 4:
            value = np.ascontiguousarray(value.transpose(3, 2, 0, 1))
        if unit == "conv1":
            layer = "conv0" if path[2] == "conv" else "norm0"
        elif unit == "bn":
            layer = "norm5"
        elif unit.startswith("pool"):
            layer = f"transition{int(unit[4:]) - 1}.{'conv' if path[2] == 'conv' else 'norm'}"
        else:
            stage, block = unit.removeprefix("conv").split("_block")
            inner = names[path[2]]
            inner = old_names[inner] if old else inner
            layer = f"denseblock{int(stage) - 1}.denselayer{block}.{inner}"
        state[f"{prefix}{layer}.{last}"] = value
    return state


def assert_same(ours, theirs):
    """Bitwise the same trees."""
    ours, theirs = flatten_dict(ours), flatten_dict(theirs)
    assert ours.keys() == theirs.keys()
    for path, value in theirs.items():
        assert ours[path].dtype == np.float32
        assert np.array_equal(ours[path], value), "/".join(path)


def keras_tiny(top=0, **kwargs):
    """A Keras DenseNet of the blocks of `TINY`."""
    pytest.importorskip("keras", reason="Keras is the reference here; pip install keras")
    from keras.src.applications.densenet import DenseNet

    shape = kwargs.pop("input_shape", (32, 32, 3))
    head = {"include_top": True, "classes": top} if top else {"include_top": False}
    return DenseNet(list(TINY.blocks), weights=None, input_shape=shape, **head, **kwargs)


def keras_head(hidden=256, classes=2):
    from keras import layers

    return [
        layers.GlobalAveragePooling2D(),
        layers.Dropout(0.5),
        layers.Dense(hidden, activation="relu"),
        layers.Dropout(0.5),
        layers.Dense(classes, activation="softmax"),
    ]


def keras_recipe(form, base):
    """The recipe's model in one of the three ways in which people build it."""
    import keras

    if form == "sequential":
        return keras.Sequential([base, *keras_head()])
    start = keras.Input(base.input_shape[1:])
    x = base(start, training=False) if form == "nested" else base.output
    for layer in keras_head():
        x = layer(x)
    return keras.Model(start if form == "nested" else base.input, x)


def randomize_keras(model, seed=0):
    """Random weights and statistics in place."""
    rng = np.random.default_rng(seed)
    ours = {"gamma": "scale", "moving_variance": "var", "kernel": "kernel"}
    for variable in model.variables:
        path = (ours.get(variable.name, "bias"),)
        if variable.dtype == "float32":
            variable.assign(random_value(path, tuple(variable.shape), rng))


def keras_values(model):
    """The variables of a Keras model as a tree like ours, straight from its layers."""
    flat, dense = {}, []

    def walk(layers):
        for layer in layers:
            if hasattr(layer, "layers"):
                walk(layer.layers)
            elif type(layer).__name__ == "Dense":
                dense.append(layer)
            elif layer.variables and type(layer).__name__ in ("Conv2D", "BatchNormalization"):
                unit, _, inner = layer.name.rpartition("_")
                if unit[-2:] in ("_0", "_1", "_2"):
                    unit, inner = unit[:-2], f"{unit[-1]}_{inner}"
                path = (unit, inner) if unit else (inner,)
                for variable in layer.variables:
                    for (collection, name), keras_name in KERAS_NAMES.items():
                        if keras_name == variable.name:
                            flat[(collection, *path, name)] = np.asarray(variable)

    walk(model.layers)
    for number, layer in enumerate(dense, start=1):
        name = "predictions" if number == len(dense) else f"dense_{number}"
        flat[("params", "head", name, "kernel")] = np.asarray(layer.kernel)
        flat[("params", "head", name, "bias")] = np.asarray(layer.bias)
    return unflatten_dict(flat)


def keras_function(model):
    """The model as one compiled function; called as it is, Keras runs layer by layer."""
    import jax

    trainable = [variable.value for variable in model.trainable_variables]
    others = [variable.value for variable in model.non_trainable_variables]
    run = jax.jit(lambda trainable, others, x: model.stateless_call(trainable, others, x)[0])
    return lambda x: run(trainable, others, x)


def save_legacy(model, path):
    """Weights alone in legacy HDF5, as `save_weights('x.h5')` of Keras 2 wrote them."""
    import h5py
    from keras.src.legacy.saving.legacy_h5_format import save_weights_to_hdf5_group

    with h5py.File(path, "w") as file:
        save_weights_to_hdf5_group(file, model)


def save_2018(model, path):
    """As the code of 2018 wrote its files: `conv1/conv`, `fc1000`, and names that end in `:0`."""
    import h5py

    old = {"conv1_conv": "conv1/conv", "conv1_bn": "conv1/bn", "predictions": "fc1000"}
    with h5py.File(path, "w") as file:
        layers = [layer for layer in model.layers if layer.weights]
        names = [old.get(layer.name, layer.name) for layer in layers]
        file.attrs["layer_names"] = [name.encode() for name in names]
        for name, layer in zip(names, layers, strict=True):
            group = file.create_group(name)
            variables = [f"{name}/{variable.name}:0" for variable in layer.weights]
            group.attrs["weight_names"] = [variable.encode() for variable in variables]
            for variable, value in zip(variables, layer.weights, strict=True):
                group[variable] = np.asarray(value)


def save_keras(model, path):
    """In the form that the name of `path` says."""
    if path.name.endswith(".weights.h5"):
        model.save_weights(path)
    elif path.name.endswith(".2018.h5"):
        save_2018(model, path)
    elif path.name.endswith(".legacy.h5"):
        save_legacy(model, path)
    else:
        model.save(path)
    return path
