"""The folder for WSInfer and QuPath: what it says and computes, and what it cannot say."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from densenet_flax import InputError
from densenet_flax.evaluation.metrics.operating_point import OperatingPoint
from densenet_flax.export import export_classifier, wsinfer
from densenet_flax.inference.ensemble import Combination, Ensemble
from densenet_flax.inference.load import load_classifier
from densenet_flax.weights import read_weights, save_weights
from tests.export.test_export import CALIBRATIONS, save_network

torch = pytest.importorskip("torch")


def square(classifier, **settings):
    """A classifier that states a square field; by default of 64 pixels of 0.5 µm."""
    settings = {"field_um": (32.0, 32.0), "mpp": (0.5, 0.5), **settings}
    inference = dataclasses.replace(classifier.info.inference, **settings)
    classifier.info = dataclasses.replace(classifier.info, inference=inference)
    return classifier


def load(tmp_path, kind):
    return load_classifier(save_network(tmp_path / "network.safetensors", kind), dtype="float32")


def test_the_config_is_of_their_schema_and_has_our_patch(tmp_path):
    classifier = square(load(tmp_path, "views of a square"))
    config = json.loads(wsinfer.serialize(classifier)["config.json"])
    assert config == {
        "spec_version": "1.0",
        "architecture": classifier.info.network,
        "num_classes": 2,
        "class_names": ["benign", "malignant"],
        "patch_size_pixels": 64,
        "spacing_um_px": 0.5,
        "transform": [
            {"name": "Resize", "arguments": {"size": 32}},
            {"name": "ToTensor"},
            {
                "name": "Normalize",
                "arguments": {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]},
            },
        ],
    }
    # Without the pixels of the tiles on disk, those of the network's input.
    assert wsinfer.describe(square(classifier, mpp=None))["spacing_um_px"] == 1
    point = classifier.operating_point
    assert wsinfer.explain(classifier)["threshold"] == pytest.approx(
        1 / (1 + (1 / point.threshold - 1) ** (1 / point.temperature))
    )


def draw_noise(n, size):
    """Images of noise that differ in brightness."""
    noise = np.random.default_rng(5).integers(0, 256, (n, *size, 3))
    return (noise * np.linspace(0.1, 1, n)[:, None, None, None]).astype(np.uint8)


KINDS = ("views of a square", "three classes", "one output, no last ReLU")


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")  # it is what they read
@pytest.mark.parametrize("kind", KINDS)
def test_a_patch_has_the_calibrated_probability_of_the_same_tile(tmp_path, kind):
    """Through the steps of their config, from the pixels of a patch, in batches of any size."""
    classifier = square(load(tmp_path, kind))
    files = wsinfer.serialize(classifier)
    config = json.loads(files["config.json"])
    patches = draw_noise(5, (config["patch_size_pixels"],) * 2)
    (resize, _, normalize) = config["transform"]
    size = (resize["arguments"]["size"],) * 2
    resized = [
        np.asarray(Image.fromarray(p).resize(size, Image.Resampling.BILINEAR)) for p in patches
    ]
    x = torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2) / 255
    mean, std = (
        torch.tensor(normalize["arguments"][key])[:, None, None] for key in ("mean", "std")
    )
    (tmp_path / "model.pt").write_bytes(files["torchscript_model.pt"])
    network = torch.jit.load(tmp_path / "model.pt")
    assert next(network.parameters()) is not None  # their program asks it for the device
    ours = classifier.predict(patches).calibrated
    for rows in (slice(None), slice(2, 3)):
        theirs = torch.softmax(network((x[rows] - mean) / std), dim=1).detach().numpy()
        np.testing.assert_allclose(theirs, ours[rows], atol=1e-5)
    assert np.ptp(ours[:, 1]) > 1e-3  # a constant would prove nothing


@pytest.mark.parametrize("name", CALIBRATIONS)
def test_every_calibration_is_in_the_file(tmp_path, name):
    classifier = square(load(tmp_path, "views of a square"))
    method = "platt" if name == "platt" else "isotonic"
    classifier.operating_point = OperatingPoint(method=method, **CALIBRATIONS[name])
    images = draw_noise(3, (32, 32))
    theirs = wsinfer.load(wsinfer.serialize(classifier))(images)["calibrated"]
    np.testing.assert_allclose(theirs, classifier.predict(images).calibrated, atol=1e-5)


@pytest.mark.parametrize(
    ("combine", "weights"),
    [("probabilities", (0.25, 0.75)), ("probabilities", (0.0, 1.0)), ("logits", (0.25, 0.75))],
)
def test_an_ensemble_is_one_network(tmp_path, combine, weights):
    members = [square(load(tmp_path, kind)) for kind in ("views of a square",) * 2]
    for member, factor in zip(members, (1.0, -0.5), strict=True):
        head = member.variables["params"]["head"]["predictions"]
        head["kernel"] = head["kernel"] * factor
    point = members[0].info.inference.operating_point
    combination = Combination(combine, weights)
    ensemble = Ensemble(dict(zip("ab", members, strict=True)), combination, point)
    images = draw_noise(3, (32, 32))
    theirs = wsinfer.load(wsinfer.serialize(ensemble))(images)["calibrated"]
    np.testing.assert_allclose(theirs, ensemble.predict(images).calibrated, atol=1e-5)


def test_what_their_files_cannot_say_is_refused(tmp_path):
    classifier = load(tmp_path, "views of a square")
    for settings, message in (
        ({"field_um": None}, r"size of a tile in micrometers.*--config\.data\.mpp"),
        ({"field_um": (92.0, 140.0)}, r"square patches.*92×140 µm.*--mode=slide"),
        ({"stain": {"method": "channel"}}, r"no stain normalization.*channel.*--mode=slide"),
    ):
        with pytest.raises(InputError, match=message):
            wsinfer.describe(square(classifier, **settings))
        square(classifier, stain={})
    for kind, message in (
        ("views of an oblong", "32×48 pixels"),
        ("several labels", "classes are independent"),
    ):
        with pytest.raises(InputError, match=message):
            wsinfer.describe(square(load(tmp_path, kind)))


def test_the_folder_is_checked_and_described(tmp_path):
    path = save_network(tmp_path / "a.safetensors", "views of a square")
    variables, info = read_weights(path)
    inference = dataclasses.replace(info.inference, field_um=(32.0, 32.0), mpp=(0.5, 0.5))
    save_weights(path, variables, dataclasses.replace(info, inference=inference))
    out = tmp_path / "out"
    result = export_classifier(str(path), out, formats=["wsinfer"])
    assert result.differences["wsinfer"] < 1e-5
    assert {p.name for p in (out / "wsinfer").iterdir()} == {"torchscript_model.pt", "config.json"}
    text = (out / "README.md").read_text()
    assert "a square of 32 µm" in text and "User model directory" in text
    described = json.loads((out / "classifier.json").read_text())
    assert set(described["files"]) == {"wsinfer/torchscript_model.pt", "wsinfer/config.json"}
    export_classifier(str(path), out, formats=["stablehlo"], overwrite=True)
    assert not (out / "wsinfer" / "torchscript_model.pt").exists()
