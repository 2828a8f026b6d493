"""Slides end to end: tables, stopping and resuming, bad slides among good ones, processes."""

import csv
import dataclasses
import json
import logging
import os
import shutil
import signal
import time

import numpy as np
import pyarrow.parquet
import pytest
from PIL import Image

from densenet_flax import InputError, load_classifier
from densenet_flax.common.errors import Stopped, WriteError
from densenet_flax.inference.batch.image_files import ImageFile
from densenet_flax.inference.batch.outputs import OutputOptions
from densenet_flax.inference.batch.predict_files import predict_files
from densenet_flax.inference.ensemble import Combination, write_ensemble
from densenet_flax.inference.slides import predict_slide, predict_slides
from densenet_flax.inference.slides.predict_slide import JOURNAL, OUTPUTS
from densenet_flax.inference.slides.slide_options import SlideOptions, parse_lengths
from densenet_flax.inference.slides.tissue import find_tissue
from densenet_flax.models.densenet import NETWORKS
from densenet_flax.models.init import init_variables
from densenet_flax.storage.locks import locked
from densenet_flax.weights import InferenceSettings, WeightsInfo, save_weights
from densenet_flax.weights.inference_settings import StoredOperatingPoint
from tests.helpers.networks import randomize
from tests.helpers.program import Program
from tests.helpers.slides import draw_tissue, make_slide, save_slide

SETTINGS = InferenceSettings(
    image_size=(32, 32),
    mpp=(1.0, 1.0),
    field_um=(40.0, 60.0),
    operating_point=StoredOperatingPoint(
        threshold=0.4, temperature=1.5, rule="fixed", chosen_on="", notes=()
    ),
)


@pytest.fixture(scope="module")
def weights(tiny, tiny_variables, tmp_path_factory):
    path = tmp_path_factory.mktemp("network") / "network.safetensors"
    # A configuration of other tests may have named this network, in this process alone.
    with pytest.MonkeyPatch.context() as patch:
        patch.delitem(NETWORKS, "tiny", raising=False)
        info = WeightsInfo.of(tiny, class_names=("benign", "malignant"), inference=SETTINGS)
        save_weights(path, tiny_variables, info)
        yield path


@pytest.fixture(scope="module")
def classifier(weights):
    """One compiled network for all tests, in batches of four tiles."""
    return load_classifier(weights, batch_size=4)


@pytest.fixture(autouse=True)
def loaded_once(classifier, monkeypatch, request):
    monkeypatch.setattr(predict_slides, "load_classifier", lambda *_, **__: classifier)


@pytest.fixture
def slide(tmp_path):
    return save_slide(tmp_path / "slides" / "one.png", draw_tissue())


def predict(slides, output, **options):
    options = {"mpp": (1.0, 1.0), **options}
    return predict_slides.predict_slides("network", str(slides), SlideOptions(output, **options))


def rows_of(output):
    with open(output / "slides.csv", newline="") as file:
        return {row["slide"]: row for row in csv.DictReader(file)}


def tiles_of(output, name="one"):
    return pyarrow.parquet.read_table(output / name / "tiles.parquet").to_pydict()


def test_tiles_have_the_probabilities_of_tiles_cut_by_hand(slide, classifier, tmp_path):
    """The same pixels, saved as PNG and predicted with --mode=predict, give the same bits."""
    assert predict(slide, tmp_path / "out", stride=0.5).done == ("one",)
    tiles, pixels, files = tiles_of(tmp_path / "out"), np.asarray(Image.open(slide)), []
    for y, x in zip(tiles["y"], tiles["x"], strict=True):
        tile = np.full((40, 60, 3), 255, np.uint8)
        inside = pixels[round(y) : round(y) + 40, round(x) : round(x) + 60]
        tile[: inside.shape[0], : inside.shape[1]] = inside
        path = save_slide(tmp_path / "cut" / f"{len(files):03d}.png", tile)
        files.append(ImageFile(path, path.name))
    assert any(y + 40 > pixels.shape[0] for y in tiles["y"])  # white beyond the edge
    predict_files(classifier, files, OutputOptions(tmp_path / "cut.parquet"))
    cut = pyarrow.parquet.read_table(tmp_path / "cut.parquet").to_pydict()
    for name in ("probability", "calibrated", "decision"):
        assert tiles[name] == cut[name]


def test_the_tables(slide, classifier, tmp_path):
    output = tmp_path / "out"
    predict(slide, output, stride=0.5, mpp=(1.0, 1.25), verdict="top-3")
    tiles, row = tiles_of(output), rows_of(output)["one"]
    n = len(tiles["y"])
    assert np.allclose(tiles["y"], np.array(tiles["row"]) * 20)
    assert np.allclose(tiles["x"], np.array(tiles["column"]) * 30 / 1.25)
    assert tiles["y_um"] == tiles["y"] and np.allclose(tiles["x_um"], np.multiply(tiles["x"], 1.25))
    assert min(tiles["tissue"]) >= 0.5 and len(set(zip(tiles["y"], tiles["x"], strict=True))) == n
    highest = np.sort(tiles["probability"])[-3:].mean()
    assert row["probability"] == repr(float(highest)) and row["verdict_rule"] == "top-3"
    assert row["decision"] == ("malignant" if highest >= 0.4 else "benign")
    assert int(row["tiles"]) == n == int(row["tiles_benign"]) + int(row["tiles_malignant"])
    assert (row["mpp_x"], row["mpp_source"], row["problem"]) == ("1.25", "flag", "")
    record = json.loads((output / "one" / "slide.json").read_text())
    assert record["tiles"] == n and record["status"] == "done"
    assert sorted(os.listdir(output / "one")) == sorted([".lock", "slide.json", *OUTPUTS])


def test_a_slide_at_half_the_resolution_has_the_same_verdict(tmp_path):
    pixels = draw_tissue().repeat(2, axis=0).repeat(2, axis=1)
    save_slide(tmp_path / "fine" / "one.png", pixels)
    save_slide(tmp_path / "coarse" / "one.png", pixels[::2, ::2])
    predict(tmp_path / "fine", tmp_path / "f", mpp=(0.5, 0.5))
    predict(tmp_path / "coarse", tmp_path / "c")
    fine, coarse = tiles_of(tmp_path / "f"), tiles_of(tmp_path / "c")
    assert fine["y_um"] == coarse["y_um"] and fine["x_um"] == coarse["x_um"]
    assert np.allclose(fine["probability"], coarse["probability"], atol=0.02)
    assert rows_of(tmp_path / "f")["one"]["decision"] == rows_of(tmp_path / "c")["one"]["decision"]


def test_bad_slides_among_good_ones(tmp_path, caplog):
    folder, output = tmp_path / "slides", tmp_path / "out"
    for name in ("=1+1", "b/one", "one"):
        save_slide(folder / f"{name}.png", draw_tissue())
    save_slide(folder / "a tile.png", draw_tissue()[:30, :50])
    save_slide(folder / "glass.png", np.full((300, 300, 3), 250, np.uint8))
    (folder / "cut.png").write_bytes((folder / "one.png").read_bytes()[:2000])
    summary = predict(folder, output)
    assert summary.done == ("=1+1", "b/one", "one") and list(summary.failed) == [
        "a tile",
        "cut",
        "glass",
    ]
    rows = rows_of(output)
    assert list(rows) == ["'=1+1", "a tile", "b/one", "cut", "glass", "one"]  # no formula
    assert [row["status"] for row in rows.values()].count("failed") == 3
    for name, words in (
        ("a tile", "--mode=predict"),
        ("glass", "tissue"),
        ("cut", "damaged or cut short"),
    ):
        assert words in rows[name]["problem"] == summary.failed[name]
        assert summary.failed[name] in caplog.text and rows[name]["decision"] == ""
    with pytest.raises(InputError, match=r"3 of 6 slides failed, such as a tile.*slides\.csv"):
        summary.check()
    # Repaired, it is predicted by the same command; the others are not predicted again.
    before = {name: (output / name / "tiles.parquet").stat().st_mtime_ns for name in summary.done}
    save_slide(folder / "cut.png", draw_tissue())
    assert "cut" in predict(folder, output).done
    after = {name: (output / name / "tiles.parquet").stat().st_mtime_ns for name in summary.done}
    assert after == before


def test_damaged_tiles_are_left_out_and_counted(tmp_path, monkeypatch, caplog):
    (tmp_path / "one.tif").touch()
    tissue = find_tissue(make_slide([draw_tissue()]))
    slide = make_slide([draw_tissue()], damaged=[(110, 130, 150, 170)])
    monkeypatch.setattr(predict_slide, "open_slide", lambda path, mpp: slide)
    monkeypatch.setattr(predict_slide, "find_tissue", lambda _: tissue)
    written = []
    monkeypatch.setattr(predict_slide.SlidePredictor, "_write", lambda *a: written.append(a[2]))
    caplog.set_level(logging.INFO, "absl")
    predict(tmp_path / "one.tif", tmp_path / "out")
    (result,) = written
    row = rows_of(tmp_path / "out")["one"]
    assert int(row["damaged_tiles"]) == len(result.damaged) == len(result.problems) > 1
    assert len(result.grid) == len(result.prediction) == int(row["tiles"])
    damaged = set(zip(result.damaged.rows, result.damaged.columns, strict=True))
    assert not damaged & set(zip(result.grid.rows, result.grid.columns, strict=True))
    assert result.verdict.probability[0] == pytest.approx(
        result.prediction.probability.mean(axis=0)
    )
    assert f"{len(damaged)} damaged ones are left out" in caplog.text
    everything = make_slide([draw_tissue()], damaged=[(0, 0, 999, 999)])
    monkeypatch.setattr(predict_slide, "open_slide", lambda path, mpp: everything)
    failed = predict(tmp_path / "one.tif", tmp_path / "all").failed
    assert "none of its" in failed["one"] and "is damaged at" in failed["one"]


def stop_at(monkeypatch, classifier, number):
    """Counts batches, and stops before one of them as the operating system does."""
    forward, calls = classifier.begin_forward, []

    def stopping(batch, **options):
        calls.append(len(batch))
        if len(calls) == number:
            os.kill(os.getpid(), signal.SIGTERM)
        return forward(batch, **options)

    monkeypatch.setattr(classifier, "begin_forward", stopping)
    return calls


def test_a_job_stopped_at_any_batch_resumes_to_the_same_files(
    slide, classifier, tmp_path, monkeypatch, caplog
):
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    save_slide(slide.parent / "two.png", draw_tissue(seed=1))
    predict(slide.parent, straight)
    n = len(tiles_of(straight)["y"])
    batches = 2 * -(-n // 4)
    total = 0
    for number in (1, 3, 2, batches // 2):
        with monkeypatch.context() as patch:
            calls = stop_at(patch, classifier, number)
            with pytest.raises(Stopped, match="same command"):
                predict(slide.parent, stopped)
        total += len(calls) - 1
        for journal in stopped.rglob(JOURNAL):  # what a kill leaves in the middle of a line
            with open(journal, "ab") as file:
                file.write(b'["1,2", [0.1')
    calls = stop_at(monkeypatch, classifier, 1000)
    assert predict(slide.parent, stopped).done == ("one", "two")
    assert total + len(calls) == batches  # each tile once
    for name in ("one", "two"):
        for file in ("tiles.parquet", "tiles.geojson"):
            same = [(folder / name / file).read_bytes() for folder in (straight, stopped)]
            assert same[0] == same[1]
    assert (straight / "slides.csv").read_text() == (stopped / "slides.csv").read_text()
    assert not list(stopped.rglob(JOURNAL))
    calls.clear()
    assert predict(slide.parent, stopped).done == ("one", "two") and not calls


def test_a_slide_that_changed_while_the_job_was_stopped_begins_again(
    slide, classifier, tmp_path, monkeypatch, caplog
):
    with monkeypatch.context() as patch:
        stop_at(patch, classifier, 4)
        with pytest.raises(Stopped):
            predict(slide, tmp_path / "out")
    save_slide(slide, draw_tissue(seed=3))
    predict(slide, tmp_path / "out")
    assert "one: the slide, the network or the options are not those" in caplog.text
    predict(slide, tmp_path / "new")
    assert tiles_of(tmp_path / "out") == tiles_of(tmp_path / "new")
    # A slide that changed after it was done would replace its results.
    save_slide(slide, draw_tissue(seed=4))
    with pytest.raises(InputError, match=r"an earlier state of the slide.*--overwrite"):
        predict(slide, tmp_path / "out")
    predict(slide, tmp_path / "out", overwrite=True)
    assert tiles_of(tmp_path / "out") != tiles_of(tmp_path / "new")


def test_a_slide_that_changes_while_it_is_read_has_no_result(
    slide, classifier, tmp_path, monkeypatch
):
    forward = classifier.begin_forward

    def touching(batch, **options):
        os.utime(slide, ns=(1, 1))
        return forward(batch, **options)

    monkeypatch.setattr(classifier, "begin_forward", touching)
    assert "changed while it was read" in predict(slide, tmp_path / "out").failed["one"]
    assert not (tmp_path / "out" / "one" / "tiles.parquet").exists()


def test_a_full_disk_ends_the_job_and_keeps_what_is_done(slide, classifier, tmp_path, monkeypatch):
    save_slide(slide.parent / "two.png", draw_tissue(seed=1))

    def fail(*_):
        raise WriteError("tiles.parquet: cannot write here (No space left on device)")

    with monkeypatch.context() as patch:
        patch.setattr(predict_slide, "write_tiles", fail)
        with pytest.raises(WriteError, match="No space left"):
            predict(slide.parent, tmp_path / "out")
    assert not (tmp_path / "out" / "slides.csv").exists()  # no slide is called bad
    calls = stop_at(monkeypatch, classifier, 1000)
    predict(slide.parent, tmp_path / "out")
    assert len(calls) == -(-len(tiles_of(tmp_path / "out", "two")["y"]) // 4)  # the second alone


def test_slides_of_another_process_are_left_to_it(slide, tmp_path):
    output = tmp_path / "out"
    save_slide(slide.parent / "two.png", draw_tissue(seed=1))
    with locked(output / "one", "another process"):
        summary = predict(slide.parent, output)
    assert (summary.done, summary.elsewhere, summary.failed) == (("two",), ("one",), {})
    summary.check()
    # It was killed: the next one to come predicts it.
    assert predict(slide.parent, output).done == ("one", "two")


def test_results_of_another_job_are_not_replaced(slide, tmp_path):
    output = tmp_path / "out"
    predict(slide, output)
    for changed in ({"stride": 0.5}, {"verdict": "top-2"}, {"mpp": (0.9, 0.9)}):
        with pytest.raises(InputError, match=r"another network, other options.*--overwrite"):
            predict(slide, output, **changed)
    (tmp_path / "foreign" / "one").mkdir(parents=True)
    (tmp_path / "foreign" / "one" / "tiles.parquet").write_text("mine")
    with pytest.raises(InputError, match="--overwrite"):
        predict(slide, tmp_path / "foreign")
    # What was written is not taken for a slide.
    assert predict(tmp_path, tmp_path / "out2").done == ("slides/one",)


def test_independent_classes(tiny, slide, tmp_path, monkeypatch):
    info = WeightsInfo.of(tiny, activation="sigmoid", class_names=("a", "b"), inference=SETTINGS)
    path = tmp_path / "two.safetensors"
    save_weights(path, init_variables(tiny, 0), info)
    network = load_classifier(path, batch_size=4)
    monkeypatch.setattr(predict_slides, "load_classifier", lambda *_, **__: network)
    assert predict(slide, tmp_path / "out").done == ("one",)
    tiles, row = tiles_of(tmp_path / "out"), rows_of(tmp_path / "out")["one"]
    assert {"probability_a", "probability_b", "calibrated_a"} <= tiles.keys() & row.keys()
    for name in "ab":
        assert float(row[f"probability_{name}"]) == pytest.approx(
            np.mean(tiles[f"probability_{name}"])
        )


def test_an_ensemble(tiny, tiny_variables, weights, slide, tmp_path, monkeypatch):
    """Its field is that of the members that know theirs; probabilities are their mean."""
    folder, means = tmp_path / "ensemble", []
    folder.mkdir()
    shutil.copy(weights, folder / "a.safetensors")
    unknown = dataclasses.replace(SETTINGS, field_um=None, mpp=None)
    info = WeightsInfo.of(tiny, class_names=("benign", "malignant"), inference=unknown)
    save_weights(folder / "b.safetensors", randomize(init_variables(tiny, seed=3), seed=3), info)
    files = {"b.safetensors": "b", "a.safetensors": "a"}
    write_ensemble(folder, files, Combination("probabilities", (0.5, 0.5)), None)
    ensemble = load_classifier(folder, batch_size=4)
    for network in (ensemble, *ensemble.members):
        monkeypatch.setattr(predict_slides, "load_classifier", lambda *_, n=network, **__: n)
        output = tmp_path / f"out{len(means)}"
        assert predict(slide, output, field=(40.0, 60.0) if means else None).done == ("one",)
        means.append(tiles_of(output)["probability"])
    assert np.allclose(means[0], (np.array(means[1]) + means[2]) / 2)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"stride": 0.0}, "--stride=0"),
        ({"stride": 2.0}, "--stride=2"),
        ({"min_tissue": 1.5}, "--min_tissue=1.5"),
        ({"verdict": "max"}, "--verdict=max"),
        ({"field": (1e9, 3.0)}, "--field"),
        ({"tissue": "missing.png"}, "missing.png: no such file"),
    ],
)
def test_options_that_cannot_be_used_are_one_line(slide, tmp_path, options, words):
    if "tissue" in options:
        options = {"tissue": tmp_path / options["tissue"]}
    with pytest.raises(InputError, match=words):
        predict(slide, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_lengths_of_flags():
    assert parse_lengths("--mpp", ["0.25"]) == (0.25, 0.25)
    assert parse_lengths("--field", ["230", "350"]) == (230, 350)
    assert parse_lengths("--mpp", None) is None
    for texts in (["a"], ["1", "2", "3"], ["0"], ["-1"], ["nan"], ["inf"]):
        with pytest.raises(InputError, match=r"--mpp=.*micrometers"):
            parse_lengths("--mpp", texts)


def test_the_program_is_killed_and_resumes(weights, tmp_path):
    save_slide(tmp_path / "slides" / "one.png", draw_tissue(500, 700))
    (tmp_path / "slides" / "bad.svs").write_bytes(b"no slide")
    words = ["main.py", "--mode=slide", f"--model={weights}", "--mpp=1", "--batch_size=4"]
    words += [f"--slides={tmp_path / 'slides'}", f"--output={tmp_path / 'out'}", "--stride=0.3"]
    journal = tmp_path / "out" / "one" / JOURNAL
    program = Program(*words)
    while not (journal.exists() and journal.stat().st_size > 1000):
        assert program._process.is_alive()
        time.sleep(0.002)
    os.kill(program._process.pid, signal.SIGKILL)
    assert program.wait().returncode == -9
    done = Program(*words).wait()
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "one: resuming after" in done.stderr
    assert "error: 1 of 2 slides failed, such as bad" in done.stderr.splitlines()[-1]
    tiles = tiles_of(tmp_path / "out")
    assert len(set(zip(tiles["y"], tiles["x"], strict=True))) == len(tiles["y"])
    assert len(tiles["y"]) == int(rows_of(tmp_path / "out")["one"]["tiles"])
