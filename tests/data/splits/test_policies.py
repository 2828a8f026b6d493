import dataclasses
import logging as python_logging

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from densenet_flax.common.errors import InputError
from densenet_flax.data.breakhis import names
from densenet_flax.data.splits.policies import make_split
from densenet_flax.data.splits.split import SUBSETS, assert_disjoint, load_split
from densenet_flax.data.splits.split_config import POLICIES, SplitConfig
from tests.data.splits.datasets import (
    assert_patients_apart,
    by_patient,
    make_breakhis,
    make_dataset,
    make_official_dataset,
    make_patients,
    patients_of_subsets,
)


def assert_all_rows_used(dataset, split):
    rows = np.concatenate([getattr(split, subset) for subset in SUBSETS])
    np.testing.assert_array_equal(np.sort(rows), np.arange(len(dataset)))


# --- by patient


def test_each_image_is_in_one_subset_and_each_class_in_all():
    dataset = make_patients(10, 20)
    split = make_split(dataset, by_patient())
    assert_all_rows_used(dataset, split)
    assert split.counts == {
        "train": {"a": {"images": 21, "patients": 7}, "b": {"images": 42, "patients": 14}},
        "validation": {"a": {"images": 3, "patients": 1}, "b": {"images": 6, "patients": 2}},
        "test": {"a": {"images": 6, "patients": 2}, "b": {"images": 12, "patients": 4}},
    }


def test_the_seed_decides():
    dataset = make_patients(10, 20)
    one, same, other = (make_split(dataset, by_patient(seed=seed)) for seed in (1, 1, 2))
    assert one.hash == same.hash != other.hash


slides = st.tuples(
    st.integers(0, 1), st.sampled_from("XY"), st.integers(0, 8), st.sampled_from(["", "A", "B"])
)


@settings(max_examples=60, deadline=None)
@given(
    drawn=st.lists(slides, min_size=1, max_size=60),
    group=st.sampled_from(names.GROUPS),
    test_fraction=st.floats(0.01, 0.99),
    validation_fraction=st.floats(0.01, 0.99),
    seed=st.integers(0, 1000),
)
def test_no_two_subsets_share_a_patient(drawn, group, test_fraction, validation_fraction, seed):
    rows = [(label, kind, f"{label}{number}{letter}") for label, kind, number, letter in drawn]
    rows += [(label, "X", f"{label}7{i}") for label in (0, 1) for i in range(3)]  # enough of each
    dataset = make_breakhis(rows)
    config = SplitConfig("patient", group, test_fraction, validation_fraction, seed)
    split = make_split(dataset, config)
    assert_all_rows_used(dataset, split)
    assert_patients_apart(dataset, split, group)
    for subset in SUBSETS:
        assert set(dataset.labels[getattr(split, subset)]) == {0, 1}


def test_blocks_of_one_case_stay_together():
    rows = [(0, "A", f"{n}{letter}") for n in range(5) for letter in "ABCD"]
    rows += [(1, "DC", f"{n}{letter}") for n in range(5, 10) for letter in "ABCD"]
    dataset = make_breakhis(rows)
    by_case = make_split(dataset, SplitConfig(group="case70"))
    assert len(set(dataset.patients("case70")[by_case.test])) == 2
    by_slide = make_split(dataset, SplitConfig(group="slide81"))
    with pytest.raises(InputError, match="the split leaks"):
        assert_disjoint(by_slide, dataset.patients("case70"))


def test_a_class_with_too_few_patients_is_named():
    with pytest.raises(InputError, match=r"'a'.*has 2 patient\(s\).*at least 3"):
        make_split(make_patients(2, 9), by_patient())


def test_one_class_only_is_refused():
    with pytest.raises(InputError, match=r"one class only \(b\)"):
        make_split(make_patients(0, 9), by_patient())


def test_a_patient_of_both_classes_is_named():
    rows = [(label, "A", f"{label}{i}") for label in (0, 1) for i in range(4)]
    dataset = make_breakhis([*rows, (0, "A", "777A"), (1, "DC", "777B")])
    with pytest.raises(InputError, match=r"patient 777 .*config\.split\.mixed_patients='rarest'"):
        make_split(dataset, SplitConfig())


def test_a_patient_of_both_classes_counts_for_the_rarer_one():
    # Nine patients have the first class and four of them also the second, rarer one.
    dataset = make_dataset([(0, str(i)) for i in range(9)] + [(1, str(i)) for i in range(4)])
    split = make_split(dataset, by_patient(mixed_patients="rarest"))
    assert_patients_apart(dataset, split, "patient")
    assert all(set(dataset.labels[getattr(split, subset)]) == {0, 1} for subset in SUBSETS)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sets(st.integers(0, 2), min_size=1), max_size=30),
    st.sampled_from(["patient", "kfold"]),
    st.integers(0, 9),
)
def test_patients_of_several_classes_give_every_subset_every_class(classes, policy, seed):
    """Patch data: (nearly) all patients have tumor and normal tissue."""
    # Three patients with all classes make it possible in any case.
    classes = [{0, 1, 2}] * 3 + classes
    rows = [(label, str(i)) for i, labels in enumerate(classes) for label in labels]
    dataset = make_dataset(rows, ("a", "b", "c"))
    config = SplitConfig(
        policy=policy, group="patient", mixed_patients="rarest", folds=3, seed=seed
    )
    split = make_split(dataset, config)
    assert_patients_apart(dataset, split, "patient")
    for subset in SUBSETS:
        assert set(dataset.labels[getattr(split, subset)]) == {0, 1, 2}
    assert sum(len(getattr(split, subset)) for subset in SUBSETS) == len(dataset)


def test_patients_of_both_classes_test_their_share_of_all():
    dataset = make_dataset([(label, str(i)) for i in range(20) for label in (0, 1)])
    split = make_split(dataset, by_patient(mixed_patients="rarest"))
    assert len(np.unique(dataset.patients("patient")[split.test])) == 4
    # One of twenty has no image of the second class: the first would have one patient to split.
    lacking = make_dataset([(0, "0"), *((n, str(i)) for i in range(1, 20) for n in (0, 1))])
    split = make_split(lacking, by_patient(mixed_patients="rarest"))
    assert len(np.unique(lacking.patients("patient")[split.test])) == 4


# --- subsets that the data states


# --- k folds


@pytest.mark.parametrize("count", [2, 3, 5])
def test_each_patient_is_tested_in_exactly_one_fold(count):
    dataset = make_patients(7, 11)
    tested = []
    for fold in range(1, count + 1):
        split = make_split(dataset, by_patient(policy="kfold", fold=fold, folds=count))
        tested += sorted(patients_of_subsets(dataset, split, "patient")[2])
    assert sorted(tested) == sorted(set(dataset.patients("patient")))


def test_folds_are_balanced_in_images_and_classes():
    sizes = [40, 1, 1, 30, 20, 10, 5, 25, 10, 18]
    dataset = make_dataset(
        [(label, f"{label}-{i}") for label in (0, 1) for i, n in enumerate(sizes) for _ in range(n)]
    )
    for fold in (1, 2, 3, 4):
        split = make_split(dataset, by_patient(policy="kfold", fold=fold, folds=4, seed=3))
        assert np.all(np.abs(np.bincount(dataset.labels[split.test]) - 40) <= 2)


def test_too_many_folds_for_the_patients():
    with pytest.raises(InputError, match=r"too few for config\.split\.folds=7"):
        make_split(make_patients(6, 6), by_patient(policy="kfold", folds=7))


# --- by image


def test_the_leaky_split_warns_and_is_marked(tmp_path, caplog):
    dataset = make_patients(4, 4, images=20)
    with caplog.at_level(python_logging.WARNING, "absl"):
        split = make_split(dataset, by_patient(policy="image"))
        split.save(tmp_path / "split.json")
        loaded = load_split(tmp_path / "split.json", dataset)
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 2
    assert all("split.policy='image' leaks: 100 %" in message for message in messages)
    assert not loaded.patient_disjoint and loaded.policy.patient_disjoint is False
    # A file that claims otherwise is not believed.
    claiming = dataclasses.replace(split.policy, patient_disjoint=True)
    assert not dataclasses.replace(split, policy=claiming).patient_disjoint
    with pytest.raises(InputError, match="the split leaks"):
        assert_disjoint(split, dataset.patients("patient"))


# --- all policies


@settings(max_examples=60, deadline=None)
@given(
    drawn=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 9)), min_size=1, max_size=60),
    mixed=st.booleans(),
    fold=st.integers(1, 3),
    folds=st.integers(3, 4),
    fraction=st.floats(0.01, 0.99),
    seed=st.integers(0, 1000),
    data=st.data(),
)
def test_no_policy_but_image_shares_a_patient(drawn, mixed, fold, folds, fraction, seed, data):
    rows = [(label, f"{number}" if mixed else f"{label}-{number}") for label, number in drawn]
    rows += [(label, f"{label}-7{i}") for label in range(3) for i in range(5)]
    groups = np.array([patient for _, patient in rows])
    members = data.draw(st.permutations(sorted(set(groups))))
    stated = np.where(np.isin(groups, members[: len(members) // 2]), "train", "test")
    dataset = make_dataset(rows, ("a", "b", "c"), columns={"split": stated})
    for policy in POLICIES:
        config = SplitConfig(
            policy,
            "patient",
            validation_fraction=fraction,
            seed=seed,
            fold=fold,
            folds=folds,
            mixed_patients="rarest",
        )
        try:
            split = make_split(dataset, config)
        except InputError:
            # Not BreakHis; or subsets that were stated at random and lack a class.
            assert policy in ("official", "given")
            continue
        assert_all_rows_used(dataset, split)
        assert split.patient_disjoint == (policy != "image")
        if policy != "image":
            assert_patients_apart(dataset, split, "patient")
        if not mixed:
            for subset in SUBSETS:
                assert set(dataset.labels[getattr(split, subset)]) == {0, 1, 2}


@pytest.mark.parametrize(
    ("policy", "digest"),
    [
        ("patient", "a267fdafd163ecb1"),
        ("kfold", "2aa73bd524003bec"),
        ("official", "748b069c4a6fa8f1"),
        ("image", "9dd95092054d358e"),
    ],
)
def test_a_seed_means_the_same_split_in_every_version(policy, digest):
    split = make_split(make_official_dataset(), SplitConfig(policy, seed=3, fold=2))
    assert split.hash[:16] == digest


def test_an_unknown_group_lists_the_known_ones():
    with pytest.raises(InputError, match="made has patient; choose"):
        make_split(make_patients(6, 6), SplitConfig(group="case70"))
