"""Predictions of image files: the tables, skipped files, stopping and resuming."""

import csv
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest

from densenet_flax import InputError, load_classifier
from densenet_flax.common.errors import Stopped
from densenet_flax.evaluation.predictions_csv import read_csv
from densenet_flax.inference.batch.image_files import find_images
from densenet_flax.inference.batch.journal import Journal
from densenet_flax.inference.batch.outputs import OutputOptions
from densenet_flax.inference.batch.predict_files import predict, predict_files
from densenet_flax.weights import InferenceSettings, convert

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def folder(tiny_run, tmp_path_factory):
    """Tiles in folders, two of each name; unreadable ones, and files that are no images."""
    root = tmp_path_factory.mktemp("tiles")
    for number, path in enumerate(tiny_run[2]):
        for subfolder in ("a", "b/deep"):
            (root / subfolder).mkdir(parents=True, exist_ok=True)
            shutil.copy(path, root / subfolder / path.name)
        if number == 3:
            (root / "a" / "SOB_B_A-14-1-100-0.png").write_bytes(path.read_bytes()[:200])
    (root / "b" / "empty.jpg").touch()
    (root / "a" / "notes.txt").write_text("no image")
    (root / "a" / ".hidden.png").write_bytes(b"x")
    return root


@pytest.fixture(scope="module")
def classifier(tiny_run):
    return load_classifier(tiny_run[0], batch_size=4)


def rows_of(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_the_table_has_the_predictions_of_the_evaluation(folder, tiny_run, tmp_path, caplog):
    output = tmp_path / "new" / "out.csv"
    caplog.set_level(logging.INFO, "absl")
    summary = predict(str(tiny_run[0]), str(folder), OutputOptions(output))
    rows, table = rows_of(output), tiny_run[3]
    assert list(rows[0]) == ["file", "patient", "probability", "calibrated", "decision"]
    assert len(rows) == 2 * len(table) == sum(summary.decisions.values())
    assert [row["file"] for row in rows] == sorted(row["file"] for row in rows)
    index = {name: i for i, name in enumerate(table.file)}
    for row in rows:
        i = index[Path(row["file"]).name]
        assert Path(row["file"]).is_file()
        assert abs(float(row["probability"]) - table.probability[i]) < 1e-6
        assert abs(float(row["calibrated"]) - table.calibrated[i]) < 1e-6
        assert row["decision"] == table.class_names[table.prediction[i]]
        assert row["patient"] == table.patient[i]
    assert [word in caplog.text for word in ("SOB_B_A-14-1-100-0.png: is damaged", "2 of")] == [
        True
    ] * 2
    assert "empty.jpg: is empty" in caplog.text and len(summary.skipped) == 2
    assert os.listdir(output.parent) == ["out.csv"]
    caplog.clear()
    again = predict_files(
        load_classifier(tiny_run[0]),
        find_images(str(folder)),
        OutputOptions(tmp_path / "again.csv"),
    )
    assert again == summary and (tmp_path / "again.csv").read_bytes() == output.read_bytes()


def test_a_job_stopped_at_any_batch_resumes_to_the_same_files(
    folder, classifier, tmp_path, monkeypatch
):
    files = find_images(str(folder))
    uninterrupted = OutputOptions(
        tmp_path / "straight.csv", tmp_path / "s", tmp_path / "straight.npy"
    )
    predict_files(classifier, files, uninterrupted)
    options = OutputOptions(tmp_path / "stopped.csv", tmp_path / "o", tmp_path / "stopped.npy")
    forward, calls = classifier.begin_forward, []

    def stop_at(number):
        def stopping(batch, **options):
            calls.append(len(batch))
            if len(calls) == number:
                raise KeyboardInterrupt
            return forward(batch, **options)

        return stopping

    total = 0
    for number in (1, 2, 2):
        calls.clear()
        monkeypatch.setattr(classifier, "begin_forward", stop_at(number))
        with pytest.raises(Stopped, match="same command"):
            predict_files(classifier, files, options)
        total += number - 1
        assert not options.output.exists()
        # What a kill leaves in the middle of writing.
        with open(tmp_path / "stopped.npy.partial", "ab") as file:
            file.write(b"abcde")
        with open(tmp_path / "stopped.csv.partial", "ab") as file:
            file.write(b'["cut')
    calls.clear()
    monkeypatch.setattr(classifier, "begin_forward", stop_at(1000))
    predict_files(classifier, files, options)
    assert (total, len(calls)) == (2, 2)  # sixteen readable images in batches of four: none twice
    for one, other in (
        (uninterrupted.output, options.output),
        (uninterrupted.embeddings, options.embeddings),
    ):
        assert one.read_bytes() == other.read_bytes()
    made = sorted(p.relative_to(options.overlays) for p in options.overlays.rglob("*.png"))
    assert len(made) == 16
    assert made == sorted(
        p.relative_to(uninterrupted.overlays) for p in uninterrupted.overlays.rglob("*.png")
    )
    assert not list(tmp_path.glob("*.partial"))


def test_another_job_does_not_resume_it(folder, classifier, tmp_path, monkeypatch):
    files = find_images(str(folder))
    options = OutputOptions(tmp_path / "out.csv")
    forward = classifier.begin_forward

    def interrupt(batch, unit):
        raise KeyboardInterrupt

    monkeypatch.setattr(classifier, "begin_forward", interrupt)
    with pytest.raises(Stopped):
        predict_files(classifier, files, options)
    calls = []

    def counted(batch, unit):
        calls.append(len(batch))
        return forward(batch, unit=unit)

    monkeypatch.setattr(classifier, "begin_forward", counted)
    predict_files(classifier, files[:5], options)
    assert len(rows_of(options.output)) == sum(calls) == 4  # the fifth is damaged


def test_a_second_process_is_refused(folder, classifier, tmp_path):
    held = Journal(tmp_path / "out.csv.partial", "x", [])
    with pytest.raises(InputError, match=r"out\.csv\.partial: another process"):
        predict_files(classifier, find_images(str(folder)), OutputOptions(tmp_path / "out.csv"))
    held.close()


def test_parquet_and_embeddings_have_the_rows_of_the_csv(folder, classifier, tmp_path):
    files = find_images(str(folder))
    predict_files(
        classifier,
        files,
        OutputOptions(tmp_path / "out.parquet", embeddings=tmp_path / "features.parquet"),
    )
    predict_files(
        classifier, files, OutputOptions(tmp_path / "out.csv", embeddings=tmp_path / "features.npy")
    )
    table = pyarrow.parquet.read_table(tmp_path / "out.parquet").to_pydict()
    rows = rows_of(tmp_path / "out.csv")
    assert list(table) == list(rows[0])
    for name, column in table.items():
        texts = [repr(x) if isinstance(x, float) else x for x in column]
        assert texts == [row[name] for row in rows]
    features = np.load(tmp_path / "features.npy")
    files = [row["file"] for row in rows]
    assert np.allclose(features, classifier.embed(files), atol=1e-5)
    options = OutputOptions(
        tmp_path / "pool.csv", embeddings=tmp_path / "pool.npy", unit="conv3_block1"
    )
    predict_files(classifier, find_images(str(folder)), options)
    earlier = np.load(options.embeddings)
    assert earlier.shape[1] < features.shape[1]
    assert np.allclose(earlier, classifier.embed(files, unit="conv3_block1"), atol=1e-5)
    for row, other in zip(rows, rows_of(options.output), strict=True):
        assert float(row["probability"]) == pytest.approx(float(other["probability"]), abs=1e-6)
    embeddings = pyarrow.parquet.read_table(tmp_path / "features.parquet").to_pydict()
    assert embeddings["file"] == files and np.array_equal(
        np.array(embeddings["features"], "f4"), features
    )


def test_several_chunks_make_one_table(folder, classifier, tmp_path, monkeypatch):
    files = find_images(str(folder))
    for name in ("one.csv", "one.parquet"):
        predict_files(
            classifier,
            files,
            OutputOptions(tmp_path / name, embeddings=tmp_path / f"f{name[3:]}.npy"),
        )
    monkeypatch.setattr("densenet_flax.inference.batch.predict_files.ROWS_PER_CHUNK", 3)
    for name in ("many.csv", "many.parquet"):
        embeddings = tmp_path / f"m{name[4:]}.parquet"
        predict_files(classifier, files, OutputOptions(tmp_path / name, embeddings=embeddings))
    assert (tmp_path / "one.csv").read_bytes() == (tmp_path / "many.csv").read_bytes()
    one, other = (pyarrow.parquet.read_table(tmp_path / f"{n}.parquet") for n in ("one", "many"))
    assert one.equals(other)


def test_more_than_two_classes(tiny, folder, tmp_path):
    from densenet_flax.models.init import init_variables
    from densenet_flax.weights import WeightsInfo, save_weights

    model = tiny.clone(num_classes=3)
    settings = InferenceSettings(image_size=(32, 32))
    info = WeightsInfo.of(model, class_names=("a", "b", "c"), inference=settings)
    save_weights(tmp_path / "three.safetensors", init_variables(model, 0), info)
    options = OutputOptions(tmp_path / "out.csv")
    predict(str(tmp_path / "three.safetensors"), str(folder / "a"), options)
    rows = rows_of(options.output)
    names = [f"{what}_{name}" for what in ("probability", "calibrated") for name in "abc"]
    assert list(rows[0]) == ["file", "patient", *names, "decision"]
    for row in rows:
        values = [float(row[f"probability_{name}"]) for name in "abc"]
        assert abs(sum(values) - 1) < 1e-9 and row["decision"] == "abc"[int(np.argmax(values))]


def test_independent_classes(tiny, folder, tmp_path, caplog):
    """Every sigmoid has its own threshold and column; two of them are no pair of classes."""
    from densenet_flax.models.init import init_variables
    from densenet_flax.weights import WeightsInfo, save_weights

    caplog.set_level("INFO", logger="absl")
    model = tiny.clone(num_classes=2)
    settings = InferenceSettings(image_size=(32, 32))
    fields = {"activation": "sigmoid", "class_names": ("a", "b"), "inference": settings}
    variables = init_variables(model, 0)
    last = variables["params"]["head"]["predictions"]
    for bias, decision in (((9.0, 9.0), "a|b"), ((-9.0, 9.0), "b"), ((-9.0, -9.0), "")):
        constant = {"kernel": 0 * last["kernel"], "bias": np.array(bias, np.float32)}
        head = {**variables["params"]["head"], "predictions": constant}
        params = {**variables["params"], "head": head}
        path = tmp_path / f"{len(decision)}.safetensors"
        save_weights(path, {**variables, "params": params}, WeightsInfo.of(model, **fields))
        options = OutputOptions(path.with_suffix(".csv"), overlays=tmp_path / path.stem)
        summary = predict(str(path), str(folder / "a"), options)
        rows = rows_of(options.output)
        names = [f"{what}_{name}" for what in ("probability", "calibrated") for name in "ab"]
        assert list(rows[0]) == ["file", "patient", *names, "decision"]
        for row in rows:
            assert row["decision"] == decision
            values = [float(row[f"probability_{name}"]) for name in "ab"]
            assert np.allclose(values, 1 / (1 + np.exp(-np.array(bias))))
        expected = {name: len(rows) * (name in decision) for name in "ab"}
        assert (summary.decisions, summary.images) == (expected, len(rows))
        assert f"{len(rows)} images" in caplog.text


def test_what_cannot_be_done_is_rejected_in_one_line(
    folder, classifier, tiny_run, tmp_path, monkeypatch
):
    existing = tmp_path / "existing.csv"
    existing.write_text("another table")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    bad = tmp_path / "bad"
    bad.mkdir()
    (bad / "x.png").write_bytes(b"no")
    run, images, out = str(tiny_run[0]), str(folder), tmp_path / "o.csv"
    for network, paths, options, words in (
        (run, str(tmp_path / "none" / "*.png"), OutputOptions(out), "no image found"),
        (run, str(tmp_path / "full"), OutputOptions(out), "no image found"),
        (str(tmp_path / "none"), images, OutputOptions(out), "no such file or directory"),
        (run, images, OutputOptions(existing), "already exists.*--overwrite"),
        (
            run,
            images,
            OutputOptions(out, embeddings=existing.with_suffix(".csv")),
            r"\.npy or \.parquet",
        ),
        (
            run,
            images,
            OutputOptions(out, overlays=tmp_path / "full"),
            "--overlays=.*already exists",
        ),
        (run, images, OutputOptions(out, overlays=tmp_path / "p", unit="conv9"), "conv9.*norm"),
        (
            run,
            images,
            OutputOptions(tmp_path / "o.xlsx"),
            r"o\.xlsx: expected a name that ends in \.csv",
        ),
        (
            run,
            str(bad),
            OutputOptions(out),
            "none of the 1 images can be read.*x.png: is not an image",
        ),
        (run, images, OutputOptions(existing / "o.csv"), "cannot write here"),
    ):
        with pytest.raises(InputError, match=words) as error:
            predict(network, paths, options)
        assert "\n" not in str(error.value)
    assert existing.read_text() == "another table" and not out.exists()
    assert not list(tmp_path.glob("*.partial*"))
    predict_files(classifier, find_images(images), OutputOptions(existing, overwrite=True))
    assert len(rows_of(existing)) == 16
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InputError, match=r"pip install 'densenet_flax\[parquet\]'"):
        predict(run, images, OutputOptions(tmp_path / "o.parquet"))


def test_the_program_is_killed_and_resumes(folder, tiny_run, tmp_path):
    """As a user runs it: one exported file, SIGKILL and SIGTERM while it works."""
    tiles = tmp_path / "tiles"
    for i in range(40):
        shutil.copytree(folder / "a", tiles / f"{i:02d}")
    convert(tiny_run[0], tmp_path / "model.safetensors")

    def command(output):
        return [
            sys.executable,
            "main.py",
            "--mode=predict",
            "--config=tests/configs/tiny.py",  # makes the tiny network known to the program
            f"--model={tmp_path / 'model.safetensors'}",
            f"--images={tiles}/**/*.png",
            f"--output={output}",
            "--batch_size=2",
        ]

    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")}
    options = {"cwd": ROOT, "env": environment, "stderr": subprocess.PIPE, "text": True}
    partial = tmp_path / "killed.csv.partial"
    for number, lines in ((signal.SIGKILL, 20), (signal.SIGTERM, 60)):
        process = subprocess.Popen(command(tmp_path / "killed.csv"), **options)
        while process.poll() is None and (
            not partial.exists() or partial.read_bytes().count(b"\n") < lines
        ):
            time.sleep(0.01)
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == (-9 if number == signal.SIGKILL else 128 + number), errors
        assert "Traceback" not in errors
    resumed = subprocess.run(command(tmp_path / "killed.csv"), timeout=120, **options)
    assert resumed.returncode == 0 and "resuming after" in resumed.stderr, resumed.stderr
    assert "40 of 360 files cannot be read and were skipped" in resumed.stderr
    rows = rows_of(tmp_path / "killed.csv")
    assert len(rows) == 320 == len({row["file"] for row in rows})
    assert len({row["probability"] for row in rows}) <= 2 * 8  # the same tiles, 40 times
    refused = subprocess.run(command(tmp_path / "killed.csv"), timeout=60, **options)
    assert refused.returncode == 1 and "--overwrite" in refused.stderr
    table = read_csv(tiny_run[0] / "report" / "predictions.csv")
    by_name = dict(zip(table.file, table.probability, strict=True))
    for row in rows:
        assert abs(float(row["probability"]) - by_name[Path(row["file"]).name]) < 3e-6
    assert json.loads((tiny_run[0] / "operating_point.json").read_text())["tta"] is False
