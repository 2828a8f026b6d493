"""`python main.py` as a user runs it, on the smallest network."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest

import densenet_flax
from densenet_flax.models.densenet import NETWORKS
from densenet_flax.storage.checkpoint import Checkpoints
from densenet_flax.weights import WeightsInfo, load_with_info, save_weights
from tests.helpers.program import CONFIG, ROOT, Program, make_cache, run, start


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return make_cache(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory, cache):
    workdir = tmp_path_factory.mktemp("run") / "deep" / "w"
    process = start(workdir, cache)
    _, log = process.communicate(timeout=300)
    assert process.returncode == 0, log
    return workdir, log


def assert_fails_in_one_line(done, *words):
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    line = done.stderr.strip().splitlines()[-1]
    assert line.startswith("error: ")
    for word in words:
        assert word in line


def test_the_version_is_that_of_the_package():
    done = Program("main.py", "--version").wait()
    assert (done.returncode, done.stdout) == (0, f"densenet_flax {densenet_flax.__version__}\n")


def test_a_run_writes_its_files_and_tests_each_image_once(trained):
    workdir, log = trained
    assert "stage 1/2 head: frozen" in log and "stage 2/2 finetune" in log
    assert "starting from random weights" in log
    for name in ("config.json", "split.json", "metrics.jsonl", "timing.jsonl"):
        assert (workdir / name).stat().st_size
    for name in ("report.html", "metrics.json", "predictions.csv", "curves.png", "roc.png"):
        assert (workdir / "report" / name).stat().st_size
    split = json.loads((workdir / "split.json").read_text())["files"]
    test_files = sorted(name for name, subset in split.items() if subset == "test")
    rows = (workdir / "report" / "predictions.csv").read_text().splitlines()[1:]
    assert sorted(row.split(",")[0] for row in rows) == test_files  # each once
    patients = {}
    for name, subset in split.items():
        patients.setdefault(subset, set()).add(re.search(r"-\d\d-(\d+)", name)[1])
    assert set(patients) == {"train", "validation", "test"}
    assert len(set.union(*patients.values())) == sum(map(len, patients.values()))  # no one twice


def test_a_finished_run_started_again_only_evaluates(trained, cache):
    workdir, _ = trained
    before = (workdir / "metrics.jsonl").read_bytes()
    predictions = (workdir / "report" / "predictions.csv").read_bytes()
    shutil.rmtree(workdir / "report")
    again = run(workdir, cache)
    assert again.returncode == 0 and "resuming from step 18" in again.stderr
    assert "stage 1/2" not in again.stderr
    assert (workdir / "metrics.jsonl").read_bytes() == before
    assert (workdir / "report" / "predictions.csv").read_bytes() == predictions


def test_mode_evaluate_with_another_threshold_and_back(trained, cache, tmp_path):
    workdir, _ = trained
    expected = json.loads((workdir / "report" / "metrics.json").read_text())
    copy = tmp_path / "copy"
    shutil.copytree(workdir, copy, ignore=shutil.ignore_patterns("report"))
    done = run(copy, cache, "--mode=evaluate", "--config.threshold=youden")
    assert done.returncode == 0, done.stderr
    assert json.loads((copy / "operating_point.json").read_text())["rule"] == "youden"
    assert run(copy, cache, "--mode=evaluate").returncode == 0
    metrics = json.loads((copy / "report" / "metrics.json").read_text())
    assert metrics["image"] == expected["image"] and metrics["patient"] == expected["patient"]


def test_mode_export(trained, tmp_path):
    workdir, _ = trained
    words = ["main.py", "--mode=export", f"--workdir={workdir}"]
    words += [f"--output={tmp_path / 'out'}", "--formats=stablehlo,onnx"]
    done = Program(*words).wait()
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("largest difference from this package") == 2
    assert (tmp_path / "out" / "README.md").is_file()
    assert_fails_in_one_line(Program(*words).wait(), "out", "--overwrite")


def test_eight_classes_from_images_to_report(cache, tmp_path):
    options = (
        "--config.data.labels=subtype",
        "--config.data.drawn.benign_patients=12",
        "--config.data.drawn.malignant_patients=12",
    )
    refused = run(tmp_path / "w", cache, *options, "--config.threshold=youden")
    assert_fails_in_one_line(refused, "youden", "there are 8 classes")
    done = run(tmp_path / "w", cache, *options)
    assert done.returncode == 0, done.stderr
    assert re.search(r"accuracy 0\.\d\d over 8 classes", done.stderr)
    metrics = json.loads((tmp_path / "w" / "report" / "metrics.json").read_text())
    assert len(metrics["class_names"]) == len(metrics["by_class"]) == 8
    assert metrics["calibration"]["test"]["after"]["nll"] > 0
    point = json.loads((tmp_path / "w" / "operating_point.json").read_text())
    assert point["threshold"] is None and point["temperature"] > 0
    head = (tmp_path / "w" / "report" / "predictions.csv").read_text().splitlines()[0]
    assert "probability_papillary_carcinoma" in head and "calibrated_adenosis" in head
    rows = (tmp_path / "w" / "report" / "predictions.csv").read_bytes()
    again = run(tmp_path / "w", cache, *options, "--mode=evaluate")
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "w" / "report" / "predictions.csv").read_bytes() == rows


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--config.batchsize=3"], ["did you mean config.batch_size?"]),
        (["--config.stages.hed.duration=x"], ["did you mean config.stages.head.duration?"]),
        (["--config.batch_size=many"], ["config.batch_size", "many"]),
        (["--config.model.name=resnet50"], ["config.model.name", "densenet201"]),
        (["--config.model.weights=/nowhere.h5"], ["/nowhere.h5"]),
        (["--config.class_weights=1,2,3"], ["class_weights", "balanced"]),
        (["--config.batch_size=1000"], ["batch_size=1000", "training images"]),
        (["--config.data.name=breakhis"], ["data.path"]),
        (["--config.data.name=breakhis", "--config.data.path=/none"], ["/none"]),
        (["--config.split.group=person"], ["person", "case70"]),
        (["--mode=guess"], ["--mode", "train|evaluate"]),
        (["--mode=predict"], ["--images", "is missing"]),
        (["--mode=predict", "--images=x", "--model=y"], ["--workdir", "--model", "one of the two"]),
        (["--mode=predict", "--images=/none/*.png"], ["/none/*.png", "no image found"]),
        (["--mode=predict", f"--images={'x' * 300}"], ["xxx: File name too long"]),
        (["--mode=predict", "--images=/none", "--output=x.xls"], ["x.xls", ".parquet"]),
        (["--mode=export", "--model=y"], ["--mode=export", "one of the two"]),
        (["--mode=export", "--formats=onnx,tflite"], ["tflite", "stablehlo, onnx, keras"]),
        (["--mode=export"], ["w:", "no such file or directory"]),
        (
            ["--mode=cross_validate", "--config.split.policy=image"],
            ["split.policy='image'", "kfold"],
        ),
        (["--images=x"], ["--images: has no effect with --mode=train, only with predict"]),
        (["--processes=2", "--coordinator=auto"], ["--processes: has no effect without"]),
        (["--coordinator_timeout=5"], ["--coordinator_timeout: has no effect without"]),
        (["--nonsense"], ["nonsense"]),
        (["extra"], ["extra", "--name=value"]),
    ],
)
def test_bad_input_fails_in_one_line(tmp_path, cache, arguments, words):
    """Values that need no data to be refused are in tests/experiments/test_from_config.py."""
    assert_fails_in_one_line(run(tmp_path / "w", cache, *arguments), *words)


def test_missing_flags_and_files(tmp_path, cache):
    for words in (["main.py"], ["main.py", f"--config={CONFIG}"]):
        assert_fails_in_one_line(Program(*words).wait(), "is missing")
    assert_fails_in_one_line(run(tmp_path, cache, config="configs/none.py"), "configs/none.py")
    wrong_argument = run(tmp_path, cache, config="configs/breakhis.py:fold=x")
    assert_fails_in_one_line(wrong_argument, "fold")


def test_a_run_that_failed_to_start_can_start_with_another_configuration(tmp_path, cache):
    assert run(tmp_path, cache, "--config.model.weights=/nowhere.h5").returncode == 1
    assert run(tmp_path, cache, "--config.split.seed=3").returncode == 0
    assert json.loads((tmp_path / "split.json").read_text())["policy"]["seed"] == 3
    assert json.loads((tmp_path / "config.json").read_text())["model"]["weights"] == "random"


def test_work_directories_of_other_runs_and_of_none(trained, tmp_path, cache):
    workdir, _ = trained
    other = run(workdir, cache, "--config.seed=7")
    assert_fails_in_one_line(other, str(workdir), "seed was 0, is 7")
    assert (workdir / "report" / "report.html").exists()
    file = tmp_path / "file"
    file.write_text("unchanged")
    assert_fails_in_one_line(run(file / "below", cache), str(file))
    assert file.read_text() == "unchanged"
    assert_fails_in_one_line(run(tmp_path / "none", cache, "--mode=evaluate"), "no trained network")
    assert not (tmp_path / "none").exists()


def test_a_work_directory_in_use_is_refused_and_sigterm_saves_the_run(tmp_path, cache):
    slow = "--config.stages.finetune.duration=2000 epochs"
    first = start(tmp_path, cache, slow)
    try:
        for line in first.stderr:
            if "finetune 1/" in line:
                break
        assert_fails_in_one_line(run(tmp_path, cache, slow), "another run is using")
        first.send_signal(signal.SIGTERM)
        _, rest = first.communicate(timeout=60)
        assert first.returncode == 128 + signal.SIGTERM
        assert "SIGTERM: stopped at step" in rest and "Traceback" not in rest
        assert Checkpoints(tmp_path / "checkpoints").steps
    finally:
        first.kill()


def test_pretrained_weights_keep_their_preprocessing_and_last_relu(
    tmp_path, cache, tiny, tiny_variables, monkeypatch
):
    """A network of the TIAToolbox kind: pixels over 255, no ReLU after the last norm."""
    backbone = {
        name: {key: value for key, value in tree.items() if key != "head"}
        for name, tree in tiny_variables.items()
    }
    bare = tiny.clone(num_classes=0, hidden=(), final_relu=False, epsilon=1e-5)
    about = {"preprocessing": "scale", "license": "CC0", "source": "far.pth"}
    file = tmp_path / "pretrained.safetensors"
    with monkeypatch.context() as patch:
        patch.setitem(NETWORKS, "tiny", tiny.clone)  # as the configuration does
        save_weights(file, backbone, WeightsInfo.of(bare, **about))
        done = run(tmp_path / "w", cache, f"--config.model.weights={file}")
        assert done.returncode == 0, done.stderr
        checkpoints = Checkpoints(tmp_path / "w" / "checkpoints")
        trained = checkpoints.restore(checkpoints.steps[-1])
        network = WeightsInfo.from_dict(trained.meta["network"])
    assert {name: getattr(network, name) for name in about} == about
    assert (network.final_relu, network.epsilon, network.hidden) == (False, 1e-5, (8,))
    assert network.class_names == ("benign", "malignant")
    stems = (tree["params"]["conv1"]["conv"]["kernel"] for tree in (trained.variables, backbone))
    assert np.array_equal(*stems)  # frozen weights are the file's, to the bit
    exported = tmp_path / "trained.safetensors"
    words = ["-m", "densenet_flax.weights", "convert", tmp_path / "w", exported]
    assert Program(*words).wait().returncode == 0
    variables, info = load_with_info(exported, tiny.clone(final_relu=False, epsilon=1e-5))
    assert info.preprocessing == "scale" and info.class_names == network.class_names
    assert variables["params"]["head"]["dense_1"]["kernel"].shape[1] == 8


def test_slow_libraries_are_not_imported_before_they_are_needed():
    slow = {"tensorflow", "torch", "keras", "sklearn", "matplotlib"}
    code = f"import sys, densenet_flax.experiments.run; sys.exit(bool({slow} & set(sys.modules)))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    assert subprocess.run([sys.executable, "-c", code], env=environment).returncode == 0
