"""Checkpoints as training scripts write them: which network, what beside it, what is refused."""

import argparse
import collections
import datetime
import json
import pathlib
import types
import zipfile

import numpy as np
import pytest

from densenet_flax.common.errors import InputError
from densenet_flax.weights import convert, inspect, load_weights, read_weights
from densenet_flax.weights.layout import Layout
from densenet_flax.weights.load import load_backbone
from tests.weights.helpers import TINY, assert_same, info_of, random_variables, torch_state

torch = pytest.importorskip("torch", reason="writing .pth needs PyTorch")

TWO = Layout(TINY.blocks, num_classes=2)
WIDTH = TWO.features
N = torch.tensor(9)
RAW, AVERAGE = random_variables(TWO), random_variables(TWO, seed=1)


def state_of(variables, prefix=""):
    arrays = torch_state(variables, f"{prefix}features.", f"{prefix}classifier")
    return {name: torch.tensor(value) for name, value in arrays.items()}


def save(folder, content):
    torch.save(content, folder / "m.pth")
    return folder / "m.pth"


CHECKPOINTS = {
    "timm": {
        "state_dict": state_of(RAW),
        "args": argparse.Namespace(lr=0.1, output=pathlib.Path("runs/1")),
        "arch": "densenet121",
    },
    "numpy": {
        "state_dict": {name: value.numpy() for name, value in state_of(RAW).items()},
        "best": np.float64(0.9),
        "losses": np.ones(3),
        "config": types.SimpleNamespace(epochs=np.int64(3)),
        "history": collections.defaultdict(list, loss=[0.5]),
        "when": datetime.datetime(2026, 1, 2),
    },
    "torchvision": {"model": state_of(RAW), "optimizer": {"state": {0: {"step": torch.ones(1)}}}},
    "data parallel": state_of(RAW, "module."),
    "compiled": {"model_state": state_of(RAW, "_orig_mod.module.")},
    "lightning": {
        "state_dict": {
            **state_of(RAW, "model.net."),
            "criterion.weight": torch.ones(2),
            "train_acc.tp": torch.ones(2),
            "val_auroc.confmat": torch.ones(2, 2),
        }
    },
    "swa": {"n_averaged": torch.tensor(3), **state_of(RAW, "module.")},
    "params_ema": {"params_ema": state_of(RAW)},
    "no bias": {k: v for k, v in state_of(RAW).items() if k != "classifier.bias"},
}


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_checkpoint_is_read(name, tmp_path):
    expected = RAW
    if name == "no bias":
        head = {"predictions": {**RAW["params"]["head"]["predictions"], "bias": np.zeros(2, "f4")}}
        expected = {**RAW, "params": {**RAW["params"], "head": head}}
    read, info = read_weights(save(tmp_path, CHECKPOINTS[name]))
    assert_same(read, expected)
    assert (info.layout, info.activation) == (TWO, "softmax")


def timm_checkpoint(folder, **args):
    return save(folder, {"state_dict": state_of(RAW), "args": argparse.Namespace(**args)})


@pytest.mark.parametrize(
    ("args", "mode"),
    [
        ({"mean": [0.5], "std": [0.5]}, "tf"),  # one number is for all channels
        ({"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}, "scale"),
        ({"mean": [0.485, 0.456, 0.406], "std": None, "gp": "fast"}, "torch"),
        ({"mean": None, "std": None, "gp": None, "model_kwargs": {"act_layer": "ReLU"}}, "torch"),
    ],
)
def test_pixels_of_timms_options(args, mode, tmp_path):
    path = timm_checkpoint(tmp_path, **args)
    assert read_weights(path)[1].preprocessing == mode
    is_stated = args["mean"] is not None
    assert (f"preprocessing '{mode}' by args.mean" in inspect(path).evidence[0]) == is_stated


def test_pixels_that_no_mode_computes_are_refused_until_one_is_stated(tmp_path):
    path = timm_checkpoint(tmp_path, mean=[0.7, 0.5, 0.7], std=[0.2] * 3)
    fault = r"m\.pth: args\.mean and args\.std: normalizes pixels by \[0\.7, 0\.5, 0\.7\]"
    with pytest.raises(InputError, match=fault):
        read_weights(path)
    with pytest.raises(InputError, match="normalizes pixels by"):
        read_weights(timm_checkpoint(tmp_path, mean="auto"))
    target = tmp_path / "ours.safetensors"
    assert convert(path, target, verify=False, preprocessing="tf").info.preprocessing == "tf"


@pytest.mark.parametrize("where", ["args", "model_kwargs", "config", "model_args"])
def test_another_pooling_is_refused_and_the_backbone_used(where, tmp_path):
    options = {
        "args": {"gp": "catavgmax"},
        "model_kwargs": {"model_kwargs": {"global_pool": "max"}},
    }
    path = timm_checkpoint(tmp_path, **options.get(where, {}))
    if where in ("config", "model_args"):
        stated = {"global_pool": "max"}
        stated = stated if where == "config" else {"model_args": stated}
        config = {"architecture": "densenet121", "pretrained_cfg": {}, **stated}
        (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"(gp|global_pool)='(catavg)?max'.*backbone alone"):
        read_weights(path)
    model = info_of(TINY, epsilon=1e-5).build_model()
    assert "head" not in load_weights(path, model, ignore_head=True)["params"]
    headless = {name: value for name, value in state_of(RAW).items() if "classifier" not in name}
    args = argparse.Namespace(gp="max")
    assert not read_weights(save(tmp_path, {"model": headless, "args": args}))[1].num_classes


def test_other_layers_of_timm_are_refused(tmp_path):
    path = timm_checkpoint(tmp_path, model_kwargs={"act_layer": "silu"})
    with pytest.raises(InputError, match=r"m\.pth: args\.model_kwargs\.act_layer='silu'"):
        load_weights(path, info_of(TINY, epsilon=1e-5).build_model(), ignore_head=True)


def test_stated_pixels_come_before_a_name_like_tiatoolbox(tmp_path):
    content = {"state_dict": state_of(RAW), "args": argparse.Namespace(mean=[0.5], std=[0.5])}
    path = tmp_path / "densenet121-pcam.pth"
    torch.save(content, path)
    info = read_weights(path)[1]
    assert (info.preprocessing, info.final_relu) == ("tf", True)


def test_options_of_other_scripts_are_left_alone(tmp_path):
    """`gp` is also the weight of a gradient penalty, and a pickle can contain itself."""
    config = {"gp": 10.0}
    config["config"] = config
    path = save(tmp_path, {"state_dict": state_of(RAW), "config": config})
    assert read_weights(path)[1].preprocessing == "torch"


def test_what_is_assumed_is_logged(tmp_path, caplog):
    caplog.set_level("INFO", logger="absl")
    path = timm_checkpoint(tmp_path, mean=[0.5], std=[0.5])
    read_weights(path)
    load_weights(path, info_of(TWO, epsilon=1e-5).build_model())
    lines = [line for line in caplog.messages if "mean pooling and softmax assumed" in line]
    assert len(lines) == 2 and all("preprocessing 'tf' by args.mean" in line for line in lines)
    caplog.clear()
    load_backbone(path, info_of(TINY).build_model(), verify=True)
    assert "largest difference from PyTorch" in caplog.messages[-1]


def test_monai(tmp_path):
    state = {
        name.replace("norm1", "layers.norm1")
        .replace("conv1", "layers.conv1")
        .replace("norm2", "layers.norm2")
        .replace("conv2", "layers.conv2")
        .replace("classifier", "class_layers.out"): value
        for name, value in state_of(RAW).items()
    }
    path = save(tmp_path, state)
    assert_same(read_weights(path)[0], RAW)
    assert "MONAI" in "; ".join(inspect(path).evidence)


def test_what_is_left_out_is_said(tmp_path):
    evidence = "; ".join(inspect(save(tmp_path, CHECKPOINTS["lightning"])).evidence)
    assert "weights of a loss left out (criterion.weight)" in evidence
    assert "states of metrics left out (train_acc.tp, val_auroc.confmat)" in evidence


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"state_dict": state_of(RAW)}, {"state_dict_ema": state_of(AVERAGE)}),
        (
            {"model": state_of(RAW)},
            {"model_ema": {"n_averaged": N, **state_of(AVERAGE, "module.")}},
        ),
        ({"state_dict": {**state_of(RAW, "model."), **state_of(AVERAGE, "ema_model.module.")}}, {}),
    ],
)
def test_the_average_is_taken_and_said_and_which_chooses(first, second, tmp_path):
    path = save(tmp_path, {**first, **second})
    assert_same(read_weights(path)[0], AVERAGE)
    assert "the average" in inspect(path).evidence[0]
    raw = next(iter(first)) if second else "state_dict.model"
    assert_same(read_weights(path, which=raw)[0], RAW)
    with pytest.raises(InputError, match=f"no network 'teacher'.*{raw}"):
        read_weights(path, which="teacher")


def test_several_networks_that_nothing_ranks_are_refused(tmp_path):
    path = save(tmp_path, {**state_of(RAW, "student."), **state_of(AVERAGE, "teacher.")})
    with pytest.raises(InputError, match="student, teacher; choose one: --which=student"):
        read_weights(path)
    assert_same(read_weights(path, which="teacher")[0], AVERAGE)


def test_a_head_in_a_mapping_of_its_own_is_said_to_be_left_out(tmp_path):
    backbone = {k: v for k, v in state_of(RAW).items() if "classifier" not in k}
    head = {"weight": torch.ones(2, WIDTH), "bias": torch.ones(2)}
    path = save(tmp_path, {"backbone": backbone, "head": head, "optimizer": {"state": {}}})
    assert "other modules left out (head)" in inspect(path).evidence


def test_unknown_tensors_are_surplus_and_not_missing(tmp_path):
    path = save(tmp_path, {**state_of(RAW), "attention.gate": torch.ones(3)})
    with pytest.raises(InputError, match=r"1 unexpected \(attention.gate\).*surplus") as error:
        read_weights(path)
    assert "complete file" not in str(error.value)


@pytest.mark.parametrize(
    ("old", "new", "change", "words"),
    [
        ("conv0.weight", "conv0.weight_orig", lambda x: x, "prune.remove"),
        ("conv0.weight", "conv0.weight", lambda x: x[:, :1], "7×7 of 1 channels"),
        ("conv0.weight", "conv0.weight", lambda x: x[:, :, 2:5, 2:5], "3×3 of 3 channels"),
        ("running_", "", None, "no running statistics"),
    ],
)
def test_whole_files_of_other_networks_are_no_incomplete_ones(old, new, change, words, tmp_path):
    state = state_of(RAW)
    for name in [name for name in state if old in name]:
        value = state.pop(name)
        if change:
            state[name.replace(old, new)] = change(value).clone()
    with pytest.raises(InputError, match=words) as error:
        read_weights(save(tmp_path, state))
    assert "complete file" not in str(error.value)


def head_of(*sizes, names):
    layers = zip(names, sizes, sizes[1:], strict=False)
    return {f"{n}.weight": torch.randn(o, i) for n, i, o in layers}


@pytest.mark.parametrize(
    ("head", "words"),
    [
        (head_of(WIDTH, 8, 2, names=["classifier.0", "classifier.1"]), "merge them"),
        (head_of(2 * WIDTH, 2, names=["classifier"]), "another pooling"),
        ({**head_of(WIDTH, 2, names=["a"]), **head_of(WIDTH, 3, names=["b"])}, "several heads"),
        (head_of(WIDTH, 5, names=["classifier.0"]), "--activation"),
        (head_of(WIDTH, 5, names=["criterion"]), "ArcFace"),
        (head_of(WIDTH, 9, 2, names=["classifier", "model.fc"]), "nothing tells whether a ReLU"),
        (head_of(WIDTH, 8, WIDTH, 2, names=["se.fc.0", "se.fc.2", "classifier"]), "gate"),
        ({"conf1.weight": torch.ones(4, 4, 1, 1)}, "surplus"),
    ],
)
def test_a_head_that_is_not_ours_is_refused_and_the_backbone_used(head, words, tmp_path):
    backbone = {k: v for k, v in state_of(RAW).items() if "classifier" not in k}
    path = save(tmp_path, {**backbone, **head})
    with pytest.raises(InputError, match=words):
        read_weights(path)
    model = info_of(TINY, epsilon=1e-5).build_model()
    read = load_weights(path, model, ignore_head=True)
    assert "head" not in read["params"]


def test_the_activation_can_be_stated(tmp_path):
    backbone = {k: v for k, v in state_of(RAW).items() if "classifier" not in k}
    path = save(tmp_path, {**backbone, **head_of(WIDTH, 5, names=["classifier.0"])})
    assert read_weights(path, activation="sigmoid")[1].activation == "sigmoid"
    chexnet = {f"densenet121.{k}": v for k, v in backbone.items()}
    chexnet |= head_of(WIDTH, 14, names=["densenet121.classifier.0"])
    assert read_weights(save(tmp_path, {"state_dict": chexnet}))[1].activation == "sigmoid"


def test_other_files_are_named(tmp_path):
    def refused(name, words):
        with pytest.raises(InputError, match=words) as error:
            read_weights(tmp_path / name)
        assert "damaged" not in str(error.value) and "\n" not in str(error.value)

    def archive(name, *members):
        with zipfile.ZipFile(tmp_path / name, "w") as file:
            for member in members:
                file.writestr(member, b"x")

    archive("script.pt", "m/data.pkl", "m/code/m.py", "m/constants.pkl")
    refused("script.pt", "TorchScript.*state_dict")
    archive("renamed.pth", "weights/model.pth")
    refused("renamed.pth", "unpack it")
    np.savez(tmp_path / "m.npz", a=np.ones(3))
    refused("m.npz", "NumPy arrays")
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "saved_model.pb").write_bytes(b"x")
    refused("saved", "SavedModel")
    (tmp_path / "m.ckpt.index").write_bytes(b"x")
    refused("m.ckpt.index", "checkpoint of TensorFlow")
