"""The gallery of the report."""

import json
import re

import numpy as np

from densenet_flax.experiments.gallery import choose, sureness


def test_how_sure_a_network_is():
    two = np.array([[0.9, 0.1], [0.4, 0.6], [0.2, 0.8], [0.0, 1.0], [1.0, 0.0]])
    assert np.allclose(sureness(two, 0.6), [5 / 6, 0, 0.5, 1, 1])
    assert np.isfinite(sureness(two, 0.0)).all() and np.isfinite(sureness(two, 1.0)).all()
    three = np.array([[0.5, 0.3, 0.2], [0.4, 0.4, 0.2], [0.0, 1.0, 0.0]])
    assert np.allclose(sureness(three), [0.2, 0, 1])


def test_which_images_are_shown():
    sure = np.array([0.9, 0.8, 0.7, 0.6, 0.5, 0.1, 0.2])
    right = np.array([True, True, True, True, False, True, False])
    found = choose(sure, right, ["a", "a", "b", "c", "a", "d", "b"])
    assert found["Surest right"] == [0, 2, 3]  # 1 is another of the same patient
    assert found["Surest wrong"] == [4, 6]
    assert found["Least sure"] == [5, 6, 4]
    assert "Surest wrong" not in choose(sure, np.ones(7, bool), list("abcdefg"))
    assert choose(sure, np.ones(7, bool), ["a"] * 7)["Surest right"] == [0, 1, 2]


def test_maps_of_one_place_are_not_shown_but_told_of(tiny_run):
    workdir = tiny_run[0]
    note = json.loads((workdir / "report" / "metrics.json").read_text())["run"]["gallery_note"]
    assert "32 × 32" in note and "config.explain" in note
    assert note.partition("×")[0] in (workdir / "report" / "report.html").read_text()


def test_the_gallery_of_a_run(tiny_run, tmp_path):
    import shutil

    from densenet_flax.experiments import run as experiment

    workdir, config, _, table = tiny_run
    copy = tmp_path / "copy"
    shutil.copytree(workdir, copy)
    other = config.copy_and_resolve_references()
    with other.unlocked():
        other.explain = "pool2"
    experiment.evaluate(other, str(copy))
    run = json.loads((copy / "report" / "metrics.json").read_text())["run"]
    page = (copy / "report" / "report.html").read_text()
    right = {name: table.prediction[i] == table.label[i] for i, name in enumerate(table.file)}
    groups = {"Surest right", "Least sure", *([] if all(right.values()) else ["Surest wrong"])}
    assert all(f"<h3>{name}</h3>" in page for name in groups)
    assert 3 <= len(run["gallery"]) <= 9
    for caption in run["gallery"]:
        true, called, shown, name = re.fullmatch(
            r"(\w+), called (\w+) \(P\(\w+\) = ([\d.]+)\); patient \w+, (\S+)", caption
        ).groups()
        i = table.file.tolist().index(name)
        assert (true, called) == (
            table.class_names[table.label[i]],
            table.class_names[table.prediction[i]],
        )
        p = table.probability[i] if called == "malignant" else 1 - table.probability[i]
        assert abs(float(shown) - p) < 1e-3
    assert "Grad-CAM at unit 'pool2', 4 × 4 places" in run["gallery_note"]
    numbers = [
        float(x) for x in re.findall(r"(?:head|conv\d|stem) (-?\d\.\d\d)", run["gallery_note"])
    ]
    assert len(numbers) == 6 and all(-1 <= x <= 1 for x in numbers)
    with other.unlocked():
        other.explain = ""
    experiment.evaluate(other, str(copy))
    assert "<h2>Gallery</h2>" not in (copy / "report" / "report.html").read_text()


def test_a_unit_that_is_none_is_refused_before_training(tiny_run, tmp_path):
    import pytest

    from densenet_flax import InputError
    from densenet_flax.experiments import run as experiment

    other = tiny_run[1].copy_and_resolve_references()
    with other.unlocked():
        other.explain = "conv7"
    with pytest.raises(InputError, match=r"config\.explain: unit 'conv7'"):
        experiment.train_and_evaluate(other, str(tmp_path / "w"))
