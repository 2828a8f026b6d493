"""Fine-tuning from Python: the run of `main.py` on the same images, whatever holds them."""

import csv
import functools
import json
import shutil

import jax
import numpy as np
import pandas as pd
import pytest
from PIL import Image

import densenet_flax
from densenet_flax.common.errors import InputError
from densenet_flax.evaluation.predictions_csv import read_csv
from densenet_flax.experiments.command_line import apply_overrides, as_overrides, load_config
from densenet_flax.experiments.run import train_and_evaluate
from densenet_flax.models.densenet import NETWORKS, DenseNet
from densenet_flax.storage.trained_model import read_model
from densenet_flax.storage.workdir import Workdir
from tests.helpers.datasets import make_dataset

_CLASSES = ("benign", "malignant")
_SUBSETS = {"train": slice(0, 30), "validation": slice(30, 40), "test": slice(40, 50)}


@pytest.fixture(scope="module")
def images():
    """Images with labels and patients by subset; no patient is in two."""
    data = make_dataset(patients=10, images=5)
    patients = data.patients("id82").tolist()
    return {
        name: (data.images[rows], data.labels[rows], patients[rows])
        for name, rows in _SUBSETS.items()
    }


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    NETWORKS["smallest"] = functools.partial(DenseNet, blocks=(1, 1, 1, 1))
    yield {
        "model": {"name": "smallest", "weights": "random", "hidden": (8,)},
        "data.image_size": "32,32",
        "batch_size": 10,
        "cache_dir": str(tmp_path_factory.mktemp("cache")),
        "stages.head.duration": "1 epochs",
        "stages.finetune": {"duration": "2 epochs", "unfreeze_from": "conv5_block1_1_conv"},
        "augment": {"views": 2, "symmetries": True},
        "evaluate": "best",
        "monitor": "auc",
        "threshold": "youden",
        "explain": "",
    }
    del NETWORKS["smallest"]


@pytest.fixture(scope="module")
def run(images, options, tmp_path_factory):
    """A run from arrays that was evaluated; do not change its work directory."""
    run = densenet_flax.fine_tune(
        *images["train"][:2],
        patients=images["train"][2],
        validation_data=images["validation"],
        class_names=_CLASSES,
        overrides=options,
        workdir=tmp_path_factory.mktemp("arrays") / "run",
    )
    assert not (run.workdir / "report").exists()
    run.evaluate(*images["test"][:2], patients=images["test"][2])
    return run


def test_the_bits_are_those_of_the_command_line(run, images, options, tmp_path):
    rows = []
    for subset, (pixels, labels, patients) in images.items():
        for i, (image, label, patient) in enumerate(zip(pixels, labels, patients, strict=True)):
            # The table decides; names only give the order, training images first.
            file = f"{list(_SUBSETS).index(subset)}-{i:02d}.png"
            Image.fromarray(image).save(tmp_path / file)
            rows.append((file, _CLASSES[label], patient, subset))
    with open(tmp_path / "tiles.csv", "w", newline="") as file:
        csv.writer(file).writerows([("file", "label", "patient", "split"), *rows])
    keys = {
        "data.name": "folder",
        "data.path": str(tmp_path),
        "data.csv": str(tmp_path / "tiles.csv"),
        "data.class_names": _CLASSES,
        "split.group": "patient",
        "split.policy": "given",
    }
    config = apply_overrides(load_config("keras_recipe"), as_overrides({**options, **keys}))
    train_and_evaluate(config, str(tmp_path / "run"))

    for name in ("metrics.jsonl", "operating_point.json"):
        assert (tmp_path / "run" / name).read_bytes() == (run.workdir / name).read_bytes()
    (ours, _), (theirs, _) = read_model(run.workdir), read_model(tmp_path / "run")
    assert jax.tree.all(jax.tree.map(np.array_equal, ours, theirs))
    ours, theirs = (
        read_csv(path / "report/predictions.csv") for path in (run.workdir, tmp_path / "run")
    )
    assert np.array_equal(ours.probability, theirs.probability)
    assert ours.patient.tolist() == theirs.patient.tolist()


def test_what_a_run_offers(run, images, tmp_path):
    assert run.history["stage"] == ["head", "finetune", "finetune"]
    assert len(run.history["train_loss"]) == len(run.history["validation_accuracy"]) == 3
    aucs = run.history["validation_auc"]
    point = json.loads((run.workdir / "operating_point.json").read_text())
    assert point["step"] == 3 * (1 + int(np.argmax(aucs))) and all(0 <= auc <= 1 for auc in aucs)
    table = read_csv(run.workdir / "report" / "predictions.csv")
    assert table.file.tolist() == [f"test/{i:06d}" for i in range(10)]
    test_images = images["test"][0]
    prediction = run.classifier.predict(test_images)
    assert np.allclose(prediction.probability[:, 1], table.probability, atol=1e-6)
    page = run.report(tmp_path / "report")
    assert page.read_bytes() == (run.workdir / "report" / "report.html").read_bytes()
    run.save(tmp_path / "model.safetensors")
    loaded = densenet_flax.load_classifier(tmp_path / "model.safetensors")
    assert np.allclose(loaded.predict(test_images).probability, prediction.probability, atol=1e-6)
    assert loaded.operating_point == run.classifier.operating_point
    assert "3 epochs" in repr(densenet_flax.Run(run.workdir))
    with pytest.raises(InputError, match="no trained network"):
        densenet_flax.Run(tmp_path)


def test_the_same_call_resumes_and_another_one_is_refused(run, images, options, tmp_path, capfd):
    copy = tmp_path / "copy"
    shutil.copytree(run.workdir, copy)
    pixels, labels, patients = images["train"]

    def again(pixels=pixels, labels=labels, patients=patients, **changes):
        return densenet_flax.fine_tune(
            pixels,
            labels,
            patients=patients,
            validation_data=images["validation"],
            class_names=_CLASSES,
            overrides={**options, **changes},
            workdir=copy,
        )

    assert again().history == run.history
    assert Workdir(copy).require_config()["data"]["path"] == str(copy / "data")  # it was moved
    printed = capfd.readouterr().err
    assert "resuming from step" in printed and "never seen in training" in printed
    for changes, words in (
        ({"labels": 1 - labels}, "other train images, labels or patients"),
        ({"pixels": pixels[::-1]}, "other train images"),
        ({"patients": [*patients[:-1], "9000"]}, "other train images"),
        ({"batch_size": 5}, "batch_size was 10, is 5"),
    ):
        with pytest.raises(InputError, match=words):
            again(**changes)


def test_test_images_that_are_no_test(run, images, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(run.workdir, copy)
    opened = densenet_flax.Run(copy)
    pixels, labels, patients = images["test"]
    for arguments, words in (
        (
            (pixels, labels, [*patients[:-1], images["train"][2][0]]),
            "in both train and test.*leave",
        ),
        (
            (np.concatenate([pixels[:-1], images["train"][0][-1:]]), labels, patients),
            "exact copies",
        ),
        ((pixels[labels == 0], labels[labels == 0], None), "none of class 'malignant'"),
        ((pixels / 255, labels, patients), "values are from 0 to 1"),
        ((pixels, labels + 1, patients), "label 2"),
    ):
        with pytest.raises(InputError, match=words):
            opened.evaluate(*arguments[:2], patients=arguments[2])
    with pytest.raises(InputError, match=f"Run.*{copy.name}.*evaluate"):
        opened.evaluate()


def test_files_and_tables_without_validation_and_patients(images, options, tmp_path, capfd):
    files = []
    for i, image in enumerate(images["train"][0]):
        files.append(tmp_path / f"{i}.png")
        Image.fromarray(image).resize((40, 36)).save(files[-1])
    table = pd.DataFrame({"file": files, "label": [_CLASSES[n] for n in images["train"][1]]})
    untrained = {**options, "stage_order": ("head",), "stages.head.duration": "0 steps"}
    run = densenet_flax.fine_tune(table, **untrained)
    printed = capfd.readouterr().err
    assert "nothing is claimed about patients" in printed
    assert "validation drawn by patient from the training images" in printed
    assert run.classifier.class_names == _CLASSES
    folder = run.workdir
    with pytest.raises(InputError, match="no report yet"):
        run.report(tmp_path / "report")
    pixels, labels, _ = images["test"]
    metrics = run.evaluate([Image.fromarray(image) for image in pixels], labels)
    assert any("nothing is claimed about patients" in line for line in metrics["warnings"])
    assert metrics["run"]["split"]["patient_disjoint"] is False
    del run
    assert not folder.exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"batchsize": 3}, "^config.batchsize: config has no key 'batchsize'; did you mean"),
        ({"overrides": {"stages.hed.duration": "1 epochs"}}, "did you mean config.stages.head"),
        ({"model": {"name": "resnet50"}}, "config.model.name='resnet50'"),
        ({"config": "quickstrat"}, "did you mean 'quickstart'"),
        ({"validation_data": 0.2}, "validation_data: expected"),
        ({"validation_data": (np.zeros((1, 9, 9, 3), np.uint8), [])}, "^validation_data: "),
        ({"data.path": "x"}, "data.name, data.path: have no effect"),
        ({"images": "tiels", "labels": None}, "tiels: no such folder or data set"),
        ({"images": None}, "are for images"),
        ({"images": "drawn", "labels": None, "validation_data": 0.2}, "are for images"),
        ({"images": ["a.png", "b.png"], "validation_data": (["b.png"], [1])}, "b.png: is in two"),
    ],
)
def test_bad_calls_are_one_line(arguments, words):
    pixels = np.arange(2 * 9 * 9 * 3, dtype=np.uint8).reshape(2, 9, 9, 3)
    with pytest.raises(InputError, match=words):
        densenet_flax.fine_tune(**{"images": pixels, "labels": [0, 1], **arguments})
