"""Files for use without this package."""

import dataclasses
import json
import re
import subprocess
import sys

import numpy as np
import pytest

import densenet_flax
from densenet_flax import InputError
from densenet_flax.evaluation.metrics.operating_point import OperatingPoint
from densenet_flax.export import export as files
from densenet_flax.export import export_classifier, onnx_graph, stablehlo
from densenet_flax.models.init import init_variables
from densenet_flax.weights import InferenceSettings, WeightsInfo, save_weights
from densenet_flax.weights.layout import Layout
from tests.helpers.networks import TINY_BLOCKS, randomize

_POINT = OperatingPoint(0.4, 2.5, "youden", "40 validation images of 4 patients")
_RECIPE = {"num_classes": 2, "hidden": (8,), "class_names": ("benign", "malignant")}
_KINDS = {
    "recipe": (_RECIPE, {"image_size": [32, 48]}, False),
    "views of a square": (_RECIPE, {"image_size": [32, 32]}, True),
    "views of an oblong": (_RECIPE, {"image_size": [32, 48]}, True),
    "three classes": ({"num_classes": 3}, {"image_size": [40, 40]}, True),
    "one output, no last ReLU": (
        {
            "num_classes": 1,
            "activation": "sigmoid",
            "final_relu": False,
            "preprocessing": "scale",
            "epsilon": 1e-5,
        },
        {"image_size": [32, 32]},
        False,
    ),
    "bfloat16": (_RECIPE, {"image_size": [32, 32], "dtype": "bfloat16"}, False),
}


def make_file(path, kind="recipe", blocks=TINY_BLOCKS):
    values, settings, tta = _KINDS[kind]
    inference = InferenceSettings.from_dict(
        {**settings, "operating_point": {**_POINT.to_dict(), "tta": tta}}
    )
    network = Layout(tuple(blocks)).network
    info = WeightsInfo(network=network, blocks=blocks, inference=inference, **values)
    variables = randomize(init_variables(info.build_model(), seed=3), seed=4)
    kernel = variables["params"]["head"]["predictions"]["kernel"]
    kernel *= 3  # so that probabilities are not all alike
    save_weights(path, variables, info)
    return path


@pytest.fixture
def network(tmp_path):
    return make_file(tmp_path / "network.safetensors")


@pytest.mark.parametrize("kind", _KINDS)
def test_the_files_say_what_the_classifier_says(kind, tmp_path):
    network = make_file(tmp_path / "network.safetensors", kind)
    folder = tmp_path / "out"
    done = export_classifier(str(network), folder)
    assert max(done.differences["stablehlo"], done.differences["onnx"]) <= 1e-5
    assert "densenet121, densenet169, densenet201" in done.skipped["keras"]

    classifier = densenet_flax.load_classifier(network, dtype="float32")
    assert classifier.tta == _KINDS[kind][2]
    images = np.random.default_rng(5).integers(0, 256, (5, *classifier.image_size, 3), np.uint8)
    ours = classifier.predict(images)
    assert np.ptp(ours.probability[:, 0]) > 1e-3
    if len(ours.class_names) == 2:
        assert np.abs(ours.calibrated - ours.probability).max() > 1e-2
    for load, name in ((stablehlo.load, "stablehlo"), (onnx_graph.load, "onnx")):
        theirs = load((folder / files.NAMES[name]).read_bytes())(images)
        np.testing.assert_allclose(theirs["probability"], ours.probability, atol=1e-5)
        np.testing.assert_allclose(theirs["calibrated"], ours.calibrated, atol=1e-5)
        clear = files._is_clear(ours, classifier.point.threshold)
        assert clear.any() and (theirs["decision"] == ours.label)[clear].all()


def test_the_threshold_is_inside(tmp_path):
    """The same network at a threshold that turns every decision."""
    network = make_file(tmp_path / "network.safetensors")
    classifier = densenet_flax.load_classifier(network)
    images = np.random.default_rng(5).integers(0, 256, (4, *classifier.image_size, 3), np.uint8)
    for threshold, wanted in ((0.0, 1), (1.0, 0)):
        classifier.point = dataclasses.replace(classifier.point, threshold=threshold)
        for data, load in (
            (stablehlo.serialize(classifier), stablehlo.load),
            (onnx_graph.serialize(classifier, {}), onnx_graph.load),
        ):
            assert (load(data)(images)["decision"] == wanted).all()


_CHECKS = {
    "JAX": 'found = classifier(examples["images"])["probability"]',
    "ONNX": "found = probability",
    "Keras": "found = model.predict(x, verbose=0)",
}


def test_the_readme_is_true_where_this_package_is_not(tmp_path):
    """Every example of the folder's README, in a process that cannot import us or Flax."""
    network = make_file(tmp_path / "network.safetensors", blocks=(6, 12, 24, 16))
    folder = tmp_path / "out"
    done = export_classifier(str(network), folder)
    assert set(done.differences) == set(files.FORMATS) and not done.skipped
    text = (folder / "README.md").read_text()
    examples = re.findall(r"## With (\w+).*?```python\n(.*?)```", text, re.S)
    assert [name for name, _ in examples] == list(_CHECKS)
    for name, code in examples:
        script = "\n".join(
            [
                "import sys",
                "sys.modules['densenet_flax'] = sys.modules['flax'] = None",
                code,
                _CHECKS[name],
                "np.testing.assert_allclose(found, examples['probability'], atol=1e-5)",
            ]
        )
        done = subprocess.run(
            [sys.executable, "-c", script], cwd=folder, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{name}: {done.stderr}"
    assert "image.resize((48, 32)" in text
    assert "malignant where its `probability` is at least 0.4" in text


def test_what_the_folder_says_of_itself(network, tmp_path):
    folder = tmp_path / "out"
    export_classifier(str(network), folder)
    record = json.loads((folder / "classifier.json").read_text())
    assert record["class_names"] == ["benign", "malignant"]
    assert record["operating_point"]["threshold"] == 0.4
    assert set(record["files"]) == {"classifier.stablehlo", "classifier.onnx"}
    model = onnx_graph_metadata(folder / "classifier.onnx")
    assert json.loads(model["operating_point"])["temperature"] == 2.5


def onnx_graph_metadata(path):
    import onnx

    return {entry.key: entry.value for entry in onnx.load(path).metadata_props}


def test_a_run_is_exported_as_it_was_evaluated(tiny_run, tmp_path):
    workdir, _, paths, table = tiny_run
    export_classifier(str(workdir), tmp_path / "out", formats=["stablehlo"])
    classifier = densenet_flax.load_classifier(workdir)
    prepared = np.stack([classifier.prepare(path) for path in paths])
    found = stablehlo.load((tmp_path / "out" / "classifier.stablehlo").read_bytes())(prepared)
    np.testing.assert_allclose(found["probability"][:, 1], table.probability, atol=1e-5)
    np.testing.assert_allclose(found["calibrated"][:, 1], table.calibrated, atol=1e-5)
    assert "**Not inside**: the stain" in (tmp_path / "out" / "README.md").read_text()


def test_what_cannot_be(network, tmp_path, monkeypatch):
    folder = tmp_path / "out"
    with pytest.raises(InputError, match=r"tflite.*stablehlo, onnx, keras"):
        export_classifier(str(network), folder, formats=["tflite"])
    with pytest.raises(InputError, match=r"network\.safetensors: a file is in the way"):
        export_classifier(str(network), network)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "onnx", None)
        with pytest.raises(InputError, match="pip install onnx"):
            export_classifier(str(network), folder, formats=["onnx"])
        assert not folder.exists()
        done = export_classifier(str(network), folder)
        assert set(done.differences) == {"stablehlo"}
        assert "pip install" in done.skipped["onnx"]
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(InputError, match="--overwrite"):
        export_classifier(str(network), folder)
    with monkeypatch.context() as patch:
        load = stablehlo.load
        wrong = {"calibrated": np.full((1, 2), np.nan)}
        patch.setattr(stablehlo, "load", lambda data: lambda x: {**load(data)(x), **wrong})
        with pytest.raises(InputError, match="stablehlo: differs by inf"):
            export_classifier(str(network), folder, overwrite=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "README.md").write_text("mine")
    with pytest.raises(InputError, match="other things than an export"):
        export_classifier(str(network), tmp_path / "mine", overwrite=True)
    with pytest.raises(InputError, match="float16"):
        densenet_flax.load_classifier(network, dtype="float16")
    assert before == {path.name: path.read_bytes() for path in folder.iterdir()}
    export_classifier(str(network), folder, formats=["onnx"], overwrite=True)
    assert not (folder / "classifier.stablehlo").exists()  # of an earlier call: no mixture


def test_outputs_that_are_no_classes(tmp_path):
    info = WeightsInfo(
        network="densenet", blocks=TINY_BLOCKS, num_classes=3, activation="sigmoid", source="x.pth"
    )
    save_weights(tmp_path / "n.safetensors", init_variables(info.build_model(), seed=0), info)
    with pytest.raises(InputError, match=r"x\.pth: 3 independent sigmoid"):
        export_classifier(str(tmp_path / "n.safetensors"), tmp_path / "out")
