"""`load_weights` and `read_weights`: what fits, what does not, and what is no weights file."""

import hashlib
import os

import numpy as np
import pytest

from densenet_flax.common.errors import InputError
from densenet_flax.models.densenet import DenseNet, DenseNet161, DenseNet201
from densenet_flax.storage.checkpoint import Checkpoints
from densenet_flax.storage.named_arrays import NamedVector
from densenet_flax.weights import (
    checkpoint_directory,
    load,
    load_backbone,
    load_weights,
    load_with_info,
    official,
    read_weights,
    save_weights,
)
from densenet_flax.weights.layout import Layout
from densenet_flax.weights.save import export_weights
from tests.weights.helpers import RECIPE, TINY, assert_same, info_of, random_variables, torch_state


def save(folder, layout=RECIPE, **fields):
    variables = random_variables(layout)
    save_weights(folder / "m.safetensors", variables, info_of(layout, **fields))
    return folder / "m.safetensors", variables


def test_load_weights_returns_the_tree_of_the_model(tmp_path):
    path, variables = save(tmp_path)
    loaded = load_weights(path, info_of(RECIPE).build_model())
    assert_same(loaded, variables)
    assert type(loaded["params"]["conv1"]) is dict
    assert isinstance(loaded["params"]["conv1"]["conv"]["kernel"], np.ndarray)
    assert_same(load_weights(str(path), info_of(RECIPE).build_model()), variables)


@pytest.mark.parametrize("head", [{}, {"num_classes": 7}, {"num_classes": 2, "hidden": (256,)}])
@pytest.mark.parametrize("layout", [TINY, RECIPE])
def test_ignore_head_gives_the_backbone(head, layout, tmp_path):
    path, variables = save(tmp_path, layout)
    loaded = load_weights(path, DenseNet(blocks=TINY.blocks, **head), ignore_head=True)
    variables["params"].pop("head", None)
    assert "head" not in loaded["params"]
    assert_same(loaded, variables)


@pytest.mark.parametrize(
    ("head", "words"),
    [
        ({}, "4 unexpected"),
        ({"num_classes": 2}, "2 unexpected"),
        ({"num_classes": 3, "hidden": (256,)}, "2 of another shape"),
        ({"num_classes": 2, "hidden": (256, 8)}, "2 missing"),
    ],
)
def test_another_head_is_rejected_with_advice(head, words, tmp_path):
    path, _ = save(tmp_path)
    with pytest.raises(InputError, match=words) as error:
        load_weights(path, DenseNet(blocks=TINY.blocks, **head))
    assert "2 classes and hidden layers 256" in str(error.value)
    assert "\n" not in str(error.value)


def test_another_network_is_rejected_by_name(tmp_path):
    path, _ = save(tmp_path)
    with pytest.raises(InputError, match=r"not densenet201.*missing.*looks like.*1-2-1-1"):
        load_weights(path, DenseNet201(), ignore_head=True)


def test_final_relu_and_epsilon_must_agree(tmp_path):
    path, _ = save(tmp_path, TINY, final_relu=False, epsilon=1e-5)
    with pytest.raises(InputError, match="build it with final_relu=False"):
        load_weights(path, DenseNet(blocks=TINY.blocks))
    # Keras's epsilon and torch's are taken for each other, another is not.
    load_weights(path, DenseNet(blocks=TINY.blocks, final_relu=False, epsilon=1.001e-5))
    with pytest.raises(InputError, match="build it with epsilon=1e-05"):
        load_weights(path, DenseNet(blocks=TINY.blocks, final_relu=False, epsilon=1e-3))


@pytest.mark.parametrize(
    ("name", "content", "word"),
    [
        ("m.h5", b"", "an empty file"),
        ("m.h5", b"<!DOCTYPE html><html>404", "a web page"),
        ("m.weights.h5", b"\n <html>", "a web page"),
        ("m.keras", b"<HTML>", "a web page"),
        ("m.pth", b"<html>", "a web page"),
        ("m.h5", b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
        ("m.h5", b"PK\x03\x04", "no weights file"),
        ("m.npz", b"\x93NUMPY", "no weights file"),
        ("m.h5", b"\x89HDF\r\n\x1a\n", "cut short"),
        ("m.keras", b"PK\x03\x04", "cut short"),
        ("m.safetensors", b"", "empty"),
        ("m.safetensors", b"<html>", "a web page"),
        ("m.safetensors", b"\xff" * 100, "cannot be read"),
    ],
)
def test_a_file_that_holds_no_weights_is_one_line(name, content, word, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=word) as error:
        read_weights(tmp_path / name)
    assert str(error.value).startswith(str(tmp_path / name))
    assert "\n" not in str(error.value)


def test_a_missing_or_unreadable_file(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        read_weights(tmp_path / "none.h5")
    path, _ = save(tmp_path)
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user may read everything")
    with pytest.raises(InputError, match="permission"):
        read_weights(path)


def test_metadata_of_a_checkpoint(tmp_path, monkeypatch):
    variables = random_variables(RECIPE)
    values = {"class_names": ["b", "m"], "preprocessing": "scale", "image_size": [96, 96]}
    monkeypatch.setattr(checkpoint_directory, "read_model", lambda path: (variables, values))
    read, info = read_weights(tmp_path)
    assert_same(read, variables)
    assert (info.class_names, info.preprocessing) == (("b", "m"), "scale")
    assert (info.layout, info.extra) == (RECIPE, {})
    assert info.inference.image_size == (96, 96)
    values["class_names"] = ["b"]
    with pytest.raises(InputError, match="metadata: class_names"):
        read_weights(tmp_path)
    values["class_names"] = ["b", "m"]
    assert_same(load_weights(tmp_path, info.build_model()), variables)
    with pytest.raises(InputError, match="unexpected"):
        load_weights(tmp_path, DenseNet(blocks=TINY.blocks))


# 'imagenet'


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A Keras cache with small files instead of the official ones."""
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    folder = tmp_path / "models"
    folder.mkdir()
    fakes = {}
    monkeypatch.setattr(Layout, "network", "tiny")
    for name, classes in (("tiny", 1000), ("tiny-notop", 0)):
        layout = Layout(TINY.blocks, num_classes=classes)
        export_weights(folder / f"{name}.h5", random_variables(layout), info_of(layout))
        md5 = hashlib.md5((folder / f"{name}.h5").read_bytes()).hexdigest()
        fakes[name] = official.Official(f"{name}.h5", md5)
    monkeypatch.setattr(official, "OFFICIAL", fakes)
    monkeypatch.setattr(load, "OFFICIAL", fakes)


def test_imagenet_with_and_without_a_head(cache):
    top = load_weights("imagenet", DenseNet(blocks=TINY.blocks, num_classes=1000))
    assert top["params"]["head"]["predictions"]["kernel"].shape[1] == 1000
    assert "head" not in load_weights("imagenet", DenseNet(blocks=TINY.blocks))["params"]
    recipe = DenseNet(blocks=TINY.blocks, num_classes=2, hidden=(256,))
    assert "head" not in load_weights("imagenet", recipe, ignore_head=True)["params"]
    with pytest.raises(InputError, match="ignore_head=True"):
        load_weights("imagenet", recipe)


def test_load_with_info_returns_the_metadata(tmp_path):
    path, _ = save(tmp_path, preprocessing="scale", class_names=("b", "m"), license="CC0 1.0")
    model = info_of(RECIPE).build_model()
    _, info = load_with_info(path, model)
    assert (info.preprocessing, info.class_names, info.license) == ("scale", ("b", "m"), "CC0 1.0")
    _, info = load_with_info(path, model, ignore_head=True)
    assert (info.preprocessing, info.class_names, info.num_classes) == ("scale", (), 0)


def test_load_backbone_of_another_variant(tmp_path):
    """`load_backbone` leaves it to the caller to give the model its epsilon and last ReLU."""
    path, variables = save(tmp_path, final_relu=False, epsilon=1e-3, license="CC0 1.0")
    model = DenseNet(blocks=TINY.blocks, num_classes=7)
    backbone, fields = load_backbone(path, model)
    variables["params"].pop("head")
    assert_same(backbone, variables)
    assert (fields["final_relu"], fields["epsilon"]) == (False, 1e-3)
    assert (fields["license"], fields["source"]) == ("CC0 1.0", "")
    with pytest.raises(InputError, match="not densenet201"):
        load_backbone(path, DenseNet201())


def test_imagenet_of_a_network_that_keras_lacks():
    with pytest.raises(InputError, match=r"densenet161.*PyTorch"):
        load_weights("imagenet", DenseNet161())


def test_a_mix_of_keras_and_torch_names_is_rejected(tmp_path):
    """A file that mixes two spellings fits neither."""
    import safetensors.numpy

    state = torch_state(random_variables(TINY))
    state["conv2_block1_0_bn.gamma"] = state.pop("features.denseblock1.denselayer1.norm1.weight")
    safetensors.numpy.save_file(state, tmp_path / "m.safetensors")
    with pytest.raises(InputError, match=r"1 missing .*1 unexpected"):
        read_weights(tmp_path / "m.safetensors")


def test_read_weights_of_a_checkpoint_directory(tmp_path):
    variables = random_variables(RECIPE)
    meta = {
        "network": {"network": "densenet201", "class_names": ["b", "m"], "preprocessing": "scale"}
    }
    train = [NamedVector(np.array([7]), [("step", ())])]
    Checkpoints(tmp_path / "checkpoints").save(7, lambda: (variables, train), meta)
    read, info = read_weights(tmp_path)
    assert_same(read, variables)
    assert (info.layout, info.class_names, info.preprocessing) == (RECIPE, ("b", "m"), "scale")
    with pytest.raises(InputError, match="no checkpoint"):
        read_weights(tmp_path / "checkpoints" / "7" / "model")
