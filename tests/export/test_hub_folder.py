"""The folder for the Hugging Face Hub: what timm, the Hub and this package read in it."""

import contextlib
import functools
import io
import json
import re

import huggingface_hub
import numpy as np
import pytest
from PIL import Image

from densenet_flax import InputError, load_classifier
from densenet_flax.export import export_for_hub
from densenet_flax.models.densenet import NETWORKS, DenseNet, DenseNet121
from densenet_flax.models.preprocessing import preprocess_input
from densenet_flax.weights import InferenceSettings, WeightsInfo, read_weights, save_weights
from densenet_flax.weights.inference_settings import StoredOperatingPoint
from densenet_flax.weights.layout import Layout
from densenet_flax.weights.torch_writer import torch_state_dict
from tests.export.test_export import save_network
from tests.helpers.networks import TINY_BLOCKS
from tests.weights.helpers import assert_same, random_variables

SIZE = (32, 48)
POINT = StoredOperatingPoint(0.4, 2.5, "youden", "40 images", step=7)


def push(hub, folder, repo="me/x"):
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert set(files) == {"README.md", "config.json", "model.safetensors"}
    return hub.push(repo, files)


def metadata_of(folder):
    return huggingface_hub.metadata_load(folder / "README.md")


@pytest.fixture(scope="module")
def tile():
    return np.random.default_rng(5).integers(0, 256, (*SIZE, 3), np.uint8)


@pytest.fixture(scope="module")
def backbone():
    return random_variables(Layout.of(DenseNet121(num_classes=0)))


@pytest.mark.parametrize("hidden", [(), (8,)])
def test_the_code_of_the_card_makes_timms_network(
    hidden, backbone, tile, hub, torchvision, tmp_path
):
    """By `hf-hub:` and the head that it adds; `test_networks` compares the logits."""
    pytest.importorskip("timm", reason="timm is the reference here; pip install timm")
    layout = Layout.of(DenseNet121(num_classes=2, hidden=hidden))
    head = random_variables(layout)["params"]["head"]
    variables = {**backbone, "params": {**backbone["params"], "head": head}}
    settings = InferenceSettings(image_size=SIZE, operating_point=POINT)
    about = {"class_names": ("benign", "malignant"), "license": "CC BY 4.0"}
    source = f"hf://timm/densenet121.tv_in1k@{'0' * 40}/model.safetensors"
    info = WeightsInfo.from_layout(layout, inference=settings, source=source, **about)
    save_weights(tmp_path / "m.safetensors", variables, info)
    folder = export_for_hub(str(tmp_path / "m.safetensors"), tmp_path / "out")

    read, read_info = read_weights(folder)
    assert_same(read, variables)
    assert read_info == info
    about = metadata_of(folder)
    assert (about["library_name"], about["license"]) == ("timm", "cc-by-4.0")
    assert about["base_model"] == "timm/densenet121.tv_in1k" and "timm" in about["tags"]
    assert "model-index" not in about

    commit = push(hub, folder)
    Image.fromarray(tile).save(tmp_path / "tile.png")
    text = (folder / "README.md").read_text()
    code = re.search(r"## Use with timm\n\n```python\n(.*?)```", text, re.DOTALL)[1]
    names = {}
    with contextlib.chdir(tmp_path), contextlib.redirect_stdout(io.StringIO()):
        exec(code.replace("OWNER/NAME", "me/x"), names)
    state = {name: tensor.numpy() for name, tensor in names["model"].state_dict().items()}
    expected = torch_state_dict(variables)
    assert state.keys() == expected.keys()
    assert all(np.array_equal(state[name], expected[name]) for name in expected)
    assert names["logits"].shape == (1, 2) and np.ptp(names["logits"].numpy()) > 0.1
    x = names["transform"](Image.fromarray(tile)).permute(1, 2, 0).numpy()
    np.testing.assert_allclose(x, preprocess_input(tile.astype(np.float32)), atol=1e-5)
    assert f"at least {POINT.threshold}" in text and "divided by 2.5" in text
    pushed = read_weights("hf://me/x")[1]
    assert (pushed.inference, pushed.license) == (info.inference, "cc-by-4.0")
    assert pushed.source == f"hf://me/x@{commit}/model.safetensors"


def test_what_is_pushed_predicts_as_before(hub, tile, tmp_path, monkeypatch):
    """Of a network that timm does not have, in this package's own form."""
    mine = functools.partial(DenseNet, blocks=TINY_BLOCKS)  # whose name timm does not know
    monkeypatch.setitem(NETWORKS, "mine", mine)
    network = save_network(tmp_path / "network.safetensors", "views of an oblong")
    before = load_classifier(network)
    folder = export_for_hub(str(network), tmp_path / "out")
    assert metadata_of(folder)["library_name"] == "densenet_flax"
    assert (
        "timm cannot load it: timm and torchvision cannot build"
        in (folder / "README.md").read_text()
    )
    push(hub, folder)
    expected = before.predict([tile])
    for name in (folder, "hf://me/x"):
        classifier = load_classifier(name)
        assert classifier.operating_point == before.operating_point and classifier.tta
        prediction = classifier.predict([tile])
        np.testing.assert_array_equal(prediction.calibrated, expected.calibrated)
        assert prediction.decision == expected.decision


def test_the_card_has_the_figures_of_the_run(tiny_run, tmp_path, caplog):
    workdir = tiny_run.workdir
    folder = export_for_hub(str(workdir), tmp_path / "out")
    metrics = json.loads((workdir / "report" / "metrics.json").read_text())
    (index,) = metadata_of(folder)["model-index"]
    values = {m["type"]: m["value"] for m in index["results"][0]["metrics"]}
    assert values["accuracy"] == pytest.approx(metrics["image"]["accuracy"], abs=1e-6)
    text = (folder / "README.md").read_text()
    report = (workdir / "report" / "MODEL_CARD.md").read_text()
    assert report.partition("**")[2].rstrip() in text
    interval = metrics["intervals"]["image"]["accuracy"]
    assert f"{interval['low']:.3f}" in text and "stain normalization (channel+clahe)" in text
    assert huggingface_hub.ModelCard.load(folder / "README.md").data.eval_results

    changed = tmp_path / "changed"
    changed.mkdir()
    for name in ("checkpoints", "config.json", "operating_point.json"):
        (changed / name).symlink_to(workdir / name)
    (changed / "report").mkdir()
    point = metrics["operating_point"]
    for i, other in enumerate(({"threshold": 0.123}, {"method": "platt", "shift": 0.5})):
        metrics["operating_point"] = {**point, **other}
        (changed / "report" / "metrics.json").write_text(json.dumps(metrics))
        export_for_hub(str(changed), tmp_path / f"other{i}")
        assert "model-index" not in metadata_of(tmp_path / f"other{i}")
    assert caplog.text.count("of another evaluation, so the card has no results") == 2


def test_what_is_in_the_way_is_kept(tmp_path):
    network = str(save_network(tmp_path / "network.safetensors"))
    folder = tmp_path / "out"
    (folder / ".git").mkdir(parents=True)  # a clone of an empty repository
    (folder / ".gitattributes").write_text("*.safetensors filter=lfs")
    export_for_hub(network, folder)
    with pytest.raises(InputError, match="--overwrite"):
        export_for_hub(network, folder)
    export_for_hub(network, folder, overwrite=True)
    (folder / "config.json").write_text("{}")
    before = {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    with pytest.raises(InputError, match="other files than an export for the Hub"):
        export_for_hub(network, folder, overwrite=True)
    assert before == {path: path.read_bytes() for path in before}
    with pytest.raises(InputError, match="is a file"):
        export_for_hub(network, network)
