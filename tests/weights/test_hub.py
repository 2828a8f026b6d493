"""Weights by their names on the Hugging Face Hub, from a server that speaks its protocol."""

import hashlib
import json
import sys
from pathlib import Path

import huggingface_hub.constants
import pytest
import safetensors.numpy

from densenet_flax.common.errors import InputError
from densenet_flax.inference.load import load_classifier
from densenet_flax.weights import convert, load_weights, read_weights
from densenet_flax.weights.__main__ import main
from densenet_flax.weights.hub import fetch, pin
from densenet_flax.weights.hub_names import HubName, card_license, origin_of
from densenet_flax.weights.layout import Layout
from densenet_flax.weights.weights_choice import choose_weights
from tests.helpers.program import Program
from tests.weights.helpers import TINY, assert_same, random_variables, torch_state

THREE = Layout(TINY.blocks, num_classes=3)
CARD = b"---\nlicense: cc-by-4.0\ntags:\n- timm\n---\n# A model\n"
TIMM = {
    "architecture": "densenet121",
    "num_classes": 3,
    "label_names": ["a", "b", "c"],
    "pretrained_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3, "license": "CC BY 4.0"},
}


@pytest.fixture(scope="module")
def variables():
    return random_variables(THREE)


@pytest.fixture(scope="module")
def weights(variables):
    return safetensors.numpy.save(torch_state(variables))


@pytest.fixture
def commit(hub, weights):
    """Of a repository as timm makes them."""
    config = json.dumps(TIMM).encode()
    files = {"README.md": CARD, "config.json": config, "model.safetensors": weights}
    return hub.push("timm/x", {**files, "pytorch_model.bin": b"a pickle that nobody reads"})


def go_offline(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


def test_a_name_gives_variables_metadata_and_where_they_are_from(hub, commit, variables, weights):
    read, info = read_weights("hf://timm/x")
    assert_same(read, variables)
    assert info.source == f"hf://timm/x@{commit}/model.safetensors"
    assert info.sha256 == hashlib.sha256(weights).hexdigest()
    assert (info.license, info.class_names) == ("cc-by-4.0", ("a", "b", "c"))
    assert info.preprocessing == "tf"
    assert not any("pytorch_model" in request for request in hub.requests)
    assert_same(load_weights("hf://timm/x", info.build_model()), variables)
    assert load_classifier("hf://timm/x", verify=False).info == info


def test_what_is_pinned_and_in_the_cache_needs_no_network(hub, commit, monkeypatch):
    name = pin("hf://timm/x")
    assert name == f"hf://timm/x@{commit}/model.safetensors"
    hub.requests.clear()
    assert pin(name) == name
    assert not hub.requests


def test_a_branch_may_change_and_what_is_pinned_does_not(hub, commit, weights, tmp_path):
    old = pin("hf://timm/x@main")
    newer = hub.push("timm/x", {"model.safetensors": weights})
    assert newer != commit
    assert pin("hf://timm/x").startswith(f"hf://timm/x@{newer}/")
    assert pin(old) == old
    hub.push("timm/x", {"model.safetensors": weights}, revision="refs/pr/1")
    assert pin("hf://timm/x@refs/pr/1") == pin("hf://timm/x")
    converted = convert(old, tmp_path / "m.safetensors", verify=False).info
    assert (converted.source, converted.license) == (old, "cc-by-4.0")
    assert read_weights(tmp_path / "m.safetensors")[1].source == old  # noted in the file


@pytest.mark.parametrize("trouble", ["offline", "down", "gone"])
def test_without_the_hub_what_was_downloaded_is_used_and_said(
    trouble, hub, commit, variables, monkeypatch, caplog
):
    fetch("hf://timm/x")
    if trouble == "offline":
        go_offline(monkeypatch)
    elif trouble == "down":
        hub.status = 503
    else:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    hub.requests.clear()
    read, info = read_weights("hf://timm/x")
    assert_same(read, variables)
    assert (info.source, info.license) == (
        f"hf://timm/x@{commit}/model.safetensors",
        "cc-by-4.0",
    )
    assert "not asked for a newer one" in caplog.text
    for name in ("hf://timm/x@v2", "hf://timm/x/other.safetensors", "hf://timm/y"):
        with pytest.raises(InputError, match=r"does not hold it.*weights download hf://timm"):
            fetch(name)
    assert trouble == "down" or not hub.requests


def test_a_file_that_was_named_is_not_what_the_repository_means(hub, weights, monkeypatch):
    files = {"other.safetensors": weights, "third.safetensors": weights}
    hub.push("a/main", {**files, "model.safetensors": weights})
    hub.push("a/several", files)
    for repo in ("a/main", "a/several"):
        fetch(f"hf://{repo}/other.safetensors")
    go_offline(monkeypatch)
    assert fetch("hf://a/several/other.safetensors").name == "other.safetensors"
    with pytest.raises(InputError, match="does not hold it"):
        fetch("hf://a/main")
    with pytest.raises(InputError, match=r"several weights files: other.*, third"):
        fetch("hf://a/several")


def test_refusals_are_one_line_that_says_what_to_do(hub, commit, weights, monkeypatch, tmp_path):
    files = {"model.safetensors": weights}
    hub.push("a/gated", files, gated=True)
    hub.push("a/private", files, token="secret")
    hub.push("a/many", {"one.pth": b"1", "densenet121.pth": b"2", "three.bin": b"3"})
    hub.push("a/parts", {"model-00001-of-00002.safetensors": b"1"})
    hub.push("a/other", {"flax_model.msgpack": b"1", "deep/model.safetensors": b"2"})
    cases = {
        "hf://timm/nope": r"no such repository.*HF_TOKEN",
        "hf://timm/x@v9": r"no revision 'v9'",
        "hf://timm/x/m.pth": r"no such file in timm/x; it holds README.md",
        "hf://a/gated": r"granted by its owners.*HF_TOKEN",
        "hf://a/private": r"no such repository of models, or a private one.*HF_TOKEN",
        "hf://a/many": r"several weights files: densenet121.pth, one.pth, three.bin.*hf://a/many/",
        "hf://a/parts": r"in several parts",
        "hf://a/other": r"no weights file that this package reads \(flax_model.msgpack\)",
        "hf://a": r"expected hf://owner/name",
        "hf://a/b/../c": r"expected hf://owner/name",
        "hf://datasets/a/b": r"one of the Hub's datasets",
        "hf-hub:timm/x": r"written hf://timm/x$",
        "https://huggingface.co/timm/x/tree/main": r"written hf://timm/x$",
    }
    for name, message in cases.items():
        with pytest.raises(InputError, match=message) as error:
            read_weights(name)
        assert str(error.value).startswith(name) and "\n" not in str(error.value)
    monkeypatch.setenv("HF_TOKEN", "secret")
    assert read_weights("hf://a/private")[1].num_classes == 3
    with pytest.raises(InputError, match="granted by its owners"):
        fetch("hf://a/gated")
    monkeypatch.setenv("HF_TOKEN", "wrong")
    with pytest.raises(InputError, match=r"refuses access \(401\): HF_TOKEN is wrong"):
        fetch("hf://timm/x")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(InputError, match="pip install huggingface_hub"):
        fetch("hf://timm/x")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_file_that_was_changed_in_the_cache_is_refused(name, hub, commit):
    path = fetch("hf://timm/x").parent / name
    blob = path.resolve()
    blob.write_bytes(blob.read_bytes()[:-1] + b"!")
    with pytest.raises(InputError, match=r"changed since it was downloaded.*remove .*blobs"):
        fetch(f"hf://timm/x/{name}")
    blob.unlink()
    path.unlink()
    assert fetch(f"hf://timm/x/{name}") == path


def test_a_huge_file_is_not_downloaded(hub, commit, monkeypatch):
    monkeypatch.setattr("densenet_flax.weights.hub._MAX_BYTES", 1000)
    with pytest.raises(InputError, match="far more than the weights of any DenseNet"):
        fetch("hf://timm/x")
    assert not any("resolve" in request for request in hub.requests)


def test_which_file_is_chosen():
    choices = {
        ("b.pth", "model.safetensors", "other.safetensors"): "model.safetensors",
        ("only.safetensors", "model.weights.h5", "README.md"): "only.safetensors",
        ("task.weights.h5", "model.weights.h5", "x.bin"): "model.weights.h5",
        ("pytorch_model.bin", "optimizer.bin", "training_args.bin"): "pytorch_model.bin",
        ("densenet201-kather100k.pth", "onnx/model.onnx"): "densenet201-kather100k.pth",
    }
    for names, chosen in choices.items():
        assert choose_weights(names) == chosen
    with pytest.raises(InputError, match=r"several weights files: a.safetensors, b.safetensors"):
        choose_weights(["b.safetensors", "a.safetensors", "model.weights.h5"])


@pytest.mark.parametrize(
    ("card", "license"),
    [
        (
            "---\nlicense: other\nlicense_name: x-1\nlicense_link: https://x.org\n---",
            "x-1, https://x.org",
        ),
        ("---\r\nlicense: [mit, apache-2.0]\r\n---\r\n", "mit, apache-2.0"),
        ("# no metadata\n---\nlicense: mit\n---", ""),
        ("---\nlicense: &a [*a]\n---", ""),
        ("---\nlicense: {\n---", ""),
        ("---\nlicense: " + "[" * 100_000 + "\n---", ""),
        ("---\ntags: {\nlicense:\n- mit\n- bsd-3-clause\n---", "mit, bsd-3-clause"),
    ],
)
def test_the_license_of_a_card(card, license, tmp_path):
    file = tmp_path / "models--a--b" / "snapshots" / ("0" * 40) / "deep" / "m.pth"
    file.parent.mkdir(parents=True)
    (file.parents[1] / "README.md").write_bytes(card.encode())
    origin = origin_of(file)
    assert origin == HubName("a/b", "0" * 40, "deep/m.pth")
    assert card_license(file, origin) == license


def test_licenses_that_differ_are_both_carried(hub, weights):
    config = {**TIMM, "pretrained_cfg": {"license": "apache-2.0"}}
    files = {"config.json": json.dumps(config).encode(), "model.safetensors": weights}
    hub.push("a/b", {"README.md": CARD, **files})
    license = read_weights("hf://a/b")[1].license
    assert license == "cc-by-4.0 (model card), apache-2.0 (stated with the weights)"
    hub.push("a/c", {"README.md": b"no metadata", **files})
    assert read_weights("hf://a/c")[1].license == "apache-2.0"


def test_tiatoolbox_is_known_by_the_name_of_its_repository(hub):
    nine = Layout(TINY.blocks, num_classes=9)
    plain, wrapped = (
        safetensors.numpy.save(torch_state(random_variables(nine), prefix))
        for prefix in ("features.", "feat_extract.")
    )
    hub.push("1aurent/densenet201.tiatoolbox-kather100k", {"model.safetensors": plain})
    files = {"densenet201-kather100k.safetensors": wrapped, "resnet18-kather100k.safetensors": b""}
    hub.push("TIACentre/TIAToolbox_pretrained_weights", files)
    for name in (
        "1aurent/densenet201.tiatoolbox-kather100k",
        "TIACentre/TIAToolbox_pretrained_weights/densenet201-kather100k.safetensors",
    ):
        info = read_weights(f"hf://{name}")[1]
        assert (info.preprocessing, info.final_relu) == ("scale", False)
        assert info.class_names == ("BACK", "NORM", "DEB", "TUM", "ADI", "MUC", "MUS", "STR", "LYM")
        assert info.license == "CC BY 4.0"


def test_a_folder_is_read_as_a_repository(hub, commit, variables, tmp_path):
    path = fetch("hf://timm/x")
    assert_same(read_weights(path.parent)[0], variables)
    assert read_weights(path.parent)[1].source == f"hf://timm/x@{commit}/model.safetensors"
    for name in ("a.pth", "b.pth"):
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(InputError, match=r"several weights files: a.pth, b.pth; give the file"):
        read_weights(tmp_path)


def test_the_environment_is_obeyed_and_the_command_fills_the_cache(hub, commit, tmp_path, capsys):
    """In a process that reads it as a user's does."""
    env = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home")}
    first = Program("-m", "densenet_flax.weights", "download", "hf://timm/x", env=env).wait()
    path = Path(first.stdout.strip())
    assert path.is_relative_to(tmp_path / "home") and path.name == "model.safetensors"
    hub.requests.clear()
    env |= {"HF_HUB_OFFLINE": "1", "HF_ENDPOINT": "http://127.0.0.1:9"}
    second = Program("-m", "densenet_flax.weights", "inspect", "hf://timm/x", env=env).wait()
    assert f"hf://timm/x@{commit}/model.safetensors" in second.stdout
    assert "license  cc-by-4.0" in second.stdout and not hub.requests
    assert main(["download", "hf://timm/x", "--directory", str(tmp_path)]) == 1
    assert "set HF_HOME for another place" in capsys.readouterr().err
