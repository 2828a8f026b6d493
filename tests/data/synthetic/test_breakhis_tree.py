import dataclasses
import hashlib
import re

import pytest
from PIL import Image

from densenet_flax.common.errors import InputError
from densenet_flax.data.breakhis.names import SUBTYPES, parse_name
from densenet_flax.data.synthetic import breakhis_tree
from densenet_flax.data.synthetic.breakhis_tree import DrawnConfig, write_breakhis_tree
from densenet_flax.data.synthetic.tissue import draw_tile

SMALL = DrawnConfig(benign_patients=2, malignant_patients=1, tiles_per_patient=2, size=(32, 24))


def digests(tree):
    return {
        str(path.relative_to(tree)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(tree.rglob("*.*"))
        if path.is_file()
    }


def test_no_two_patients_share_a_number():
    config = DrawnConfig(benign_patients=500, malignant_patients=500)
    patients = breakhis_tree._plan_patients(config)
    assert len({patient.number for patient in patients}) == 1000


def test_a_tree_of_the_first_version_is_recognized(tmp_path):
    tree = write_breakhis_tree(tmp_path, SMALL)
    (tree / "drawn.json").write_text(
        '{"benign_patients": 2, "malignant_patients": 1, "tiles_per_patient": 2, "version": 2, '
        '"size": [32, 24], "magnifications": [100], "seed": 0}'
    )
    assert write_breakhis_tree(tmp_path, SMALL) == tree


def test_the_same_seed_draws_the_same_bytes(tmp_path):
    def draw(folder, seed):
        return digests(
            write_breakhis_tree(tmp_path / folder, dataclasses.replace(SMALL, seed=seed))
        )

    one = draw("one", seed=3)
    assert len(one) == 7
    assert draw("two", seed=3) == one
    assert draw("three", seed=4) != one


def test_the_tree_is_breakhis(drawn_tree):
    pattern = re.compile(
        r"BreaKHis_v1/histology_slides/breast/(benign|malignant)/SOB/(\w+)/"
        r"SOB_([BM])_([A-Z]+)_(14-\d{5})/(\d+)X/SOB_\3_\4-\5-\6-001\.png"
    )
    paths = sorted(drawn_tree.rglob("*.png"))
    assert len(paths) == 16
    for path in paths:
        match = pattern.fullmatch(path.relative_to(drawn_tree).as_posix())
        name = parse_name(path.name)
        assert match and name, path
        assert (name.label, name.subtype) == match.groups()[:2]
        assert Image.open(path).size == (64, 48)
    names = [parse_name(path.name) for path in paths]
    assert {name.subtype for name in names} == {folder for folder, _ in SUBTYPES.values()}
    assert len({name.case for name in names}) == 8
    assert {name.magnification for name in names} == {40, 200}


def test_a_stain_belongs_to_a_patient(tmp_path, monkeypatch):
    stains = []

    def draw(rng, label, stain, size, **keywords):
        stains.append((*stain.hematoxylin.tolist(), *stain.eosin.tolist(), *stain.light.tolist()))
        return draw_tile(rng, label, stain, size, **keywords)

    monkeypatch.setattr("densenet_flax.data.synthetic.breakhis_tree.draw_tile", draw)
    write_breakhis_tree(tmp_path, SMALL)
    assert len(stains) == 6 and len(set(stains)) == 3


def test_a_complete_tree_is_reused(tmp_path):
    tree = write_breakhis_tree(tmp_path, SMALL)
    before = {path: path.stat().st_mtime_ns for path in tree.rglob("*")}
    assert write_breakhis_tree(tmp_path, SMALL) == tree
    assert {path: path.stat().st_mtime_ns for path in tree.rglob("*")} == before
    with pytest.raises(InputError, match="something other than"):
        write_breakhis_tree(tmp_path, dataclasses.replace(SMALL, seed=1))


def test_another_tree_is_left_alone(tmp_path):
    (tmp_path / "BreaKHis_v1").mkdir()
    with pytest.raises(InputError, match="something other than"):
        write_breakhis_tree(tmp_path, SMALL)
    assert list(tmp_path.rglob("*")) == [tmp_path / "BreaKHis_v1"]


def test_an_interruption_leaves_nothing(tmp_path, monkeypatch):
    calls = []

    def draw(*arguments, **keywords):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return draw_tile(*arguments, **keywords)

    monkeypatch.setattr("densenet_flax.data.synthetic.breakhis_tree.draw_tile", draw)
    with pytest.raises(KeyboardInterrupt):
        write_breakhis_tree(tmp_path, SMALL)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("benign_patients", 0),
        ("malignant_patients", -1),
        ("tiles_per_patient", 1.5),
        ("size", (8, 64)),
        ("size", 64),
        ("magnifications", (50,)),
        ("magnifications", ()),
        ("seed", -1),
        ("seed", "x"),
    ],
)
def test_bad_keys_are_named(key, value):
    with pytest.raises(InputError, match=f"drawn.{key}="):
        DrawnConfig.from_config({key: value}, "drawn")


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"file.*cannot write here"):
        write_breakhis_tree(tmp_path / "file", SMALL)
