"""Exported files compute what the classifier computes, also where this package is missing."""

import dataclasses
import json
import re
import subprocess
import sys

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import densenet_flax
from densenet_flax import InputError
from densenet_flax.evaluation.metrics.calibrators import interpolate
from densenet_flax.evaluation.metrics.operating_point import OperatingPoint
from densenet_flax.export import export_classifier, onnx_graph, stablehlo
from densenet_flax.export.export import DEFAULT_FORMATS, FILE_NAMES, _is_clear, _render_readme
from densenet_flax.export.predict_fn import Steps
from densenet_flax.inference.load import load_classifier
from densenet_flax.models.init import init_variables
from densenet_flax.weights import InferenceSettings, WeightsInfo, save_weights
from densenet_flax.weights.layout import Layout
from tests.helpers.networks import TINY_BLOCKS, randomize

POINT = OperatingPoint(0.4, 2.5, "youden", "40 validation images of 4 patients")
RECIPE = {"num_classes": 2, "hidden": (8,), "class_names": ("benign", "malignant")}
NETWORKS = {
    "recipe": (RECIPE, {"image_size": [32, 48]}, False),
    "views of a square": (RECIPE, {"image_size": [32, 32]}, True),
    "views of an oblong": (RECIPE, {"image_size": [32, 48]}, True),
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
    "several labels": (
        {"num_classes": 2, "activation": "sigmoid", "preprocessing": "tf", "hidden": (8,)},
        {"image_size": [32, 32]},
        True,
    ),
    "bfloat16": (RECIPE, {"image_size": [32, 32], "dtype": "bfloat16"}, False),
}


def save_network(path, kind="recipe", blocks=TINY_BLOCKS, point=POINT):
    values, settings, tta = NETWORKS[kind]
    inference = InferenceSettings.from_dict(
        {**settings, "operating_point": {**point.to_dict(), "tta": tta}}
    )
    network = Layout(tuple(blocks)).network
    info = WeightsInfo(network=network, blocks=blocks, inference=inference, **values)
    variables = randomize(init_variables(info.build_model(), seed=3), seed=4)
    kernel = variables["params"]["head"]["predictions"]["kernel"]
    kernel *= 3  # so that probabilities differ
    save_weights(path, variables, info)
    return path


@pytest.fixture
def network(tmp_path):
    return save_network(tmp_path / "network.safetensors")


CALIBRATIONS = {
    "platt": {"shift": 0.5, "temperature": 2.0},
    "isotonic": {"knots": ((0.05, 0.2), (0.5, 0.2), (0.5 + 1e-9, 0.3), (0.9, 0.6))},
    # The sum of these steps is above 1 in float32.
    "up to 1": {"knots": ((0.001, 0.07), (0.002, 0.1), (0.003, 0.4), (0.004, 1.0))},
    "a single knot": {"knots": ((0.5, 0.25),)},
}


@pytest.mark.parametrize("name", CALIBRATIONS)
def test_calibration_is_inside_the_files(network, name):
    classifier = load_classifier(str(network), dtype="float32")
    images = np.random.default_rng(5).integers(0, 256, (5, *classifier.image_size, 3), np.uint8)
    method = "platt" if name == "platt" else "isotonic"
    classifier.operating_point = OperatingPoint(method=method, **CALIBRATIONS[name])
    ours = classifier.predict(images)
    if name == "platt":
        odds = np.log(ours.probability[:, 1] / ours.probability[:, 0])
        assert ours.calibrated[:, 1] == pytest.approx(1 / (1 + np.exp(-(odds / 2 + 0.5))))
    for theirs in (
        stablehlo.load(stablehlo.serialize(classifier))(images),
        onnx_graph.load(onnx_graph.serialize(classifier, {}))(images),
    ):
        np.testing.assert_allclose(theirs["calibrated"], ours.calibrated, atol=1e-5)


@given(
    st.lists(st.tuples(st.floats(0, 1, width=32), st.floats(0, 1)), min_size=1, max_size=9),
    st.floats(0, 1, width=32),
)
def test_steps_are_an_interpolation(pairs, probability):
    before = sorted({p for p, _ in pairs})
    after = sorted(p for _, p in pairs)[: len(before)]
    knots, steps = (
        tuple(zip(before, after, strict=True)),
        Steps.of(tuple(zip(before, after, strict=True))),
    )
    share = np.clip((np.float32(probability) - steps.start) / steps.width, 0, 1)
    assert steps.first + share @ steps.rise == pytest.approx(
        interpolate(probability, knots), abs=1e-5
    )


@pytest.mark.parametrize(
    "point",
    [
        OperatingPoint(method="platt", shift=0.5),
        OperatingPoint(method="isotonic", knots=((0.1, 0.2), (0.1 + 1e-12, 0.8))),
    ],
)
def test_a_calibrated_classifier_is_exported_and_explained(tmp_path, point):
    network = save_network(tmp_path / "network.safetensors", point=point)
    result = export_classifier(str(network), tmp_path / "out", formats=["stablehlo"])
    assert result.differences["stablehlo"] <= 1e-5
    text = " ".join((tmp_path / "out" / "README.md").read_text().split())
    expected = "0.5 added to the log-odds of malignant (Platt scaling) - `decision`"
    assert (expected if point.shift else "isotonic regression - `decision`") in text


@pytest.mark.parametrize("kind", NETWORKS)
def test_exported_files_compute_what_the_classifier_computes(kind, tmp_path):
    network = save_network(tmp_path / "network.safetensors", kind)
    folder = tmp_path / "out"
    result = export_classifier(str(network), folder)
    assert max(result.differences["stablehlo"], result.differences["onnx"]) <= 1e-5
    assert "densenet121, densenet169, densenet201" in result.skipped["keras"]

    program = jax.export.deserialize(bytearray((folder / FILE_NAMES["stablehlo"]).read_bytes()))
    products = re.findall(r"stablehlo\.(?:convolution|dot_general)\b.*", program.mlir_module())
    assert products and all(line.count("HIGHEST") == 2 for line in products)

    classifier = densenet_flax.load_classifier(network, dtype="float32")
    assert classifier.tta == NETWORKS[kind][2]
    images = np.random.default_rng(5).integers(0, 256, (5, *classifier.image_size, 3), np.uint8)
    ours = classifier.predict(images)
    assert np.ptp(ours.probability[:, 0]) > 1e-3
    two_classes = len(ours.class_names) == 2 and not classifier.is_multilabel
    if two_classes or classifier.is_multilabel:
        assert np.abs(ours.calibrated - ours.probability).max() > 1e-2
    for load, name in ((stablehlo.load, "stablehlo"), (onnx_graph.load, "onnx")):
        theirs = load((folder / FILE_NAMES[name]).read_bytes())(images)
        np.testing.assert_allclose(theirs["probability"], ours.probability, atol=1e-5)
        np.testing.assert_allclose(theirs["calibrated"], ours.calibrated, atol=1e-5)
        clear = _is_clear(ours, classifier.operating_point.threshold)
        decided = ours.present if classifier.is_multilabel else ours.label
        assert clear.any() and (theirs["decision"] == decided)[clear].all()
    text = (folder / "README.md").read_text()
    assert ("averaged over the symmetric views" in text) == classifier.tta
    assert ("at least 0.4" in text) == two_classes
    assert ("at least 0.5" in text) == classifier.is_multilabel
    is_exclusive = not (two_classes or classifier.is_multilabel)
    assert ("the class with the highest probability" in text) == is_exclusive


def test_the_threshold_is_inside_the_files(tmp_path):
    """The same network at thresholds that make every decision the other class."""
    network = save_network(tmp_path / "network.safetensors")
    classifier = densenet_flax.load_classifier(network)
    images = np.random.default_rng(5).integers(0, 256, (4, *classifier.image_size, 3), np.uint8)
    for threshold, decision in ((0.0, 1), (1.0, 0)):
        classifier.operating_point = dataclasses.replace(
            classifier.operating_point, threshold=threshold
        )
        for data, load in (
            (stablehlo.serialize(classifier), stablehlo.load),
            (onnx_graph.serialize(classifier, {}), onnx_graph.load),
        ):
            assert (load(data)(images)["decision"] == decision).all()


def test_the_program_for_every_platform_has_no_kernels_of_this_one(network, monkeypatch):
    classifier = densenet_flax.load_classifier(network)

    def default_implementation():
        pytest.fail("the backend of this machine decided how the exported network computes")

    monkeypatch.setattr(
        "densenet_flax.models.densenet.default_implementation", default_implementation
    )
    stablehlo.serialize(classifier)


README_RESULTS = {
    "JAX": 'outputs = classifier(examples["images"])["probability"]',
    "ONNX": "outputs = probability",
    "Keras": "outputs = model.predict(x, verbose=0)",
}


def test_every_example_of_the_readme_runs_without_this_package(tmp_path):
    """In processes that cannot import densenet_flax or Flax."""
    network = save_network(tmp_path / "network.safetensors", blocks=(6, 12, 24, 16))
    folder = tmp_path / "out"
    result = export_classifier(str(network), folder)
    assert set(result.differences) == set(DEFAULT_FORMATS) and not result.skipped
    text = (folder / "README.md").read_text()
    examples = re.findall(r"## With (\w+).*?```python\n(.*?)```", text, re.S)
    assert [name for name, _ in examples] == list(README_RESULTS)
    for name, code in examples:
        script = "\n".join(
            [
                "import sys",
                "sys.modules['densenet_flax'] = sys.modules['flax'] = None",
                code,
                README_RESULTS[name],
                "np.testing.assert_allclose(outputs, examples['probability'], atol=1e-5)",
            ]
        )
        process = subprocess.run(
            [sys.executable, "-c", script], cwd=folder, capture_output=True, text=True
        )
        assert process.returncode == 0, f"{name}: {process.stderr}"
    assert "image.resize((48, 32)" in text
    assert "1, malignant, where its `probability` is at least 0.4, else 0" in text


def test_the_description_is_in_the_folder_and_in_the_onnx_file(network, tmp_path):
    folder = tmp_path / "out"
    export_classifier(str(network), folder)
    record = json.loads((folder / "classifier.json").read_text())
    assert record["class_names"] == ["benign", "malignant"]
    assert record["operating_point"]["threshold"] == 0.4
    assert set(record["files"]) == {"classifier.stablehlo", "classifier.onnx"}
    model = onnx_metadata(folder / "classifier.onnx")
    assert json.loads(model["operating_point"])["temperature"] == 2.5


def onnx_metadata(path):
    import onnx

    return {entry.key: entry.value for entry in onnx.load(path).metadata_props}


def test_an_exported_run_predicts_as_its_evaluation_did(tiny_run, tmp_path):
    workdir, _, paths, table = tiny_run
    export_classifier(str(workdir), tmp_path / "out", formats=["stablehlo"])
    classifier = densenet_flax.load_classifier(workdir)
    prepared = np.stack([classifier.prepare(path) for path in paths])
    outputs = stablehlo.load((tmp_path / "out" / "classifier.stablehlo").read_bytes())(prepared)
    np.testing.assert_allclose(outputs["probability"][:, 1], table.probability, atol=1e-5)
    np.testing.assert_allclose(outputs["calibrated"][:, 1], table.calibrated, atol=1e-5)
    readme = (tmp_path / "out" / "README.md").read_text()
    assert "**Not included**: the stain normalization of training (channel, then clahe)" in readme


def test_a_refused_export_changes_nothing_and_says_why(network, tmp_path, monkeypatch):
    folder = tmp_path / "out"
    with pytest.raises(InputError, match=r"tflite.*stablehlo, onnx, keras"):
        export_classifier(str(network), folder, formats=["tflite"])
    with pytest.raises(InputError, match=r"network\.safetensors: is a file"):
        export_classifier(str(network), network)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "onnx", None)
        with pytest.raises(InputError, match="pip install onnx"):
            export_classifier(str(network), folder, formats=["onnx"])
        assert not folder.exists()
        result = export_classifier(str(network), folder)
        assert set(result.differences) == {"stablehlo"}
        assert "pip install" in result.skipped["onnx"]
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(InputError, match="--overwrite"):
        export_classifier(str(network), folder)
    with monkeypatch.context() as patch:
        load = stablehlo.load
        wrong = {"calibrated": np.full((1, 2), np.nan)}
        patch.setattr(stablehlo, "load", lambda data: lambda x: {**load(data)(x), **wrong})
        with pytest.raises(InputError, match="stablehlo: differs by inf"):
            export_classifier(str(network), folder, overwrite=True)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "README.md").write_text("other")
    with pytest.raises(InputError, match="other files than an export"):
        export_classifier(str(network), tmp_path / "other", overwrite=True)
    with pytest.raises(InputError, match="float16"):
        densenet_flax.load_classifier(network, dtype="float16")
    assert before == {path.name: path.read_bytes() for path in folder.iterdir()}
    export_classifier(str(network), folder, formats=["onnx"], overwrite=True)
    assert not (folder / "classifier.stablehlo").exists()  # of an earlier call: no mixture


def test_names_in_the_readme_are_text_and_not_markup():
    names = ["<script>alert(1)</script>", "=1+1\n# [x](javascript:y) `z`"]
    point = {"temperature": 1.0, "threshold": 0.5, "rule": "<b>", "chosen_on": "9 images\n- x"}
    text = _render_readme(
        {
            "class_names": names,
            "image_size": [32, 48],
            "layout": "a DenseNet",
            "head": {"hidden": [], "outputs": 2, "activation": "softmax"},
            "operating_point": point,
            "stain": {"method": "*x*"},
            "test_time_augmentation": False,
            "files": {},
        }
    ).decode()
    assert "<" not in text and "[x](" not in text and "\n- x" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt; and =1+1 \\# \\[x\\]" in text
    assert "(48, 32)" in text and "training (\\*x\\*)" in text
