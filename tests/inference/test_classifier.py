"""A trained network as one object."""

import dataclasses
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from PIL import Image

import densenet_flax
from densenet_flax import InputError
from densenet_flax.data.data_config import DataConfig
from densenet_flax.data.loading import open_dataset
from densenet_flax.evaluation.predictions_csv import read_csv
from densenet_flax.experiments.experiment import cache_directory
from densenet_flax.experiments.run import evaluate
from densenet_flax.inference.tta import symmetric_views
from densenet_flax.models.init import init_variables
from densenet_flax.storage.checkpoint import Checkpoints
from densenet_flax.storage.workdir import Workdir
from densenet_flax.weights import (
    InferenceSettings,
    StoredOperatingPoint,
    WeightsInfo,
    convert,
    load_weights,
    save_weights,
)
from tests.helpers.networks import randomize


@pytest.fixture
def run(tiny_run):
    return tiny_run[0]


@pytest.fixture
def config(tiny_run):
    return tiny_run[1]


@pytest.fixture
def drawn(tiny_run):
    return tiny_run[2:]


def test_it_says_what_the_evaluation_said(run, drawn):
    files, table = drawn
    classifier = densenet_flax.load_classifier(run)
    assert classifier.class_names == ("benign", "malignant")
    assert classifier.image_size == (32, 32)
    found = classifier.predict(files)
    assert np.allclose(found.probability[:, 1], table.probability, atol=1e-6)
    assert np.allclose(found.calibrated[:, 1], table.calibrated, atol=1e-6)
    assert np.allclose(found.probability.sum(1), 1)
    point = json.loads((run / "operating_point.json").read_text())
    assert classifier.point.threshold == point["threshold"] == table.threshold != 0.5
    sure = np.abs(found.probability[:, 1] - point["threshold"]) > 1e-6
    assert sure.any()
    wanted = np.array(table.class_names)[table.prediction]
    assert (found.decision[sure] == wanted[sure]).all()


def test_images_come_to_the_network_as_in_training(config, run, drawn):
    files, _ = drawn
    dataset = open_dataset(
        DataConfig.from_config(config.data, "data"), cache_directory(config.cache_dir)
    )
    classifier = densenet_flax.load_classifier(run)
    row = {name: i for i, name in enumerate(dataset.files)}
    for path in files:
        assert np.array_equal(classifier.prepare(path), dataset.images[row[path.name]])


def test_whatever_stands_for_an_image(run, drawn):
    path = drawn[0][0]
    classifier = densenet_flax.load_classifier(run)
    pixels = np.asarray(Image.open(path))
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "TIFF")
    same = [path, str(path), pixels, Image.open(path), buffer.getvalue()]
    found = classifier.predict(same).probability
    assert len(found) == 5 and np.ptp(found, axis=0).max() < 1e-6
    assert np.allclose(classifier.predict(pixels).probability, found[:1], atol=1e-6)
    assert np.allclose(classifier.predict(np.stack([pixels] * 2)).probability, found[:2])
    many = classifier.predict([pixels] * (classifier.batch_size + 1))
    assert len(many) == classifier.batch_size + 1
    assert len(classifier.predict([])) == 0 and classifier.embed([]).shape[0] == 0
    for wrong, words in (
        ([pixels / 255.0], "uint8"),
        ([pixels[..., 0]], "image 0"),
        ([path.with_suffix(".gif")], "gif"),
        ([pixels, b"junk"], "image 1: is not an image"),
        (np.zeros((2, 2), np.uint8), "expected [N, H, W, 3]"),
    ):
        with pytest.raises(InputError) as told:
            classifier.predict(wrong)
        assert words in str(told.value) and "\n" not in str(told.value)


def test_features_are_what_the_head_works_on(run, drawn):
    files = drawn[0]
    classifier = densenet_flax.load_classifier(run)
    features = classifier.embed(files)
    assert features.shape == (len(files), classifier.info.layout.features)
    assert features.dtype == np.float32
    logits = classifier.pipeline.run(classifier.variables, features, start="head")
    odds = np.exp(np.asarray(logits, np.float64))
    wanted = odds / odds.sum(1, keepdims=True)
    assert np.allclose(classifier.predict(files).probability, wanted, atol=1e-6)


def test_one_file_carries_everything(run, drawn, tmp_path):
    files, table = drawn
    target = tmp_path / "model.safetensors"
    convert(run, target)
    shutil.move(target, tmp_path / "elsewhere.safetensors")
    classifier = densenet_flax.load_classifier(tmp_path / "elsewhere.safetensors")
    there = densenet_flax.load_classifier(run)
    assert (classifier.point, classifier.tta) == (there.point, False)
    assert classifier.info.inference.stain["method"] == "channel"
    assert classifier.image_size == there.image_size
    found = classifier.predict(files)
    assert np.allclose(found.calibrated[:, 1], table.calibrated, atol=1e-6)
    assert (found.label == there.predict(files).label).all()


def test_the_network_that_was_judged_is_taken(run, config, tmp_path):
    checkpoints = Checkpoints(Workdir(run).checkpoints)
    judged = json.loads((run / "operating_point.json").read_text())["step"]
    assert len(checkpoints.steps) == 2 and judged != checkpoints.steps[-1]  # else choose a seed
    classifier = densenet_flax.load_classifier(run)
    for step in checkpoints.steps:
        kernel = checkpoints.restore(step).variables["params"]["head"]["predictions"]["kernel"]
        mine = np.asarray(classifier.variables["params"]["head"]["predictions"]["kernel"])
        assert np.array_equal(kernel, mine) == (step == judged)
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    shutil.rmtree(copy / "checkpoints" / str(judged))
    with pytest.raises(InputError, match=f"step {judged}.*--mode=evaluate"):
        densenet_flax.load_classifier(copy)
    (copy / "operating_point.json").write_text("{")
    with pytest.raises(InputError, match=r"operating_point\.json"):
        densenet_flax.load_classifier(copy)


def test_a_run_judged_by_its_symmetries_predicts_by_them(run, config, drawn, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    with config.copy_and_resolve_references().unlocked() as other:
        other.tta = True
        evaluate(other, str(copy))
    files, plain = drawn
    table = read_csv(copy / "report" / "predictions.csv")
    assert np.abs(table.probability - plain.probability).max() > 1e-5
    classifier = densenet_flax.load_classifier(copy)
    assert classifier.tta
    found = classifier.predict(files)
    assert np.allclose(found.probability[:, 1], table.probability, atol=1e-6)
    prepared = np.stack([classifier.prepare(path) for path in files])
    turned = np.asarray(symmetric_views(prepared)).reshape(len(files), -1, *prepared.shape[1:])[
        :, 5
    ]
    outputs = [classifier.forward(turned[i : i + 1]).probability for i in range(3)]
    assert np.allclose(np.concatenate(outputs), found.probability[:3], atol=1e-6)
    # Features and maps are those of the image as it is.
    assert np.allclose(
        classifier.embed(files), densenet_flax.load_classifier(run).embed(files), atol=1e-5
    )


@pytest.fixture(scope="module")
def nine(tiny, tmp_path_factory):
    """A file with nine classes and nothing said of sizes, as TIAToolbox has."""
    model = tiny.clone(num_classes=9, hidden=(), final_relu=False, epsilon=1e-5)
    variables = randomize(init_variables(model, seed=3), seed=4)
    names = ("ADI", "BACK", "DEB", "LYM", "MUC", "MUS", "NORM", "STR", "TUM")
    info = WeightsInfo.of(model, preprocessing="scale", class_names=names)
    path = tmp_path_factory.mktemp("nine") / "nine.safetensors"
    save_weights(path, variables, info)
    return path, info, model


def test_any_weights_with_a_head(nine, drawn):
    path, info, model = nine
    classifier = densenet_flax.load_classifier(path, image_size=(64, 64), batch_size=4)
    assert densenet_flax.load_classifier(path).image_size == (224, 224)
    found = classifier.predict(drawn[0])
    assert found.probability.shape == (len(drawn[0]), 9)
    assert (found.decision == np.array(info.class_names)[found.probability.argmax(1)]).all()
    assert np.array_equal(found.calibrated, found.probability)
    images = np.stack([classifier.prepare(path) for path in drawn[0][:4]])
    x = densenet_flax.preprocess_input(images, "scale")
    logits = np.asarray(model.apply(load_weights(path, model), x), np.float64)
    wanted = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    assert np.allclose(found.probability[:4], wanted, atol=1e-6)


def test_a_temperature_for_many_classes(nine, tmp_path):
    path, _, _ = nine
    variables, info = densenet_flax.weights.read_weights(path)
    point = StoredOperatingPoint(None, temperature=2.0, rule="likeliest", chosen_on="x")
    settings = InferenceSettings(image_size=(32, 32), operating_point=point)
    warm = dataclasses.replace(info, inference=settings)
    save_weights(tmp_path / "warm.safetensors", variables, warm)
    classifier = densenet_flax.load_classifier(tmp_path / "warm.safetensors")
    found = classifier.predict(np.zeros((1, 40, 40, 3), np.uint8))
    flat = np.sqrt(found.probability)
    assert np.allclose(found.calibrated, flat / flat.sum())
    assert found.label == found.probability.argmax()


def test_one_output_that_says_yes_or_no(tiny, tmp_path):
    model = tiny.clone(num_classes=1)
    info = WeightsInfo.of(model, activation="sigmoid", class_names=("tumour",))
    path = tmp_path / "one.safetensors"
    save_weights(path, randomize(init_variables(model, seed=5), seed=6), info)
    classifier = densenet_flax.load_classifier(path, image_size=(32, 32))
    found = classifier.predict(np.full((2, 32, 32, 3), 90, np.uint8))
    assert found.class_names == ("not tumour", "tumour")
    assert np.allclose(found.probability.sum(1), 1) and found.probability.shape == (2, 2)
    assert classifier.explain(np.full((2, 64, 64, 3), 90, np.uint8)).maps.shape[0] == 2


def test_what_cannot_classify_gets_one_line(nine, run, tmp_path):
    path, _, model = nine
    bare = model.clone(num_classes=0)
    save_weights(
        tmp_path / "bare.safetensors", init_variables(bare, 0), WeightsInfo.of(bare, source="b.h5")
    )
    (tmp_path / "empty").mkdir()
    for wrong, words in (
        (tmp_path / "none", "no such file or directory"),
        (tmp_path / "empty", "no checkpoint"),
        (tmp_path / "bare.safetensors", "without a head"),
        (run / "config.json", "no weights file"),
    ):
        with pytest.raises(InputError, match=words) as told:
            densenet_flax.load_classifier(wrong)
        assert "\n" not in str(told.value)
    with pytest.raises(InputError, match="at least 32"):
        densenet_flax.load_classifier(path, image_size=(16, 64))
    with pytest.raises(InputError, match="batch_size"):
        densenet_flax.load_classifier(path, batch_size=-1)


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ({"image_size": [1_000_000, 1_000_000]}, r"extra\.image_size is \[1000000, 1000000\]"),
        ({"image_size": [-224, 224]}, r"extra\.image_size"),
        ({"dtype": "object"}, r"extra\.dtype"),
        ({"patient_pattern": "("}, r"extra\.patient_pattern"),
        ({"operating_point": {"temperature": 0}}, r"operating_point has no 'threshold'"),
        ({"stain": {"method": "henna"}}, r"stain\.method='henna'"),
        ({"stain": {"method": "channel", "mean": [1, 2], "std": [1, 1, 1]}}, r"stain\.mean"),
        ({"stain": {"method": "macenko", "stains": [1, 2, 3]}}, r"stain\.stains"),
        ({"stain": {"method": "clahe", "grid": 0.5}}, r"stain\.grid"),
        ({"stain": {"method": "clahe", "grid": 1e6}}, r"stain\.grid"),
        ({"stain": {"method": "channel", "reference": "/dev/zero"}}, r"stain\.reference"),
    ],
    ids=str,
)
def test_a_hostile_header_gets_one_line(extra, words, nine, tmp_path):
    variables, info = densenet_flax.weights.read_weights(nine[0])
    path = tmp_path / "hostile.safetensors"
    save_weights(path, variables, info)
    arrays = safetensors.numpy.load_file(path)
    header = json.dumps({**info.to_dict(), "extra": extra})
    safetensors.numpy.save_file(arrays, path, {"densenet_flax": header})
    with pytest.raises(InputError, match=words) as error:
        densenet_flax.load_classifier(path)
    assert str(error.value).startswith(str(path)) and "\n" not in str(error.value)


def test_importing_the_package_does_not_wait_for_it():
    with pytest.raises(AttributeError, match="nothing"):
        _ = densenet_flax.nothing


def test_the_snippet_of_the_readme(run, drawn, tmp_path, monkeypatch, capsys):
    text = (Path(__file__).parents[2] / "README.md").read_text()
    part = text.partition("## Use what you trained")[2]
    snippet = part.partition("```python\n")[2].partition("```")[0]
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "quickstart").symlink_to(run)
    shutil.copy(drawn[0][0], tmp_path / "tile.png")
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(snippet, names)
    assert capsys.readouterr().out.startswith(("['benign'] [[", "['malignant'] [["))
    assert names["features"].shape[0] == 1
    assert Image.open(tmp_path / "map.png").size[0] > 400


def test_maps_are_of_the_decision_unless_told_otherwise(run, drawn):
    files = drawn[0][:3]
    classifier = densenet_flax.load_classifier(run)
    decided = classifier.explain(files, unit="pool2")
    assert (decided.label == classifier.predict(files).label).all()
    assert decided.maps.shape == (3, 4, 4) and decided.method == "Grad-CAM"
    one = classifier.explain(files, "malignant", unit="pool2")
    each = classifier.explain(files, [1, "benign", 1], unit="pool2")
    assert np.allclose(one.maps[[0, 2]], each.maps[[0, 2]])
    # Of two classes, what speaks for one speaks against the other.
    assert np.allclose(one.maps[1], -each.maps[1], atol=1e-5)
    assert len(classifier.explain([], "benign")) == 0
    for target, words in (("lung", "lung"), (2, "from 0 to 1"), ([0, 1], "2 classes for 3")):
        with pytest.raises(InputError, match=words):
            classifier.explain(files, target)
