"""`python main.py` as a user runs it, on the smallest network."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from densenet_flax.models.densenet import NETWORKS
from densenet_flax.storage.checkpoint import Checkpoints
from densenet_flax.weights import WeightsInfo, load_with_info, save_weights

ROOT = Path(__file__).parents[1]
CONFIG = "tests/configs/tiny.py"


def command(workdir, cache, *arguments, config=CONFIG):
    return [
        sys.executable,
        "main.py",
        f"--config={config}",
        f"--workdir={workdir}",
        f"--config.cache_dir={cache}",
        *arguments,
    ]


def run(workdir, cache, *arguments, config=CONFIG):
    words = command(workdir, cache, *arguments, config=config)
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def trained(tmp_path_factory, cache):
    workdir = tmp_path_factory.mktemp("run") / "deep" / "w"
    done = run(workdir, cache)
    assert done.returncode == 0, done.stderr
    return workdir, done


def assert_one_clear_line(done, *words):
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    line = done.stderr.strip().splitlines()[-1]
    assert line.startswith("error: ")
    for word in words:
        assert word in line


def test_a_run_leaves_what_it_promises(trained):
    workdir, done = trained
    assert "stage 1/2 head: frozen" in done.stderr and "stage 2/2 finetune" in done.stderr
    assert "starting from random weights" in done.stderr
    for name in ("config.json", "split.json", "metrics.jsonl", "timing.jsonl"):
        assert (workdir / name).stat().st_size
    for name in ("report.html", "metrics.json", "predictions.csv", "curves.png", "roc.png"):
        assert (workdir / "report" / name).stat().st_size
    split = json.loads((workdir / "split.json").read_text())["files"]
    test_files = sorted(name for name, side in split.items() if side == "test")
    rows = (workdir / "report" / "predictions.csv").read_text().splitlines()[1:]
    assert sorted(row.split(",")[0] for row in rows) == test_files  # each once
    case = lambda name: re.search(r"-\d\d-(\d+)", name)[1]  # noqa: E731
    sides = {side: {case(n) for n, s in split.items() if s == side} for side in set(split.values())}
    assert len(sides) == 3 and len(set().union(*sides.values())) == sum(map(len, sides.values()))


def test_starting_again_trains_nothing_and_evaluates_the_same(trained, cache):
    workdir, _ = trained
    before = (workdir / "metrics.jsonl").read_bytes()
    predictions = (workdir / "report" / "predictions.csv").read_bytes()
    shutil.rmtree(workdir / "report")
    again = run(workdir, cache)
    assert again.returncode == 0 and "resuming from step 18" in again.stderr
    assert "stage 1/2" not in again.stderr
    assert (workdir / "metrics.jsonl").read_bytes() == before
    assert (workdir / "report" / "predictions.csv").read_bytes() == predictions


def test_evaluation_alone_and_at_another_batch_size(trained, cache, tmp_path):
    workdir, _ = trained
    wanted = (workdir / "report" / "metrics.json").read_text()
    copy = tmp_path / "copy"
    shutil.copytree(workdir, copy, ignore=shutil.ignore_patterns("report"))
    other = ("--mode=evaluate", "--config.threshold=youden")  # may change, unlike what is trained
    done = run(copy, cache, *other)
    assert done.returncode == 0, done.stderr
    chosen = json.loads((copy / "operating_point.json").read_text())
    assert chosen["rule"] == "youden"
    assert run(copy, cache, "--mode=evaluate").returncode == 0
    got, wanted = json.loads((copy / "report" / "metrics.json").read_text()), json.loads(wanted)
    assert got["image"] == wanted["image"] and got["patient"] == wanted["patient"]


def test_export_by_one_command(trained, tmp_path):
    workdir, _ = trained
    command = [sys.executable, "main.py", "--mode=export", f"--workdir={workdir}"]
    command += [f"--output={tmp_path / 'out'}", "--formats=stablehlo,onnx"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("largest difference from this package") == 2
    assert (tmp_path / "out" / "README.md").is_file()
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert_one_clear_line(again, "out", "--overwrite")


def test_eight_classes_from_drawing_to_report(cache, tmp_path):
    eight = (
        "--config.data.labels=subtype",
        "--config.data.drawn.benign_patients=12",
        "--config.data.drawn.malignant_patients=12",
    )
    refused = run(tmp_path / "w", cache, *eight, "--config.threshold=youden")
    assert_one_clear_line(refused, "youden", "there are 8 classes")
    done = run(tmp_path / "w", cache, *eight)
    assert done.returncode == 0, done.stderr
    assert re.search(r"Accuracy 0\.\d\d over 8 classes", done.stderr)
    found = json.loads((tmp_path / "w" / "report" / "metrics.json").read_text())
    assert len(found["class_names"]) == len(found["by_class"]) == 8
    assert found["calibration"]["test"]["after"]["nll"] > 0
    point = json.loads((tmp_path / "w" / "operating_point.json").read_text())
    assert point["threshold"] is None and point["temperature"] > 0
    head = (tmp_path / "w" / "report" / "predictions.csv").read_text().splitlines()[0]
    assert "probability_papillary_carcinoma" in head and "calibrated_adenosis" in head
    rows = (tmp_path / "w" / "report" / "predictions.csv").read_bytes()
    again = run(tmp_path / "w", cache, *eight, "--mode=evaluate")
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "w" / "report" / "predictions.csv").read_bytes() == rows


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--config.batchsize=3"], ['Did you mean "batch_size"']),
        (["--config.stages.hed.duration=x"], ['Did you mean "head"']),
        (["--config.batch_size=many"], ["--config.batch_size", "many"]),
        (["--config.model.name=resnet50"], ["config.model.name", "densenet201"]),
        (["--config.model.weights=/nowhere.h5"], ["/nowhere.h5"]),
        (["--config.stages.finetune.unfreeze_from=conv7"], ["stages.finetune", "conv7"]),
        (["--config.stages.head.duration=3"], ["stages.head", "'10 epochs'"]),
        (["--config.stages.head.optimizer=lion"], ["stages.head", "adamw"]),
        (["--config.stage_order=('hed',)"], ["stage_order", "hed"]),
        (["--config.stage_order=('head', 'head')"], ["stage_order", "each name once"]),
        (["--config.threshold=best"], ["best", "youden"]),
        (["--config.class_weights=1,2,3"], ["class_weights", "balanced"]),
        (["--config.batch_size=1000"], ["batch_size=1000", "training images"]),
        (["--config.data.name=breakhis"], ["data.path"]),
        (["--config.data.name=breakhis", "--config.data.path=/none"], ["/none"]),
        (["--config.split.group=person"], ["person", "case70"]),
        (["--config.cache=tape"], ["config.cache", "auto"]),
        (["--config.seed=-1"], ["seed=-1"]),
        (["--mode=guess"], ["--mode", "train|evaluate"]),
        (["--mode=predict"], ["--images", "is missing"]),
        (["--mode=predict", "--images=x", "--model=y"], ["--workdir", "--model", "one of the two"]),
        (["--mode=predict", "--images=/none/*.png"], ["/none/*.png", "no image found"]),
        (["--mode=predict", "--images=/none", "--output=x.xls"], ["x.xls", ".parquet"]),
        (["--mode=export", "--model=y"], ["--mode=export", "one of the two"]),
        (["--mode=export", "--formats=onnx,tflite"], ["tflite", "stablehlo, onnx, keras"]),
        (["--mode=export"], ["w:", "no such file or directory"]),
        (
            ["--mode=cross_validate", "--config.split.policy=image"],
            ["split.policy='image'", "kfold"],
        ),
        (["--config.explain=conv7"], ["config.explain", "conv7"]),
        (["--nonsense"], ["nonsense"]),
        (["extra"], ["extra", "--name=value"]),
    ],
)
def test_bad_input_gets_one_line(tmp_path, cache, arguments, words):
    assert_one_clear_line(run(tmp_path / "w", cache, *arguments), *words)


def test_missing_flags_and_files(tmp_path, cache):
    for words in (["main.py"], ["main.py", f"--config={CONFIG}"]):
        done = subprocess.run(
            [sys.executable, *words], cwd=ROOT, capture_output=True, text=True, timeout=60
        )
        assert_one_clear_line(done, "is missing")
    assert_one_clear_line(run(tmp_path, cache, config="configs/none.py"), "configs/none.py")
    wrong_argument = run(tmp_path, cache, config="configs/breakhis.py:fold=x")
    assert_one_clear_line(wrong_argument, "fold")


def test_a_mistake_at_the_first_start_can_be_mended(tmp_path, cache):
    assert run(tmp_path, cache, "--config.model.weights=/nowhere.h5").returncode == 1
    assert run(tmp_path, cache, "--config.split.seed=3").returncode == 0
    assert json.loads((tmp_path / "split.json").read_text())["policy"]["seed"] == 3
    assert json.loads((tmp_path / "config.json").read_text())["model"]["weights"] == "random"


def test_work_directories_that_will_not_do(trained, tmp_path, cache):
    workdir, _ = trained
    other = run(workdir, cache, "--config.seed=7")
    assert_one_clear_line(other, str(workdir), "seed was 0, is 7")
    assert (workdir / "report" / "report.html").exists()
    file = tmp_path / "file"
    file.write_text("mine")
    assert_one_clear_line(run(file / "below", cache), str(file))
    assert file.read_text() == "mine"
    assert_one_clear_line(run(tmp_path / "none", cache, "--mode=evaluate"), "no trained network")
    assert not (tmp_path / "none").exists()


def test_the_second_of_two_runs_says_so_and_stops(tmp_path, cache):
    slow = "--config.stages.finetune.duration=2000 epochs"
    first = subprocess.Popen(
        command(tmp_path, cache, slow), cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    try:
        for line in first.stderr:
            if "finetune 1/" in line:
                break
        assert_one_clear_line(run(tmp_path, cache, slow), "another run is using")
        first.send_signal(signal.SIGTERM)
        _, rest = first.communicate(timeout=60)
        assert first.returncode == 128 + signal.SIGTERM
        assert "SIGTERM: stopped at step" in rest and "Traceback" not in rest
        assert Checkpoints(tmp_path / "checkpoints").steps
    finally:
        first.kill()


def test_a_weights_file_brings_its_meaning_along(
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
    assert np.array_equal(*stems)  # what is frozen is the file's, to the bit
    # And from the work directory it goes on into a file of its own.
    exported = tmp_path / "trained.safetensors"
    words = [sys.executable, "-m", "densenet_flax.weights", "convert", tmp_path / "w", exported]
    assert subprocess.run(words, cwd=ROOT, capture_output=True).returncode == 0
    variables, info = load_with_info(exported, tiny.clone(final_relu=False, epsilon=1e-5))
    assert info.preprocessing == "scale" and info.class_names == network.class_names
    assert variables["params"]["head"]["dense_1"]["kernel"].shape[1] == 8


def state_of(workdir):
    """All that a run leaves, but for what the clock says."""
    checkpoints = Checkpoints(workdir / "checkpoints")
    kept = {step: checkpoints.restore(step) for step in checkpoints.steps}
    return kept, (workdir / "metrics.jsonl").read_bytes(), (workdir / "split.json").read_bytes()


def test_killed_at_any_moment_a_run_ends_with_the_same_bits(tmp_path, cache):
    """SIGKILL twenty times: between steps, in a save, in the validation, before the first step."""
    options = [
        "--config.stages.head.duration=14 epochs",
        "--config.stages.finetune.duration=14 epochs",
        "--config.stages.finetune.restore_best=True",
        "--config.ema_decay=0.9",
    ]
    straight = run(tmp_path / "straight", cache, *options)
    assert straight.returncode == 0, straight.stderr
    rng = random.Random(0)
    kills = 0
    while kills < 20:
        process = subprocess.Popen(
            command(tmp_path / "killed", cache, *options),
            cwd=ROOT,
            stderr=subprocess.PIPE,
            text=True,
        )
        for line in process.stderr:  # until it works, or is done
            if line.startswith("stage") or "report:" in line:
                break
        time.sleep(rng.uniform(0, 0.8))
        process.kill()
        process.communicate()
        kills += 1
    last = run(tmp_path / "killed", cache, *options)
    assert last.returncode == 0, last.stderr
    wanted, got = state_of(tmp_path / "straight"), state_of(tmp_path / "killed")
    assert list(wanted[0]) == list(got[0]) and wanted[1:] == got[1:]
    import jax

    for step, checkpoint in wanted[0].items():
        mine = got[0][step]
        assert mine.meta == checkpoint.meta
        for a, b in (
            (mine.variables, checkpoint.variables),
            (mine.train, checkpoint.train),
        ):
            assert jax.tree.structure(a) == jax.tree.structure(b)
            assert all(
                np.array_equal(x, y)
                for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
            )
    predictions = [
        tmp_path / name / "report" / "predictions.csv" for name in ("straight", "killed")
    ]
    assert predictions[0].read_bytes() == predictions[1].read_bytes()


def test_the_program_needs_no_tensorflow_and_no_torch():
    slow = {"tensorflow", "torch", "keras", "sklearn", "matplotlib"}
    code = f"import sys, densenet_flax.experiments.run; sys.exit(bool({slow} & set(sys.modules)))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    assert subprocess.run([sys.executable, "-c", code], env=environment).returncode == 0
