"""The split as a record: its file, its hash and its checks."""

import dataclasses
import json

import numpy as np
import pytest

from densenet_flax.common.errors import InputError
from densenet_flax.data.splits.policies import make_split
from densenet_flax.data.splits.split import SUBSETS, Split, SplitPolicy, assert_disjoint, load_split
from densenet_flax.data.splits.split_config import SplitConfig
from tests.helpers.datasets import dataset_of_labels


def make_dataset(benign, malignant, images=3):
    """Some images of each patient, 1000… benign and 2000… malignant."""
    patients = [f"{1000 + i}" for i in range(benign)] + [f"{2000 + i}" for i in range(malignant)]
    patients = np.repeat(patients, images)
    labels = [int(patient) // 1000 - 1 for patient in patients]
    files = np.array([f"{patient}-{i:04d}.png" for i, patient in enumerate(patients)])
    return dataset_of_labels(
        labels, ("benign", "malignant"), groups={"case70": patients}, files=files
    )


@pytest.fixture
def saved(tmp_path):
    dataset = make_dataset(5, 7)
    split = make_split(dataset, SplitConfig())
    path = tmp_path / "splits" / "split.json"
    split.save(path)
    return dataset, split, path


def edit(path, change):
    content = json.loads(path.read_text())
    content.pop("crc32", None)  # as the message says who changes it on purpose
    change(content)
    path.write_text(json.dumps(content))


def test_a_saved_split_loads_equal(saved):
    dataset, split, path = saved
    loaded = load_split(path, dataset)
    for subset in SUBSETS:
        np.testing.assert_array_equal(getattr(loaded, subset), getattr(split, subset))
    assert (loaded.hash, loaded.policy, loaded.counts) == (split.hash, split.policy, split.counts)
    assert [file.name for file in path.parent.iterdir()] == ["split.json"]


def test_the_file_states_policy_hash_and_files(saved):
    dataset, split, path = saved
    content = json.loads(path.read_text())
    assert content["format"] == 1 and content["hash"] == split.hash
    assert content["policy"] == {
        "kind": "patient",
        "group": "case70",
        "seed": 0,
        "test_fraction": 0.2,
        "validation_fraction": 0.15,
        "mixed_patients": "error",
    }
    assert content["files"][str(dataset.files[split.test[0]])] == "test"
    assert len(content["files"]) == len(dataset)


def test_the_policy_record_survives_json_and_ignores_unknown_keys():
    policy = SplitPolicy("official", "id82", "case70", fold=2, seed=1, patient_disjoint=False)
    values = json.loads(json.dumps(policy.to_dict()))
    assert list(values) == ["kind", "group", "validation_group", "fold", "seed", "patient_disjoint"]
    assert SplitPolicy.from_dict(values | {"note": "of a later version"}) == policy


def test_an_edited_file_is_refused(saved):
    dataset, split, path = saved
    file = str(dataset.files[split.test[0]])
    edit(path, lambda content: content["files"].update({file: "train"}))
    with pytest.raises(InputError, match="do not match its hash"):
        load_split(path, dataset)


def test_a_leaking_split_with_a_true_hash_is_refused(saved):
    dataset, split, path = saved
    leaking = dataclasses.replace(
        split, train=np.append(split.train, split.test[0]), test=split.test[1:]
    )
    leaking.save(path)
    with pytest.raises(InputError, match="is in both train and test"):
        load_split(path, dataset)


def test_a_split_of_other_data_is_refused(saved):
    _, _, path = saved
    with pytest.raises(InputError, match=r"15 file\(s\) only in the split"):
        load_split(path, make_dataset(5, 2))
    with pytest.raises(InputError, match=r"6 file\(s\) only in the data"):
        load_split(path, make_dataset(5, 9))


def test_a_file_listed_twice_is_refused(saved):
    dataset, _, path = saved
    text = path.read_text()
    file = str(dataset.files[0])
    path.write_text(text.replace('"files": {', f'"files": {{ "{file}": "train",'))
    with pytest.raises(InputError, match=f"{file} appears twice"):
        load_split(path, dataset)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "[" * 100_000,
        "{}",
        '{"format": 1, "files": {}, "policy": {}, "hash": ""}',
        '{"format": 1, "files": [], "policy": {"kind": "patient", "group": "case70"}, "hash": ""}',
        '{"format": 1, "files": {}, "policy": {"kind": "patient", "group": 70}, "hash": ""}',
    ],
)
def test_a_damaged_file_is_refused(tmp_path, text):
    path = tmp_path / "split.json"
    path.write_text(text)
    with pytest.raises(
        InputError, match=r"split\.json: (not a complete split file|cannot be read)"
    ):
        load_split(path, make_dataset(3, 3))


def test_other_formats_and_missing_files_are_refused(saved):
    dataset, _, path = saved
    with pytest.raises(InputError, match=r"other\.json: cannot be read \(No such file"):
        load_split(path.with_name("other.json"), dataset)
    edit(path, lambda content: content.update(format=2))
    with pytest.raises(InputError, match="format 1"):
        load_split(path, dataset)


def test_a_path_that_cannot_be_written_is_an_input_error(saved):
    _, split, path = saved
    with pytest.raises(InputError, match="cannot write here"):
        split.save(path / "below_a_file.json")


def test_a_leak_names_the_patient_and_the_subsets():
    dataset = make_dataset(3, 3)
    rows = np.arange(9), np.arange(9, 12), np.arange(11, 18)
    split = Split(*rows, dataset.files, SplitPolicy("patient", "case70"), {})
    with pytest.raises(InputError, match="patient 2000 is in both validation and test"):
        assert_disjoint(split, dataset.patients("case70"))


def test_unknown_patients_are_never_called_disjoint(tmp_path):
    dataset = make_dataset(5, 5)
    unknown = dataclasses.replace(dataset, patients_known=False)
    split = make_split(unknown, SplitConfig())
    assert not split.patient_disjoint and split.policy.to_dict()["patient_disjoint"] is False
    make_split(dataset, SplitConfig()).save(tmp_path / "split.json")
    assert load_split(tmp_path / "split.json", dataset).patient_disjoint
    assert not load_split(tmp_path / "split.json", unknown).patient_disjoint
