import dataclasses
import logging as python_logging

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict

from densenet_flax.common.errors import InputError
from densenet_flax.data import Dataset, assert_disjoint, load_split, make_split
from densenet_flax.data.breakhis import folds
from densenet_flax.data.breakhis.names import SUBTYPES
from densenet_flax.data.splits.overlap_table import catalogue, names_at
from densenet_flax.data.splits.policies import POLICIES

SIDES = ("train", "validation", "test")


def make_dataset(rows, class_names=("no", "yes"), **fields):
    """A data set that is not BreakHis, without pixels, from (label, patient) rows."""
    labels, patients = zip(*rows, strict=True)
    return Dataset(
        images=np.zeros((len(rows), 1, 1, 3), np.uint8),
        labels=np.array(labels, np.int32),
        class_names=class_names,
        files=np.array([f"{i:05d}.png" for i in range(len(rows))]),
        groups={"patient": np.array(patients)},
        name="made",
        fingerprint="",
        **fields,
    )


def patients(*counts, images=3):
    rows = [(label, f"{label}-{i}") for label, count in enumerate(counts) for i in range(count)]
    names = tuple("abcdefgh"[: len(counts)])
    return make_dataset([row for row in rows for _ in range(images)], class_names=names)


def owners(dataset, split, group):
    groups = dataset.patients(group)
    return [set(groups[getattr(split, side)]) for side in SIDES]


def test_each_official_fold_is_reproduced_to_the_file(breakhis_folds):
    for fold in folds.FOLDS:
        path = breakhis_folds / f"dsfold{fold}.txt"
        lines = [line.split("|") for line in path.read_text().split()]
        official = {name for name, _, _, side in lines if side == "test"}
        dataset = catalogue(names_at(path))
        split = make_split(dataset, ConfigDict({"policy": "official", "fold": fold}))
        assert set(dataset.files[split.test]) == official
        assert len(split.test) == {1: 2904, 2: 2403, 3: 2577, 4: 2698, 5: 3083}[fold]
        rest = set(dataset.files[np.concatenate([split.train, split.validation])])
        assert rest == {name for name, *_ in lines} - official


def test_the_official_ids_are_28_of_82():
    assert len(folds.IDS) == 82
    for fold in folds.FOLDS:
        tested = folds.test_ids(fold)
        assert len(tested) == 28
        assert sum("carcinoma" in name for name in tested) == 19
    with pytest.raises(InputError, match=r"split\.fold=6"):
        folds.test_ids(6)


def official_dataset():
    """Two drawn names for each of the 82 ids."""
    tokens = {folder: token for token, (folder, _) in SUBTYPES.items()}
    names = []
    for name in folds.IDS:
        subtype, slide = name.split("/")
        letter = SUBTYPES[tokens[subtype]][1][0].upper()
        names += [f"SOB_{letter}_{tokens[subtype]}-14-{slide}-40-00{i}.png" for i in (1, 2)]
    return catalogue(names)


@settings(max_examples=40, deadline=None)
@given(
    fold=st.integers(1, 5),
    group=st.sampled_from(["case70", "slide81", "id82"]),
    fraction=st.floats(0.01, 0.99),
    seed=st.integers(0, 1000),
)
def test_official_folds_with_validation_share_nobody(fold, group, fraction, seed):
    dataset = official_dataset()
    config = {"policy": "official", "fold": fold, "group": group, "seed": seed}
    split = make_split(dataset, config | {"validation_fraction": fraction})
    train, validation, test = owners(dataset, split, "id82")
    assert not train & test and not validation & test and len(test) == 28
    train, validation, _ = owners(dataset, split, group)
    assert not train & validation
    assert (split.policy["group"], split.policy["validation_group"]) == ("id82", group)
    assert split.patient_disjoint


def test_a_leak_between_training_and_validation_is_seen(tmp_path):
    """By id they are apart, by case they are not: the coarser key is checked as well."""
    dataset = official_dataset()
    split = make_split(dataset, {"policy": "official", "group": "slide81", "seed": 2})
    train, validation, _ = owners(dataset, split, "case70")
    assert train & validation  # or this test shows nothing
    split = dataclasses.replace(split, policy={**split.policy, "validation_group": "case70"})
    split.save(tmp_path / "split.json")
    with pytest.raises(InputError, match="is in both train and validation"):
        load_split(tmp_path / "split.json", dataset)


def test_official_folds_are_of_breakhis():
    stranger = catalogue(["SOB_B_A-14-1-40-001.png", "SOB_M_DC-14-2-40-001.png"])
    with pytest.raises(InputError, match="is not one of BreakHis's 82 ids"):
        make_split(stranger, {"policy": "official"})
    with pytest.raises(InputError, match="not of made"):
        make_split(patients(5, 5), {"policy": "official"})
    some = catalogue(
        f"SOB_{part}-40-001.png"
        for part in (
            "B_A-14-22549G",
            "B_F-14-25197",
            "B_F-14-14134",
            "M_DC-14-2773",
            "M_DC-14-5695",
        )
    )
    with pytest.raises(InputError, match="the test side of breakhis has no image of class 'malig"):
        make_split(some, {"policy": "official", "fold": 1})


rows = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 9)), min_size=1, max_size=60)


@settings(max_examples=60, deadline=None)
@given(
    drawn=rows,
    mixed=st.booleans(),
    fold=st.integers(1, 3),
    folds=st.integers(3, 4),
    fraction=st.floats(0.01, 0.99),
    seed=st.integers(0, 1000),
    data=st.data(),
)
def test_no_policy_but_image_shares_a_patient(drawn, mixed, fold, folds, fraction, seed, data):
    listed = [(label, f"{number}" if mixed else f"{label}-{number}") for label, number in drawn]
    listed += [(label, f"{label}-7{i}") for label in range(3) for i in range(5)]
    groups = np.array([patient for _, patient in listed])
    members = data.draw(st.permutations(sorted(set(groups))))
    stated = np.where(np.isin(groups, members[: len(members) // 2]), "train", "test")
    dataset = make_dataset(listed, class_names=("a", "b", "c"), columns={"split": stated})
    for policy in POLICIES:
        config = {"policy": policy, "group": "patient", "fold": fold, "folds": folds, "seed": seed}
        config |= {"validation_fraction": fraction, "mixed_patients": "rarest"}
        try:
            split = make_split(dataset, config)
        except InputError:
            # Not of BreakHis; or sides that were stated at random and lack a class.
            assert policy in ("official", "given")
            continue
        everything = np.concatenate([getattr(split, side) for side in SIDES])
        np.testing.assert_array_equal(np.sort(everything), np.arange(len(dataset)))
        assert split.patient_disjoint == (policy != "image")
        if policy != "image":
            train, validation, test = owners(dataset, split, "patient")
            assert not train & validation and not train & test and not validation & test
        if not mixed:
            for side in SIDES:
                assert set(dataset.labels[getattr(split, side)]) == {0, 1, 2}


@pytest.mark.parametrize("count", [2, 3, 5])
def test_each_patient_is_tested_in_exactly_one_fold(count):
    dataset = patients(7, 11)
    tested = []
    for fold in range(1, count + 1):
        split = make_split(
            dataset, {"policy": "kfold", "fold": fold, "folds": count, "group": "patient"}
        )
        tested += sorted(owners(dataset, split, "patient")[2])
    assert sorted(tested) == sorted(set(dataset.patients("patient")))


def test_folds_are_balanced_in_images_and_classes():
    sizes = [40, 1, 1, 30, 20, 10, 5, 25, 10, 18]
    listed = [
        (label, f"{label}-{i}") for label in (0, 1) for i, n in enumerate(sizes) for _ in [0] * n
    ]
    dataset = make_dataset(listed)
    for fold in (1, 2, 3, 4):
        split = make_split(
            dataset, {"policy": "kfold", "fold": fold, "folds": 4, "group": "patient", "seed": 3}
        )
        assert np.all(np.abs(np.bincount(dataset.labels[split.test]) - 40) <= 2)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"policy": "random"}, "split.policy='random'"),
        ({"policy": "kfold", "fold": 0}, "split.fold=0"),
        ({"policy": "kfold", "fold": 6}, "split.fold=6"),
        ({"policy": "kfold", "folds": 1}, "split.folds=1"),
        ({"policy": "kfold", "folds": 7}, "too few for split.folds=7"),
        ({"policy": "kfold", "seed": -1}, "split.seed=-1"),
        ({"policy": "given"}, "does not say who trains"),
        ({"policy": "image", "test_fraction": 1}, "split.test_fraction=1"),
        ({"policy": "patient", "mixed_patients": "no"}, "split.mixed_patients='no'"),
        ({"policy": "patient", "group": "case70"}, "made has patient; choose"),
    ],
)
def test_bad_rules(config, message):
    with pytest.raises(InputError, match=message):
        make_split(patients(6, 6), {"group": "patient"} | config)


def test_the_leaky_split_warns_and_says_so(tmp_path, caplog):
    dataset = patients(4, 4, images=20)
    with caplog.at_level(python_logging.WARNING, "absl"):
        split = make_split(dataset, {"policy": "image", "group": "patient"})
        split.save(tmp_path / "split.json")
        again = load_split(tmp_path / "split.json", dataset)
    assert [record.getMessage()[:25] for record in caplog.records] == [
        "split.policy='image' leak"
    ] * 2
    assert "100 %" in caplog.text
    assert not again.patient_disjoint and again.policy["patient_disjoint"] is False
    claiming = dataclasses.replace(split, policy={**split.policy, "patient_disjoint": True})
    assert not claiming.patient_disjoint
    with pytest.raises(InputError, match="the split leaks"):
        assert_disjoint(split, dataset.patients("patient"))


def test_patients_that_nobody_knows_are_not_called_disjoint():
    dataset = make_dataset([(i % 2, str(i)) for i in range(20)], patients_known=False)
    split = make_split(dataset, {"group": "patient"})
    assert not split.patient_disjoint


def test_a_patient_with_both_labels_goes_whole():
    dataset = make_dataset([(i % 2, str(i // 4)) for i in range(80)])
    with pytest.raises(InputError, match=r"patient 0 of made.*mixed_patients='rarest'"):
        make_split(dataset, {"group": "patient"})
    # Each is counted for one of his classes, and here all are as rare: so for the first.
    with pytest.raises(InputError, match=r"class 'yes' of made has 0 patient"):
        make_split(dataset, {"group": "patient", "mixed_patients": "rarest"})
    listed = [(0, str(i)) for i in range(9)] + [(1, str(i)) for i in range(4)]
    dataset = make_dataset(listed)
    split = make_split(dataset, {"group": "patient", "mixed_patients": "rarest"})
    assert all(set(dataset.labels[getattr(split, side)]) == {0, 1} for side in SIDES)


def test_given_sides_are_kept_and_checked():
    dataset = patients(6, 6, images=2)
    stated = np.where(np.char.endswith(dataset.patients("patient"), "0"), "test", "train")
    dataset = dataclasses.replace(dataset, columns={"split": stated})
    split = make_split(dataset, {"policy": "given", "group": "patient"})
    np.testing.assert_array_equal(split.test, np.flatnonzero(stated == "test"))
    assert len(split.validation) == 4
    stated[1] = "train"  # an image of a patient who is tested
    with pytest.raises(InputError, match="patient 0-0 is in both"):
        make_split(dataset, {"policy": "given", "group": "patient"})
    stated[:] = "train"
    with pytest.raises(InputError, match="no images for test, only for train"):
        make_split(dataset, {"policy": "given", "group": "patient"})
