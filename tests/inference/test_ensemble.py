"""Ensembles: one classifier of several, kept in a folder, exported, and made from runs."""

import json
import shutil
from unittest.mock import Mock

import jax
import numpy as np
import pytest
from scipy import special

import densenet_flax
from densenet_flax import InputError
from densenet_flax.experiments import ensemble_runs
from densenet_flax.experiments.ensemble_runs import make_ensemble
from densenet_flax.experiments.run import evaluate
from densenet_flax.export import export_classifier
from densenet_flax.inference.ensemble import Combination, stacking_weights, write_ensemble
from densenet_flax.models.init import init_variables
from densenet_flax.weights import InferenceSettings, WeightsInfo, save_weights
from densenet_flax.weights.inference_settings import StoredOperatingPoint
from densenet_flax.weights.layout import Layout
from tests.helpers.networks import TINY_BLOCKS, randomize

POINT = StoredOperatingPoint(threshold=0.45, temperature=1.7, rule="youden", chosen_on="x")


def save_member(
    path, seed, *, classes=("benign", "malignant"), size=(32, 32), field=None, **values
):
    inference = InferenceSettings(image_size=size, field_um=field, mpp=field and (0.5, 0.5))
    info = WeightsInfo(
        network=Layout(tuple(TINY_BLOCKS)).network,
        blocks=TINY_BLOCKS,
        num_classes=len(classes),
        class_names=classes,
        inference=inference,
        **values,
    )
    variables = randomize(init_variables(info.build_model(), seed=seed), seed=seed)
    variables["params"]["head"]["predictions"]["kernel"] *= 3  # so that probabilities differ
    save_weights(path, variables, info)


@pytest.fixture(scope="module")
def members(tmp_path_factory):
    """Three networks, of which one has another preprocessing and epsilon."""
    folder = tmp_path_factory.mktemp("members")
    for seed in range(3):
        other = {"preprocessing": "scale", "epsilon": 1e-5} if seed == 2 else {}
        save_member(folder / f"{seed}.safetensors", seed, **other)
    return folder


def make(members, folder, combination, point=POINT):
    shutil.copytree(members, folder)
    files = {f"{i}.safetensors": f"run {i}" for i in range(len(combination.weights))}
    write_ensemble(folder, files, combination, point)
    return folder


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), np.uint8)


@pytest.mark.parametrize(
    "combination",
    [Combination("probabilities", (0.5, 0.25, 0.25)), Combination("logits", (1 / 3, 0, 2 / 3))],
)
def test_one_classifier_of_several_and_its_export(combination, members, images, tmp_path):
    folder = make(members, tmp_path / "ensemble", combination)
    ensemble = densenet_flax.load_classifier(folder)
    own = [densenet_flax.load_classifier(members / f"{i}.safetensors") for i in range(3)]
    each = np.stack([member.predict(images).probability for member in own])
    weights = np.array(combination.weights)[:, None, None]
    if combination.combine == "probabilities":
        expected = (weights * each).sum(axis=0)
    else:
        expected = special.softmax((weights * np.log(each)).sum(axis=0), axis=1)
    actual = ensemble.predict(images)
    np.testing.assert_allclose(actual.probability, expected, atol=1e-12)
    assert np.ptp(actual.probability[:, 1]) > 1e-3
    np.testing.assert_array_equal(actual.label, expected[:, 1] >= 0.45)
    scores = special.logit(expected[:, 1]) / 1.7
    np.testing.assert_allclose(actual.calibrated[:, 1], special.expit(scores), atol=1e-9)
    features = np.concatenate([member.embed(images) for member in own], axis=1)
    np.testing.assert_array_equal(ensemble.embed(images), features)
    earlier = [member.embed(images, unit="pool3") for member in own]
    np.testing.assert_array_equal(
        ensemble.embed(images, unit="pool3"), np.concatenate(earlier, axis=1)
    )
    maps = [member.explain(images, 1).maps for member in own]
    np.testing.assert_allclose(ensemble.explain(images, 1).maps, np.mean(maps, axis=0), atol=1e-6)
    maps = [member.explain(images, 1, method="occlusion").maps for member in own]
    hidden = ensemble.explain(images, 1, method="occlusion")
    assert (hidden.method, hidden.unit, hidden.maps.shape) == ("occlusion", "", (5, 2, 2))
    np.testing.assert_allclose(hidden.maps, np.mean(maps, axis=0), atol=1e-6)
    with pytest.raises(InputError, match="method='lime': expected one of cam, occlusion"):
        ensemble.explain(images, method="lime")

    result = export_classifier(str(folder), tmp_path / "out", formats=("stablehlo", "onnx"))
    assert max(d for d in result.differences.values() if d is not None) <= 1e-5
    program = jax.export.deserialize(
        bytearray((tmp_path / "out" / "classifier.stablehlo").read_bytes())
    )
    np.testing.assert_allclose(program.call(images)["probability"], expected, atol=1e-5)
    described = json.loads((tmp_path / "out" / "classifier.json").read_text())["ensemble"]
    assert described["combine"] == combination.combine and len(described["networks"]) == 3
    assert "an ensemble of 3 networks" in (tmp_path / "out" / "README.md").read_text()
    with pytest.raises(InputError, match="one network, and this is an ensemble"):
        export_classifier(str(folder), tmp_path / "keras", formats=("keras",))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classes": ("malignant", "benign")}, "differ in their classes"),
        ({"size": (32, 48)}, "differ in their image size"),
        ({"field": (50.0, 60.0)}, r"tiles that show fields of different sizes.*\(50.0, 60.0\) µm"),
        ({"activation": "sigmoid", "classes": ("a", "b")}, "differ in their classes"),
    ],
)
def test_members_answer_the_same_question(change, message, members, tmp_path):
    folder = tmp_path / "ensemble"
    shutil.copytree(members, folder)
    save_member(folder / "0.safetensors", 0, field=(40.0, 60.0))
    save_member(folder / "1.safetensors", 1, **change)
    files = {"0.safetensors": "a", "1.safetensors": "b"}
    write_ensemble(folder, files, Combination("probabilities", (0.5, 0.5)), POINT)
    with pytest.raises(InputError, match=message):
        densenet_flax.load_classifier(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"combine": "vote"}, "combine='vote': expected one of probabilities, logits"),
        ({"members": []}, "expected two or more"),
        ({"members": [{"file": "../x.safetensors", "weight": 0.5}] * 2}, "file='../x.safetensors'"),
        ({"members": [{"file": "0.safetensors", "weight": "1"}] * 2}, "weight='1'"),
        ({"members": [{"file": "0.safetensors", "weight": 0.5}] * 2}, "different files"),
        ({"operating_point": []}, "expected a JSON object"),
    ],
)
def test_a_changed_description_is_one_line(change, message, members, tmp_path):
    folder = make(members, tmp_path / "ensemble", Combination("logits", (0.5, 0.5)))
    path = folder / "ensemble.json"
    content = json.loads(path.read_text())
    del content["crc32"]
    path.write_text(json.dumps(content | change))
    with pytest.raises(InputError, match=message):
        densenet_flax.load_classifier(folder)


def test_another_file_in_the_place_of_a_member_is_refused(members, tmp_path):
    folder = make(members, tmp_path / "ensemble", Combination("logits", (0.5, 0.5)))
    shutil.copy(members / "2.safetensors", folder / "1.safetensors")
    with pytest.raises(InputError, match="is not the file that"):
        densenet_flax.load_classifier(folder)
    (folder / "1.safetensors").unlink()
    with pytest.raises(InputError, match=r"1\.safetensors: missing"):
        densenet_flax.load_classifier(folder)


def test_stacking_prefers_the_network_that_knows_more():
    rng = np.random.default_rng(0)
    patient = np.repeat(np.arange(60), 3).astype(str)
    label = np.repeat(np.arange(60) % 2, 3)
    scores = rng.normal(size=(3, 180)) + np.outer([2, 0, 1], 2 * label - 1)
    p = special.expit(scores)
    each = list(np.stack([1 - p, p], axis=-1))
    names = ("benign", "malignant")
    weights = stacking_weights(each, label, patient, names)
    assert sum(weights) == pytest.approx(1) and min(weights) >= 0
    assert weights[0] > weights[2] > weights[1] and weights[1] < 0.05
    with pytest.raises(InputError, match="9 benign validation patients"):
        few = np.isin(patient, np.arange(18).astype(str))
        stacking_weights([part[few] for part in each], label[few], patient[few], names)


def test_an_ensemble_of_runs_is_judged_on_their_test_images(tiny_run, tmp_path):
    first, twin, folder = tmp_path / "first", tmp_path / "twin", tmp_path / "ensemble"
    shutil.copytree(tiny_run.workdir, first)
    # Not as it was evaluated after training.
    config = {**tiny_run.config.to_dict(), "tta": True, "threshold": "f1", "calibration": "platt"}
    own = evaluate({**config, "explain": ""}, str(first))
    shutil.copytree(first, twin)
    runs = [str(first), str(twin)]
    metrics = make_ensemble(runs, folder)
    # Of twice the same network it is that network.
    for level in ("image", "patient"):
        assert metrics[level] == own[level]
    ensemble = densenet_flax.load_classifier(folder)
    assert ensemble.operating_point.threshold == own["operating_point"]["threshold"]
    assert ensemble.operating_point.rule == "f1" and ensemble.tta
    tiles = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    single = densenet_flax.load_classifier(first).predict(tiles)
    np.testing.assert_allclose(ensemble.predict(tiles).probability, single.probability, atol=1e-6)
    for arguments, message in (
        ((runs, folder), "holds an ensemble"),
        ((runs[:1], tmp_path / "x"), "two or more different runs"),
        ((runs, first), "holds other files"),
        (([runs[0], str(tmp_path)], tmp_path / "x"), "no trained network in it"),
    ):
        with pytest.raises(InputError, match=message):
            make_ensemble(*arguments)
    with pytest.raises(InputError, match="validation patients, and weights need"):
        make_ensemble(runs, tmp_path / "x", combine="stacking")
    assert not (tmp_path / "x" / "ensemble.json").exists()


def test_an_ensemble_is_whole_until_another_one_is(tiny_run, tmp_path, monkeypatch):
    folder = tmp_path / "ensemble"
    runs = [str(tiny_run.workdir), *(str(tmp_path / name) for name in ("twin", "triplet"))]
    for run in runs[1:]:
        shutil.copytree(tiny_run.workdir, run)
    make_ensemble(runs, folder)
    with monkeypatch.context() as interrupted, pytest.raises(KeyboardInterrupt):
        interrupted.setattr(ensemble_runs, "write_ensemble", Mock(side_effect=KeyboardInterrupt))
        make_ensemble(runs[1:], folder, overwrite=True)
    assert len(densenet_flax.load_classifier(folder).members) == 3
    make_ensemble(runs[1:], folder, combine="logits", overwrite=True)
    assert len(densenet_flax.load_classifier(folder).members) == 2
    assert len(list(folder.glob("*.safetensors"))) == 2
    # A first one that was interrupted may be made again.
    (folder / "ensemble.json").unlink()
    shutil.rmtree(folder / "report")
    make_ensemble(runs[:2], folder)
