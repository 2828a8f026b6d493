import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from densenet_flax.common.errors import InputError
from densenet_flax.data import Dataset, Split, assert_disjoint, load_split, patient_split
from densenet_flax.data.breakhis.names import GROUPS, patient_groups


def make_dataset(rows):
    """A data set without pixels from (label, subtype, slide id) rows."""
    labels, subtypes, slides = zip(*rows, strict=True)
    cases = [slide.rstrip("ABCDEFG") for slide in slides]
    files = [f"{label}-{slide}-{i:04d}.png" for i, (label, _, slide) in enumerate(rows)]
    return Dataset(
        images=np.zeros((len(rows), 1, 1, 3), np.uint8),
        labels=np.array(labels, np.int32),
        class_names=("benign", "malignant"),
        files=np.array(files),
        groups=patient_groups(subtypes, slides, cases),
        name="made",
        fingerprint="",
    )


def patients(benign, malignant, images=3):
    rows = [(0, "A", str(1000 + i)) for i in range(benign)]
    rows += [(1, "DC", str(2000 + i)) for i in range(malignant)]
    return make_dataset([row for row in rows for _ in range(images)])


def test_every_image_is_on_one_side_and_both_classes_on_each():
    dataset = patients(10, 20)
    split = patient_split(dataset)
    rows = np.concatenate([split.train, split.validation, split.test])
    np.testing.assert_array_equal(np.sort(rows), np.arange(90))
    assert split.counts == {
        "train": {
            "benign": {"images": 21, "patients": 7},
            "malignant": {"images": 42, "patients": 14},
        },
        "validation": {
            "benign": {"images": 3, "patients": 1},
            "malignant": {"images": 6, "patients": 2},
        },
        "test": {
            "benign": {"images": 6, "patients": 2},
            "malignant": {"images": 12, "patients": 4},
        },
    }


def test_the_seed_decides():
    dataset = patients(10, 20)
    assert patient_split(dataset, seed=1).hash == patient_split(dataset, seed=1).hash
    assert patient_split(dataset, seed=1).hash != patient_split(dataset, seed=2).hash


letters = st.sampled_from(["", "A", "B"])
slides = st.tuples(st.integers(0, 1), st.sampled_from("XY"), st.integers(0, 8), letters)


@settings(max_examples=60, deadline=None)
@given(
    drawn=st.lists(slides, min_size=1, max_size=60),
    group=st.sampled_from(GROUPS),
    test_fraction=st.floats(0.01, 0.99),
    validation_fraction=st.floats(0.01, 0.99),
    seed=st.integers(0, 1000),
)
def test_no_split_ever_shares_a_patient(drawn, group, test_fraction, validation_fraction, seed):
    rows = [(label, kind, f"{label}{number}{letter}") for label, kind, number, letter in drawn]
    rows += [(label, "X", f"{label}7{i}") for label in (0, 1) for i in range(3)]  # enough of each
    dataset = make_dataset(rows)
    split = patient_split(
        dataset,
        group=group,
        test_fraction=test_fraction,
        validation_fraction=validation_fraction,
        seed=seed,
    )
    sides = [split.train, split.validation, split.test]
    np.testing.assert_array_equal(np.sort(np.concatenate(sides)), np.arange(len(rows)))
    groups = dataset.patients(group)
    seen = [set(groups[side]) for side in sides]
    assert not seen[0] & seen[1] and not seen[0] & seen[2] and not seen[1] & seen[2]
    for side in sides:
        assert set(dataset.labels[side]) == {0, 1}


def test_blocks_of_one_case_stay_together():
    rows = [(0, "A", f"{n}{letter}") for n in range(5) for letter in "ABCD"]
    rows += [(1, "DC", f"{n}{letter}") for n in range(5, 10) for letter in "ABCD"]
    dataset = make_dataset(rows)
    by_case = patient_split(dataset, group="case70")
    assert len(set(dataset.patients("case70")[by_case.test])) == 2
    by_slide = patient_split(dataset, group="slide81")
    with pytest.raises(InputError, match="the split leaks"):
        assert_disjoint(by_slide, dataset.patients("case70"))


def test_one_slide_under_two_subtypes():
    dataset = make_dataset([(1, "DC", "13412"), (1, "LC", "13412"), (0, "A", "1")])
    assert len(set(dataset.patients("slide81"))) == 2
    assert len(set(dataset.patients("id82"))) == 3
    with pytest.raises(InputError, match="case70, slide81, id82"):
        dataset.patients("patient")


def test_too_few_patients_are_counted():
    with pytest.raises(InputError, match=r"'benign'.*has 2 patient\(s\).*at least 3"):
        patient_split(patients(2, 9))


def test_one_class_only():
    with pytest.raises(InputError, match=r"one class only \(malignant\)"):
        patient_split(patients(0, 9))


def test_a_patient_with_both_labels_is_named():
    rows = [(label, "A", f"{label}{i}") for label in (0, 1) for i in range(4)]
    with pytest.raises(InputError, match="patient 777 "):
        patient_split(make_dataset([*rows, (0, "A", "777A"), (1, "DC", "777B")]))


@pytest.mark.parametrize("key", ["test_fraction", "validation_fraction"])
@pytest.mark.parametrize("value", [0, 1, -0.1, 1.5, float("nan")])
def test_bad_fractions(key, value):
    with pytest.raises(InputError, match=f"split.{key}="):
        patient_split(patients(5, 5), **{key: value})


def test_bad_seed():
    with pytest.raises(InputError, match=r"split\.seed=-1"):
        patient_split(patients(5, 5), seed=-1)


def test_a_leak_names_the_patient_and_the_sides():
    dataset = patients(3, 3)
    split = Split(np.arange(9), np.arange(9, 12), np.arange(11, 18), dataset.files, {}, {})
    with pytest.raises(InputError, match="patient 2000 is in both validation and test"):
        assert_disjoint(split, dataset.patients("case70"))


@pytest.fixture
def saved(tmp_path):
    dataset = patients(5, 7)
    split = patient_split(dataset)
    path = tmp_path / "splits" / "split.json"
    split.save(path)
    return dataset, split, path


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_what_is_saved_comes_back(saved):
    dataset, split, path = saved
    again = load_split(path, dataset)
    for side in ("train", "validation", "test"):
        np.testing.assert_array_equal(getattr(again, side), getattr(split, side))
    assert (again.hash, again.policy, again.counts) == (split.hash, split.policy, split.counts)
    assert [file.name for file in path.parent.iterdir()] == ["split.json"]
    content = json.loads(path.read_text())
    assert content["hash"] == split.hash and content["policy"]["group"] == "case70"
    assert content["files"][str(dataset.files[split.test[0]])] == "test"


def test_an_edited_split_is_refused(saved):
    dataset, split, path = saved
    file = str(dataset.files[split.test[0]])
    edit(path, lambda content: content["files"].update({file: "train"}))
    with pytest.raises(InputError, match="do not match its hash"):
        load_split(path, dataset)


def test_a_leaking_split_with_a_true_hash_is_refused(saved):
    dataset, split, path = saved
    leaking = Split(
        np.append(split.train, split.test[0]),
        split.validation,
        split.test[1:],
        split.files,
        split.policy,
        split.counts,
    )
    leaking.save(path)
    with pytest.raises(InputError, match="is in both train and test"):
        load_split(path, dataset)


def test_a_split_of_other_data_is_refused(saved):
    _, _, path = saved
    with pytest.raises(InputError, match=r"15 file\(s\) only in the split"):
        load_split(path, patients(5, 2))
    with pytest.raises(InputError, match=r"6 file\(s\) only in the data"):
        load_split(path, patients(5, 9))


def test_a_file_listed_twice_is_refused(saved):
    dataset, _, path = saved
    text = path.read_text()
    file = str(dataset.files[0])
    path.write_text(text.replace('"files": {', f'"files": {{ "{file}": "train",'))
    with pytest.raises(InputError, match=f"{file} appears twice"):
        load_split(path, dataset)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"format": 1, "files": [], "policy": {}, "hash": ""}']
)
def test_a_damaged_split_is_refused(tmp_path, text):
    path = tmp_path / "split.json"
    path.write_text(text)
    with pytest.raises(InputError, match=r"split\.json: not a whole split file"):
        load_split(path, patients(3, 3))


def test_other_formats_and_missing_files(saved):
    dataset, _, path = saved
    with pytest.raises(InputError, match="no such split file"):
        load_split(path.with_name("other.json"), dataset)
    edit(path, lambda content: content.update(format=2))
    with pytest.raises(InputError, match="format 1"):
        load_split(path, dataset)


def test_a_place_that_cannot_be_written(saved):
    _, split, path = saved
    with pytest.raises(InputError, match="cannot write here"):
        split.save(path / "below_a_file.json")
