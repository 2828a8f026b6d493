"""The four networks as a whole: out to each format and back, and the outputs of timm's."""

import dataclasses

import jax
import numpy as np
import pytest

from densenet_flax.models.densenet import NETWORKS
from densenet_flax.weights import convert, export, read_weights, save_weights
from densenet_flax.weights.layout import Layout
from densenet_flax.weights.safe_reading import file_hash
from tests.weights.helpers import (
    assert_same,
    info_of,
    keras_values,
    random_value,
    random_variables,
    randomize_keras,
    save_keras,
)


@pytest.mark.parametrize(
    ("name", "form", "back"),
    [
        ("densenet121", "m.keras", "back.weights.h5"),
        ("densenet169", "m.legacy.h5", "back.h5"),
        ("densenet201", "m.weights.h5", "back.weights.h5"),
    ],
)
def test_keras_to_flax_to_keras_is_bitwise_equal(name, form, back, tmp_path):
    """Each network in one form, each form in one network; test_keras_parity.py has the others."""
    keras = pytest.importorskip("keras", reason="Keras is the reference here; pip install keras")
    make = getattr(keras.applications, name.replace("densenet", "DenseNet"))
    model = make(weights=None, classes=7, classifier_activation=None)
    randomize_keras(model)
    original = keras_values(model)
    source = save_keras(model, tmp_path / form)
    ours = tmp_path / "ours.safetensors"
    info = convert(source, ours, verify=False).info
    assert (info.network, info.num_classes, info.source) == (name, 7, form)
    assert info.sha256 == file_hash(source)
    assert_same(read_weights(ours)[0], original)
    for variable in model.variables:
        variable.assign(np.zeros(variable.shape))
    export(ours, tmp_path / back, verify=False)
    model.load_weights(tmp_path / back)
    assert_same(keras_values(model), original)


@pytest.mark.parametrize("name", NETWORKS)
def test_our_own_file_keeps_everything(name, tmp_path):
    layout = Layout.of(NETWORKS[name](num_classes=2, hidden=(256,)))
    info = info_of(layout, class_names=("b", "m"), license="CC0 1.0", extra={"scanner": "GT450"})
    variables = random_variables(layout)
    save_weights(tmp_path / "m.safetensors", variables, info)
    read, read_info = read_weights(tmp_path / "m.safetensors")
    assert_same(read, variables)
    assert dataclasses.replace(read_info, source="", sha256="") == info


def randomize_torch(model):
    import torch

    rng = np.random.default_rng(0)
    names = {"running_var": "var", "running_mean": "bias", "bias": "bias"}
    state = {}
    for name, value in model.state_dict().items():
        if value.ndim == 4:  # fan-in comes first in what random_value counts
            made = random_value(("kernel",), tuple(value.permute(2, 3, 1, 0).shape), rng)
            state[name] = torch.tensor(made).permute(3, 2, 0, 1)
        elif value.ndim == 2:
            state[name] = torch.tensor(random_value(("kernel",), tuple(value.T.shape), rng)).T
        elif value.ndim == 1:
            kind = names.get(name.rpartition(".")[2], "scale")
            state[name] = torch.tensor(random_value((kind,), tuple(value.shape), rng))
        else:
            state[name] = value
    model.load_state_dict(state)
    return model.eval()


def save_torch(model, folder):
    import safetensors.torch
    import torch

    torch.save(model.state_dict(), folder / "m.pth")
    state = {name: value.contiguous() for name, value in model.state_dict().items()}
    safetensors.torch.save_file(state, folder / "m.safetensors")
    return folder / "m.pth", folder / "m.safetensors"


def read_torch(model, folder):
    """The variables and the `WeightsInfo` of both of its files, which are the same."""
    read = [read_weights(path) for path in save_torch(model, folder)]
    assert_same(read[1][0], read[0][0])
    return read[0]


def run_torch(model, x):
    import torch

    with torch.inference_mode():
        return model.eval()(torch.tensor(x).permute(0, 3, 1, 2)).numpy()


def assert_close(ours, theirs, at_most):
    assert np.abs(theirs).max() > 1e-3
    difference = np.abs(ours - theirs).max() / np.abs(theirs).max()
    print(f"{difference:.1e}")
    assert difference < at_most


@pytest.mark.parametrize("name", NETWORKS)
def test_timm_and_torchvision_agree_and_load_what_is_exported(name, torchvision, tmp_path):
    """Strictly, and give our logits; read back, every number is the same bits."""
    timm = pytest.importorskip("timm", reason="timm is the reference here; pip install timm")
    import safetensors.torch
    import torch

    model = randomize_torch(timm.create_model(name, pretrained=False, num_classes=3))
    variables, info = read_torch(model, tmp_path)
    assert (info.network, info.num_classes) == (name, 3)
    assert (info.preprocessing, info.final_relu, info.epsilon) == ("torch", True, 1e-5)
    x = np.random.default_rng(1).standard_normal((2, 96, 125, 3), np.float32)
    ours = np.asarray(jax.jit(info.build_model().apply)(variables, x))
    assert_close(ours, run_torch(model, x), 1e-5)

    about = {"class_names": ("a", "b", "c"), "activation": "sigmoid", "license": "CC0 1.0"}
    info = dataclasses.replace(info, **about, source="", sha256="")
    source, folder = tmp_path / "ours.safetensors", tmp_path / "out"
    save_weights(source, variables, info)
    export(source, folder / "model.safetensors", library="timm", verify=False)
    export(source, folder / "model.pth", library="torchvision", verify=False)
    exported = safetensors.torch.load_file(folder / "model.safetensors")
    for tensor in model.state_dict().values():
        tensor.zero_()
    other = getattr(torchvision.models, name)(num_classes=3)
    for path, network, state in (
        (folder / "model.safetensors", model, exported),
        (folder / "model.pth", other, torch.load(folder / "model.pth")),
    ):
        read, read_info = read_weights(path)
        assert_same(read, variables)
        assert dataclasses.replace(read_info, source="", sha256="") == info
        network.load_state_dict(state, strict=True)
        assert_close(ours, run_torch(network, x), 1e-5)
    read_by_timm = timm.create_model(f"local-dir:{folder}", pretrained=True)
    assert_close(ours, run_torch(read_by_timm, x), 1e-5)


def test_logits_agree_with_tiatoolbox(torchvision, tmp_path):
    """Its `CNNModel`: torchvision's features, pooled without a ReLU, and a linear layer."""
    import torch

    class CNNModel(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.feat_extract = torchvision.models.densenet121(weights=None).features
            self.classifier = torch.nn.Linear(1024, 9)

        def forward(self, x):
            return self.classifier(self.feat_extract(x).mean((2, 3)))

    model = randomize_torch(CNNModel())
    variables, info = read_torch(model, tmp_path)
    assert (info.network, info.num_classes) == ("densenet121", 9)
    assert (info.preprocessing, info.final_relu, info.epsilon) == ("scale", False, 1e-5)
    x = np.random.default_rng(1).standard_normal((2, 96, 125, 3), np.float32)
    ours = np.asarray(jax.jit(info.build_model().apply)(variables, x))
    assert_close(ours, run_torch(model, x), 1e-5)
