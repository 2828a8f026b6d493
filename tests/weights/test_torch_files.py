"""Reading PyTorch's spelling, from `.safetensors` without PyTorch and from `.pth` with it."""

import json
import pickle
import re
import zipfile

import numpy as np
import pytest
import safetensors.numpy

from densenet_flax.common.errors import InputError
from densenet_flax.weights import read_weights
from densenet_flax.weights.layout import Layout
from densenet_flax.weights.load import open_weights
from tests.weights.helpers import RECIPE, TINY, assert_same, random_variables, torch_state

NINE = Layout(TINY.blocks, num_classes=9)


def save(path, state):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        safetensors.numpy.save_file(state, path)
        return path
    torch = pytest.importorskip("torch", reason="writing .pth needs PyTorch")
    torch.save({name: torch.tensor(value) for name, value in state.items()}, path)
    return path


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pt"])
@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("prefix", ["features.", "module.features.", "model.features.", ""])
def test_every_spelling(suffix, old, prefix, tmp_path):
    variables = random_variables(NINE)
    state = torch_state(variables, prefix, prefix.replace("features.", "classifier"), old)
    if not prefix:
        state["classifier.weight"], state["classifier.bias"] = (
            state.pop(".weight"),
            state.pop(".bias"),
        )
    state[f"{prefix}norm0.num_batches_tracked"] = np.array(7)
    read, info = read_weights(save(tmp_path / f"m{suffix}", state))
    assert_same(read, variables)
    assert (info.preprocessing, info.final_relu, info.epsilon) == ("torch", True, 1e-5)
    assert (info.layout, info.class_names) == (NINE, ())


def test_head_layers_are_in_natural_order(tmp_path):
    """`Sequential(Dropout, Linear, ReLU, Dropout, Linear)`: layers 1 and 10, in that order."""
    variables = random_variables(RECIPE)
    state = torch_state(variables)
    for kind in ("weight", "bias"):
        state[f"classifier.10.{kind}"] = state.pop(f"classifier.predictions.{kind}")
        state[f"classifier.2.{kind}"] = state.pop(f"classifier.dense_1.{kind}")
    read, info = read_weights(save(tmp_path / "m.safetensors", state))
    assert_same(read, variables)
    assert info.hidden == (256,)


def test_tiatoolbox_is_recognized_by_tensor_names(tmp_path):
    state = torch_state(random_variables(NINE), "feat_extract.")
    _, info = read_weights(save(tmp_path / "m.safetensors", state))
    assert (info.preprocessing, info.final_relu, info.epsilon) == ("scale", False, 1e-5)
    assert info.class_names[3] == "TUM"
    assert info.license == "CC BY 4.0"


@pytest.mark.parametrize("name", ["densenet201-kather100k", "densenet201.tiatoolbox-pcam"])
def test_tiatoolbox_is_recognized_by_the_file_name(name, tmp_path):
    layout = NINE if "kather" in name else Layout(TINY.blocks, num_classes=2)
    state = torch_state(random_variables(layout))
    for path in (tmp_path / f"{name}.safetensors", tmp_path / name / "model.safetensors"):
        _, info = read_weights(save(path, state))
        assert (info.preprocessing, info.final_relu) == ("scale", False)
        assert info.license == ("CC BY 4.0" if "kather" in name else "CC0 1.0")


def test_a_folder_named_after_the_images_is_no_file_of_tiatoolbox(tmp_path):
    path = save(tmp_path / "kather100k" / "model.safetensors", torch_state(random_variables(NINE)))
    info = read_weights(path)[1]
    assert (info.preprocessing, info.final_relu) == ("torch", True)


def test_timms_config_beside_the_file_is_read(tmp_path):
    path = save(tmp_path / "model.safetensors", torch_state(random_variables(NINE)))
    config = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "license": "apache-2.0"}
    names = [f"class {i}" for i in range(9)]

    def beside(pretrained):
        values = {"architecture": "densenet201", "pretrained_cfg": pretrained}
        (tmp_path / "config.json").write_text(json.dumps({**values, "label_names": names}))
        return read_weights(path)[1]

    info = beside(config)
    assert (info.preprocessing, info.license) == ("torch", "apache-2.0")
    assert info.class_names == tuple(names)
    nothing = {"mean": [0, 0, 0], "std": [1, 1, 1]}
    info = beside(nothing)
    assert (info.preprocessing, info.final_relu) == ("scale", True)
    info = beside({**nothing, "tag": "tiatoolbox-kather100k"})
    assert (info.preprocessing, info.final_relu) == ("scale", False)
    assert beside({"mean": [0.5] * 3, "std": [0.5] * 3}).preprocessing == "tf"
    with pytest.raises(InputError, match=r"config\.json.*0\.4"):
        beside({"mean": [0.4] * 3, "std": [0.5] * 3})
    with pytest.raises(InputError, match=r"config\.json: .*normalizes pixels by \[0\.5\] and \[\]"):
        beside({"mean": [0.5], "std": []})
    # timm before 0.9 had one level, and what is stated has to be honored there as well.
    flat = {"architecture": "tv_densenet121", "mean": [0.5] * 3, "std": [0.5] * 3}
    (tmp_path / "config.json").write_text(json.dumps(flat))
    assert read_weights(path)[1].preprocessing == "tf"
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InputError, match=r"config\.json"):
        read_weights(path)


@pytest.mark.parametrize(
    ("stated", "size", "names", "said"),
    [
        (
            {"pretrained_cfg": {"input_size": [3, 96, 64], "crop_pct": 0.875}},
            (96, 64),
            (),
            "images of 96×64 pixels, resized as a whole, where timm takes 87.5% of each side",
        ),
        ({"pretrained_cfg": {"input_size": [1, 96, 96]}}, None, (), "config.json beside the file"),
        ({"label_names": {"1": "b", "2": "c", "0": "a"}}, None, ("a", "b", "c"), ""),
        ({"label_names": ["a", "b"]}, None, (), "label_names left out.*3 outputs"),
    ],
)
def test_what_timm_says_of_images_and_classes(stated, size, names, said, tmp_path):
    variables = random_variables(Layout(TINY.blocks, num_classes=3))
    path = save(tmp_path / "model.safetensors", torch_state(variables))
    config = {"architecture": "densenet121", **stated}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with open_weights(path) as file:
        info = file.info(file.layout())
        assert re.search(said, "; ".join(file.explain()))
    assert (info.inference.image_size, info.class_names) == (size, names)


@pytest.mark.parametrize("wrapper", ["state_dict", "model_state_dict", "model"])
def test_a_state_dict_inside_a_checkpoint(wrapper, tmp_path):
    torch = pytest.importorskip("torch", reason="reading .pth needs PyTorch")
    variables = random_variables(TINY)
    state = {k: torch.tensor(v) for k, v in torch_state(variables, "module.features.").items()}
    torch.save({wrapper: state, "epoch": 3, "best": 0.5}, tmp_path / "m.pth")
    assert_same(read_weights(tmp_path / "m.pth")[0], variables)
    old = {"_use_new_zipfile_serialization": False}  # as the official files of 2017
    torch.save(state, tmp_path / "old.pth", **old)
    assert_same(read_weights(tmp_path / "old.pth")[0], variables)
    torch.save({"optimizer": {"lr": 1}}, tmp_path / "none.pth")
    with pytest.raises(InputError, match="no state dict"):
        read_weights(tmp_path / "none.pth")


def test_half_precision_is_widened(tmp_path):
    torch = pytest.importorskip("torch", reason="bfloat16 is written by PyTorch")
    import safetensors.torch

    state = {k: torch.tensor(v) for k, v in torch_state(random_variables(TINY)).items()}
    for kind in (torch.bfloat16, torch.float16, torch.float64):
        cast = {name: value.to(kind) for name, value in state.items()}
        torch.save(cast, tmp_path / "m.pth")
        safetensors.torch.save_file(cast, tmp_path / "m.safetensors")
        expected = cast["features.norm5.weight"].float().numpy()
        for name in ("m.pth", "m.safetensors"):
            read, _ = read_weights(tmp_path / name)
            assert np.array_equal(read["params"]["bn"]["scale"], expected)


class Malicious:
    def __reduce__(self):
        import os

        return os.system, ("touch was_run",)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("form", ["zip", "protocol 2", "protocol 4"])
def test_a_malicious_pickle_is_rejected_and_runs_nothing(form, tmp_path, monkeypatch):
    torch = pytest.importorskip("torch", reason="reading .pth needs PyTorch")
    monkeypatch.chdir(tmp_path)
    if form == "zip":
        torch.save({"state_dict": Malicious()}, "m.pth")
    else:
        (tmp_path / "m.pth").write_bytes(pickle.dumps(Malicious(), int(form[-1])))
    with pytest.raises(InputError, match="nothing was run") as error:
        read_weights(tmp_path / "m.pth")
    assert "system" in str(error.value) or form == "protocol 4"
    assert "weights_only" not in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "was_run").exists()


def test_a_pickled_module_asks_for_its_state_dict(tmp_path):
    torch = pytest.importorskip("torch", reason="reading .pth needs PyTorch")
    torch.save(torch.nn.Linear(2, 2), tmp_path / "m.pth")
    with pytest.raises(InputError, match=r"state_dict\(\)"):
        read_weights(tmp_path / "m.pth")


def test_a_torch_zip_bomb_is_rejected_unread(tmp_path):
    pytest.importorskip("torch", reason="reading .pth needs PyTorch")
    with zipfile.ZipFile(tmp_path / "m.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("m/data/0", b"\0" * (1 << 28))
    with pytest.raises(InputError, match="unpack"):
        read_weights(tmp_path / "m.pth")


def test_a_tensor_that_repeats_one_number_is_rejected(tmp_path):
    torch = pytest.importorskip("torch", reason="reading .pth needs PyTorch")
    state = {k: torch.tensor(v) for k, v in torch_state(random_variables(NINE)).items()}
    state["classifier.weight"] = torch.zeros(1).expand(10**9, 68)
    torch.save(state, tmp_path / "m.pth")
    with pytest.raises(InputError, match="unpack"):
        read_weights(tmp_path / "m.pth")


def test_a_bad_tensor_is_named(tmp_path):
    state = torch_state(random_variables(NINE))
    name = "features.denseblock2.denselayer2.conv1.weight"

    def message(changed):
        with pytest.raises(InputError) as error:
            read_weights(save(tmp_path / "m.safetensors", changed))
        assert "\n" not in str(error.value)
        return str(error.value)

    missing = {k: v for k, v in state.items() if k != name}
    assert "1 missing (conv3_block2/1_conv/kernel)" in message(missing)
    turned = {**state, name: np.ascontiguousarray(state[name].transpose(1, 0, 2, 3))}
    assert f"1 of another shape ({name}" in message(turned)
    extra = {**state, "features.denseblock2.denselayer2.conv1.bias": np.ones(128, np.float32)}
    assert "1 unexpected (features.denseblock2.denselayer2.conv1.bias)" in message(extra)
    double = {**state, name.replace("conv1", "conv.1"): state[name]}
    assert "the same as" in message(double)
    assert name in message({**state, name: np.full_like(state[name], np.inf)})
    assert name in message({**state, name: state[name].astype(np.int8)})


def test_another_torch_network_is_rejected(tmp_path):
    state = {"conv1.weight": np.ones((64, 3, 7, 7), np.float32), "fc.weight": np.ones((9, 5))}
    state["layer1.0.conv1.weight"] = np.ones((64, 64, 1, 1), np.float32)
    with pytest.raises(InputError, match="not the weights of a DenseNet"):
        read_weights(save(tmp_path / "m.safetensors", state))
