"""A trained network loaded from a run or a file, and what it returns for images."""

import dataclasses
import io
import json
import shutil

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
from densenet_flax.models.preprocessing import preprocess_input
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
from densenet_flax.weights.load import read_weights
from tests.helpers.networks import randomize


@pytest.fixture
def run(tiny_run):
    return tiny_run[0]


@pytest.fixture
def config(tiny_run):
    return tiny_run[1]


@pytest.fixture
def evaluated(tiny_run):
    """The test images' files, and the table of predictions that the evaluation wrote of them."""
    return tiny_run[2:]


def test_predictions_of_a_run_are_those_of_its_evaluation(run, evaluated):
    files, table = evaluated
    classifier = densenet_flax.load_classifier(run)
    assert classifier.class_names == ("benign", "malignant")
    assert classifier.image_size == (32, 32)
    prediction = classifier.predict(files)
    assert np.allclose(prediction.probability[:, 1], table.probability, atol=1e-6)
    assert np.allclose(prediction.calibrated[:, 1], table.calibrated, atol=1e-6)
    assert np.allclose(prediction.probability.sum(1), 1)
    point = json.loads((run / "operating_point.json").read_text())
    assert classifier.operating_point.threshold == point["threshold"] == table.threshold != 0.5
    clear = np.abs(prediction.probability[:, 1] - point["threshold"]) > 1e-6
    assert clear.any()
    expected = np.array(table.class_names)[table.prediction]
    assert (prediction.decision[clear] == expected[clear]).all()


def test_a_run_knows_how_much_tissue_its_tiles_show(run, tmp_path):
    """A drawn tile shows 92 µm; what the evaluation was told is what counts."""
    settings = densenet_flax.load_classifier(run).info.inference
    assert settings.field_um == pytest.approx((92, 92 * 44 / 29))
    assert settings.mpp == pytest.approx((92 / 29, 92 / 29))
    copy = shutil.copytree(run, tmp_path / "run")
    path = copy / "operating_point.json"
    point = json.loads(path.read_text())
    assert point["tiles"]["field_um"] == list(settings.field_um)
    del point["crc32"]  # it is changed on purpose
    path.write_text(json.dumps({**point, "tiles": {"mpp": [0.5, 0.4], "field_um": [5, 6]}}))
    settings = read_weights(copy)[1].inference
    assert (settings.mpp, settings.field_um) == ((0.5, 0.4), (5, 6))
    assert settings.operating_point.extra == {}
    path.write_text(json.dumps({**point, "tiles": [1]}))
    with pytest.raises(InputError, match=r"operating_point\.json: 'tiles'"):
        read_weights(copy)


def test_images_are_prepared_as_in_training(config, run, evaluated):
    files, _ = evaluated
    dataset = open_dataset(
        DataConfig.from_config(config.data, "data"), cache_directory(config.cache_dir)
    )
    classifier = densenet_flax.load_classifier(run)
    row = {name: i for i, name in enumerate(dataset.files)}
    for path in files:
        assert np.array_equal(classifier.prepare(path), dataset.images[row[path.name]])


def test_arrays_pillow_images_bytes_and_paths_are_images(run, evaluated):
    path = evaluated[0][0]
    classifier = densenet_flax.load_classifier(run)
    pixels = np.asarray(Image.open(path))
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "TIFF")
    same = [path, str(path), pixels, Image.open(path), buffer.getvalue()]
    probability = classifier.predict(same).probability
    assert len(probability) == 5 and np.ptp(probability, axis=0).max() < 1e-6
    assert np.allclose(classifier.predict(pixels).probability, probability[:1], atol=1e-6)
    assert np.allclose(classifier.predict(np.stack([pixels] * 2)).probability, probability[:2])
    count = classifier.images_per_batch + 1
    assert len(classifier.predict([pixels] * count)) == count
    assert len(classifier.predict([])) == 0 and classifier.embed([]).shape[0] == 0
    for images, words in (
        ([pixels / 255.0], "uint8"),
        ([pixels[..., 0]], "image 0"),
        ([path.with_suffix(".gif")], "gif"),
        ([pixels, b"junk"], "image 1: is not an image"),
        (np.zeros((2, 2), np.uint8), "expected [N, H, W, 3]"),
    ):
        with pytest.raises(InputError) as error:
            classifier.predict(images)
        assert words in str(error.value) and "\n" not in str(error.value)


def test_embed_returns_the_input_of_the_head(run, evaluated):
    files = evaluated[0]
    classifier = densenet_flax.load_classifier(run)
    features = classifier.embed(files)
    assert features.shape == (len(files), classifier.info.layout.features)
    assert features.dtype == np.float32
    logits = classifier.network.run(classifier.variables, features, start="head")
    odds = np.exp(np.asarray(logits, np.float64))
    expected = odds / odds.sum(1, keepdims=True)
    assert np.allclose(classifier.predict(files).probability, expected, atol=1e-6)


@pytest.mark.parametrize("unit", ["stem", "conv4_block1", "pool4", "conv5_block1"])
def test_embed_is_the_mean_over_positions_of_any_unit(run, evaluated, unit):
    files, table = evaluated
    classifier = densenet_flax.load_classifier(run)
    prepared = np.stack([classifier.prepare(file) for file in files])
    model = classifier.model
    after = model.units[model.units.index(unit) + 1]
    x = preprocess_input(prepared, classifier.info.preprocessing)
    expected = np.asarray(model.apply(classifier.variables, x, stop=after)).mean((1, 2))
    features = classifier.embed(files, unit=unit)
    assert features.dtype == np.float32 and features.shape[1] == classifier.count_features(unit)
    np.testing.assert_allclose(features, expected, rtol=1e-4, atol=1e-5)
    assert classifier.embed([], unit=unit).shape == (0, features.shape[1])
    output = classifier.begin_forward(prepared[:3], unit=unit)()
    np.testing.assert_allclose(output.features, features[:3], atol=1e-5)
    np.testing.assert_allclose(output.probability[:, 1], table.probability[:3], atol=1e-6)
    for name in ("head", "conv9"):
        with pytest.raises(InputError, match="expected a unit of the backbone"):
            classifier.embed(files, unit=name)


def test_a_converted_file_carries_all_settings_of_the_run(run, evaluated, tmp_path):
    files, table = evaluated
    target = tmp_path / "model.safetensors"
    convert(run, target)
    shutil.move(target, tmp_path / "elsewhere.safetensors")
    classifier = densenet_flax.load_classifier(tmp_path / "elsewhere.safetensors")
    from_run = densenet_flax.load_classifier(run)
    assert (classifier.operating_point, classifier.tta) == (from_run.operating_point, False)
    assert classifier.info.inference.stain["method"] == "channel+clahe"
    assert classifier.image_size == from_run.image_size
    prediction = classifier.predict(files)
    assert np.allclose(prediction.calibrated[:, 1], table.calibrated, atol=1e-6)
    assert (prediction.label == from_run.predict(files).label).all()


def test_the_evaluated_checkpoint_of_a_run_is_loaded(run, config, tmp_path):
    checkpoints = Checkpoints(Workdir(run).checkpoints)
    evaluated_step = json.loads((run / "operating_point.json").read_text())["step"]
    # Otherwise this test shows nothing: choose another seed.
    assert len(checkpoints.steps) == 2 and evaluated_step != checkpoints.steps[-1]
    classifier = densenet_flax.load_classifier(run)
    for step in checkpoints.steps:
        kernel = checkpoints.restore(step).variables["params"]["head"]["predictions"]["kernel"]
        loaded = np.asarray(classifier.variables["params"]["head"]["predictions"]["kernel"])
        assert np.array_equal(kernel, loaded) == (step == evaluated_step)
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    shutil.rmtree(copy / "checkpoints" / str(evaluated_step))
    with pytest.raises(InputError, match=f"step {evaluated_step}.*--mode=evaluate"):
        densenet_flax.load_classifier(copy)
    (copy / "operating_point.json").write_text("{")
    with pytest.raises(InputError, match=r"operating_point\.json"):
        densenet_flax.load_classifier(copy)


def test_a_run_evaluated_with_tta_predicts_with_it(run, config, evaluated, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    with config.copy_and_resolve_references().unlocked() as with_tta:
        with_tta.tta = True
        of_views = evaluate(with_tta, str(copy))["features"]
    # Features are those of the image itself, not of its views.
    of_images = json.loads((run / "report" / "metrics.json").read_text())["features"]
    assert of_views["patient"] == of_images["patient"] and of_views["class"] == of_images["class"]
    explained = of_images["explained_variance"]
    assert of_views["explained_variance"] == pytest.approx(explained, abs=1e-3)
    files, plain = evaluated
    table = read_csv(copy / "report" / "predictions.csv")
    assert np.abs(table.probability - plain.probability).max() > 1e-5
    classifier = densenet_flax.load_classifier(copy)
    assert classifier.tta
    prediction = classifier.predict(files)
    assert np.allclose(prediction.probability[:, 1], table.probability, atol=1e-6)
    prepared = np.stack([classifier.prepare(path) for path in files])
    views = np.asarray(symmetric_views(prepared)).reshape(len(files), -1, *prepared.shape[1:])
    turned = views[:, 5]
    outputs = [classifier.forward(turned[i : i + 1]).probability for i in range(3)]
    assert np.allclose(np.concatenate(outputs), prediction.probability[:3], atol=1e-6)
    # Features are those of the image itself, not averaged.
    assert np.allclose(
        classifier.embed(files), densenet_flax.load_classifier(run).embed(files), atol=1e-5
    )


@pytest.fixture(scope="module")
def nine_classes(tiny, tmp_path_factory):
    """A file of nine classes without inference settings, as TIAToolbox publishes them."""
    model = tiny.clone(num_classes=9, hidden=(), final_relu=False, epsilon=1e-5)
    variables = randomize(init_variables(model, seed=3), seed=4)
    names = ("ADI", "BACK", "DEB", "LYM", "MUC", "MUS", "NORM", "STR", "TUM")
    info = WeightsInfo.of(model, preprocessing="scale", class_names=names)
    path = tmp_path_factory.mktemp("nine") / "nine.safetensors"
    save_weights(path, variables, info)
    return path, info, model


def test_weights_without_settings_take_size_and_batch_size_from_arguments(nine_classes, evaluated):
    path, info, model = nine_classes
    classifier = densenet_flax.load_classifier(path, image_size=(64, 64), batch_size=4)
    assert densenet_flax.load_classifier(path).image_size == (224, 224)
    prediction = classifier.predict(evaluated[0])
    assert prediction.probability.shape == (len(evaluated[0]), 9)
    assert (
        prediction.decision == np.array(info.class_names)[prediction.probability.argmax(1)]
    ).all()
    assert np.array_equal(prediction.calibrated, prediction.probability)
    images = np.stack([classifier.prepare(path) for path in evaluated[0][:4]])
    x = densenet_flax.preprocess_input(images, "scale")
    logits = np.asarray(model.apply(load_weights(path, model), x), np.float64)
    expected = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    assert np.allclose(prediction.probability[:4], expected, atol=1e-6)


def test_temperature_scaling_of_more_than_two_classes(nine_classes, tmp_path):
    path, _, _ = nine_classes
    variables, info = densenet_flax.weights.read_weights(path)
    point = StoredOperatingPoint(None, temperature=2.0, rule="likeliest", chosen_on="x")
    settings = InferenceSettings(image_size=(32, 32), operating_point=point)
    scaled_info = dataclasses.replace(info, inference=settings)
    save_weights(tmp_path / "scaled.safetensors", variables, scaled_info)
    classifier = densenet_flax.load_classifier(tmp_path / "scaled.safetensors")
    prediction = classifier.predict(np.zeros((1, 40, 40, 3), np.uint8))
    roots = np.sqrt(prediction.probability)  # temperature 2
    assert np.allclose(prediction.calibrated, roots / roots.sum())
    assert prediction.label == prediction.probability.argmax()


def test_a_single_sigmoid_output_gives_two_classes(tiny, tmp_path):
    model = tiny.clone(num_classes=1)
    info = WeightsInfo.of(model, activation="sigmoid", class_names=("tumour",))
    path = tmp_path / "one.safetensors"
    save_weights(path, randomize(init_variables(model, seed=5), seed=6), info)
    classifier = densenet_flax.load_classifier(path, image_size=(32, 32))
    prediction = classifier.predict(np.full((2, 32, 32, 3), 90, np.uint8))
    assert prediction.class_names == ("not tumour", "tumour")
    assert np.allclose(prediction.probability.sum(1), 1) and prediction.probability.shape == (2, 2)
    assert classifier.explain(np.full((2, 64, 64, 3), 90, np.uint8)).maps.shape[0] == 2


def test_a_path_that_cannot_classify_is_rejected_in_one_line(nine_classes, run, tmp_path):
    path, _, model = nine_classes
    backbone = model.clone(num_classes=0)
    save_weights(
        tmp_path / "backbone.safetensors",
        init_variables(backbone, 0),
        WeightsInfo.of(backbone, source="b.h5"),
    )
    (tmp_path / "empty").mkdir()
    for bad_path, words in (
        (tmp_path / "none", "no such file or directory"),
        (tmp_path / "empty", "no checkpoint"),
        (tmp_path / "backbone.safetensors", "without a head"),
        (run / "config.json", "no weights file"),
    ):
        with pytest.raises(InputError, match=words) as error:
            densenet_flax.load_classifier(bad_path)
        assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="at least 32"):
        densenet_flax.load_classifier(path, image_size=(16, 64))
    # A file that states a size of 16 megapixels does not take all memory.
    for size, count in (((512, 512), 32), ((1024, 1024), 8), ((4096, 4096), 1)):
        assert densenet_flax.load_classifier(path, image_size=size).images_per_batch == count
    with pytest.raises(InputError, match="batch_size"):
        densenet_flax.load_classifier(path, batch_size=-1)


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        (
            {"image_size": [1_000_000, 1_000_000]},
            r"extra\.image_size=\(1000000, 1000000\):",
        ),
        ({"image_size": [-224, 224]}, r"extra\.image_size"),
        ({"dtype": "object"}, r"extra\.dtype"),
        ({"patient_pattern": "("}, r"extra\.patient_pattern"),
        ({"operating_point": {"temperature": 0}}, r"operating_point\.threshold: missing"),
        ({"stain": {"method": "henna"}}, r"stain\.method='henna'"),
        ({"stain": {"method": "channel", "mean": [1, 2], "std": [1, 1, 1]}}, r"stain\.mean"),
        ({"stain": {"method": "macenko", "stains": [1, 2, 3]}}, r"stain\.stains"),
        ({"stain": {"method": "clahe", "grid": 0.5}}, r"stain\.grid"),
        ({"stain": {"method": "clahe", "grid": 1e6}}, r"stain\.grid"),
        ({"stain": {"method": "channel", "reference": "/dev/zero"}}, r"extra\.stain="),
    ],
    ids=str,
)
def test_a_hostile_header_is_rejected_in_one_line(extra, words, nine_classes, tmp_path):
    variables, info = densenet_flax.weights.read_weights(nine_classes[0])
    path = tmp_path / "hostile.safetensors"
    save_weights(path, variables, info)
    arrays = safetensors.numpy.load_file(path)
    header = json.dumps({**info.to_dict(), "extra": extra})
    safetensors.numpy.save_file(arrays, path, {"densenet_flax": header})
    with pytest.raises(InputError, match=words) as error:
        densenet_flax.load_classifier(path)
    assert str(error.value).startswith(str(path)) and "\n" not in str(error.value)


def test_an_unknown_public_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="nothing"):
        _ = densenet_flax.nothing


def test_explain_takes_the_decided_class_or_the_given_ones(run, evaluated):
    files = evaluated[0][:3]
    classifier = densenet_flax.load_classifier(run)
    decided = classifier.explain(files, unit="pool2")
    assert (decided.label == classifier.predict(files).label).all()
    assert decided.maps.shape == (3, 4, 4) and decided.method == "Grad-CAM"
    one = classifier.explain(files, "malignant", unit="pool2")
    each = classifier.explain(files, [1, "benign", 1], unit="pool2")
    assert np.allclose(one.maps[[0, 2]], each.maps[[0, 2]])
    # With two classes, evidence for one lowers the score of the other.
    assert np.allclose(one.maps[1], -each.maps[1], atol=1e-5)
    assert len(classifier.explain([], "benign")) == 0
    for target, words in (("lung", "lung"), (2, "from 0 to 1"), ([0, 1], "2 classes for 3")):
        with pytest.raises(InputError, match=words):
            classifier.explain(files, target)
