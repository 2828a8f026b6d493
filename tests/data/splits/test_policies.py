import dataclasses
import logging as python_logging

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from densenet_flax.common.errors import InputError
from densenet_flax.data.breakhis import folds, names
from densenet_flax.data.breakhis.name_list import dataset_of_names, list_file_names
from densenet_flax.data.data_summary import summarize
from densenet_flax.data.dataset import Provenance
from densenet_flax.data.splits.policies import make_split
from densenet_flax.data.splits.split import SUBSETS, assert_disjoint, load_split
from densenet_flax.data.splits.split_config import POLICIES, SplitConfig
from tests.helpers.datasets import dataset_of_labels


def make_dataset(rows, class_names=("no", "yes"), **fields):
    """A data set that is not BreakHis from (label, patient) rows."""
    labels, patients = zip(*rows, strict=True)
    return dataset_of_labels(labels, class_names, groups={"patient": np.array(patients)}, **fields)


def make_patients(*counts, images=3):
    """So many patients of each class, with some images each."""
    rows = [(label, f"{label}-{i}") for label, count in enumerate(counts) for i in range(count)]
    class_names = tuple("abcdefgh"[: len(counts)])
    return make_dataset([row for row in rows for _ in range(images)], class_names)


def make_breakhis(rows):
    """A data set with BreakHis's groups from (label, subtype, slide id) rows."""
    labels, subtypes, slides = zip(*rows, strict=True)
    cases = [slide.rstrip("ABCDEFG") for slide in slides]
    groups = names.patient_groups(subtypes, slides, cases)
    return dataset_of_labels(labels, ("benign", "malignant"), groups=groups)


def make_official_dataset():
    """Two made-up names of each of the 82 ids."""
    tokens = {subtype: token for token, (subtype, _) in names.SUBTYPES.items()}
    files = []
    for name in folds.IDS:
        subtype, slide = name.split("/")
        token = tokens[subtype]
        letter = names.SUBTYPES[token][1][0].upper()
        files += [f"SOB_{letter}_{token}-14-{slide}-40-00{i}.png" for i in (1, 2)]
    return dataset_of_names(files)


def by_patient(**keys):
    return SplitConfig(group="patient", **keys)


def patients_of_subsets(dataset, split, group):
    groups = dataset.patients(group)
    return [set(groups[getattr(split, subset)]) for subset in SUBSETS]


def assert_patients_apart(dataset, split, group):
    train, validation, test = patients_of_subsets(dataset, split, group)
    assert not train & validation and not train & test and not validation & test


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


def make_stated(subsets, contents=None):
    """Two classes in turn, one patient for each image; `subsets` says where each is."""
    rows = [(i % 2, str(i)) for i in range(len(subsets))]
    return make_dataset(
        rows,
        columns={"split": np.array(subsets)},
        provenance=Provenance(subsets_from="column 'split'"),
        contents=contents,
    )


def test_stated_subsets_are_used_or_ignored_on_purpose():
    stated = make_stated(["train"] * 8 + ["test"] * 8)
    split = make_split(stated, by_patient(policy="auto"))
    assert split.policy.kind == "given" and split.test.tolist() == list(range(8, 16))
    for policy in ("patient", "kfold", "image"):
        with pytest.raises(
            InputError, match=r"states its subsets \(column 'split'\).*ignore_given"
        ):
            make_split(stated, by_patient(policy=policy))
        make_split(stated, by_patient(policy=policy, ignore_given=True, folds=3))
    new = make_split(stated, by_patient(policy="auto", ignore_given=True))
    assert new.policy.kind == "patient"
    assert make_split(make_patients(5, 5), by_patient(policy="auto")).policy.kind == "patient"


def test_stated_folds_are_tested_one_at_a_time():
    folds_of = [f"fold_{i // 4}" for i in range(16)]
    for fold in range(1, 5):
        split = make_split(make_stated(folds_of), by_patient(policy="auto", fold=fold, folds=4))
        assert split.test.tolist() == list(range(4 * fold - 4, 4 * fold))
        assert (split.policy.fold, split.policy.folds) == (fold, 4)
    with pytest.raises(InputError, match=r"states 4 folds .*set config\.split\.folds=4"):
        make_split(make_stated(folds_of), by_patient(policy="given"))
    with pytest.raises(InputError, match=r"fold=2: made states subsets and no folds"):
        make_split(make_stated(["train"] * 8 + ["test"] * 4), by_patient(policy="given", fold=2))
    # Images for test would train where another fold is tested.
    with pytest.raises(InputError, match=r"states folds \(fold_0, fold_1\) and also test"):
        make_split(make_stated(folds_of[:8] + ["test"] * 8), by_patient(policy="given", folds=2))


def test_the_summary_names_the_stated_fold_that_is_tested():
    stated = make_stated([f"fold_{i // 4}" for i in range(12)])
    split = make_split(stated, by_patient(policy="given", fold=2, folds=3))
    assert summarize(stated, split)["subsets_from"] == "column 'split', tested on fold_1"
    split = make_split(make_patients(5, 5), by_patient(policy="kfold", fold=2, folds=3))
    summary = summarize(make_patients(5, 5), split)
    assert summary["subsets_from"] == "split.policy='kfold', tested on fold 2"


def test_exact_copies_in_two_subsets_are_an_error():
    subsets = ["train"] * 8 + ["test"] * 4
    contents = np.array([*"abcdefgh", *"ijka"])
    with pytest.raises(InputError, match=r"1 image\(s\) of made are exact copies.*00000.*00011"):
        make_split(make_stated(subsets, contents), by_patient(policy="given"))
    make_split(make_stated(subsets, contents), by_patient(policy="given", allow_copies=True))
    contents[-1] = "i"  # a copy in the same subset
    make_split(make_stated(subsets, contents), by_patient(policy="given"))


# --- official


def test_each_official_fold_is_reproduced_to_the_file(breakhis_folds):
    for fold in folds.FOLDS:
        path = breakhis_folds / f"dsfold{fold}.txt"
        lines = [line.split("|") for line in path.read_text().split()]
        official = {name for name, _, _, subset in lines if subset == "test"}
        dataset = dataset_of_names(list_file_names(path))
        split = make_split(dataset, SplitConfig(policy="official", fold=fold))
        assert set(dataset.files[split.test]) == official
        assert len(split.test) == {1: 2904, 2: 2403, 3: 2577, 4: 2698, 5: 3083}[fold]
        rest = set(dataset.files[np.concatenate([split.train, split.validation])])
        assert rest == {name for name, *_ in lines} - official


def test_each_official_fold_tests_28_of_82_ids():
    assert len(folds.IDS) == 82
    for fold in folds.FOLDS:
        tested = folds.test_ids(fold)
        assert len(tested) == 28
        assert sum("carcinoma" in name for name in tested) == 19
    with pytest.raises(InputError, match=r"split\.fold=6"):
        folds.test_ids(6)


@settings(max_examples=40, deadline=None)
@given(
    fold=st.integers(1, 5),
    group=st.sampled_from(names.GROUPS),
    fraction=st.floats(0.01, 0.99),
    seed=st.integers(0, 1000),
)
def test_official_subsets_share_no_id_and_validation_no_patient(fold, group, fraction, seed):
    dataset = make_official_dataset()
    config = SplitConfig("official", group, validation_fraction=fraction, seed=seed, fold=fold)
    split = make_split(dataset, config)
    assert_patients_apart(dataset, split, "id82")
    assert len(patients_of_subsets(dataset, split, "id82")[2]) == 28
    train, validation, _ = patients_of_subsets(dataset, split, group)
    assert not train & validation
    assert (split.policy.group, split.policy.validation_group) == ("id82", group)
    assert split.patient_disjoint


def test_a_leak_between_training_and_validation_is_seen_at_loading(tmp_path):
    """They are apart by id and not by case: the coarser group is checked as well."""
    dataset = make_official_dataset()
    split = make_split(dataset, SplitConfig("official", "slide81", seed=2))
    train, validation, _ = patients_of_subsets(dataset, split, "case70")
    assert train & validation  # or this test shows nothing
    policy = dataclasses.replace(split.policy, validation_group="case70")
    dataclasses.replace(split, policy=policy).save(tmp_path / "split.json")
    with pytest.raises(InputError, match="is in both train and validation"):
        load_split(tmp_path / "split.json", dataset)


def test_official_folds_are_for_breakhis_only():
    config = SplitConfig(policy="official")
    other = dataset_of_names(["SOB_B_A-14-1-40-001.png", "SOB_M_DC-14-2-40-001.png"])
    with pytest.raises(InputError, match="is not one of BreakHis's 82 ids"):
        make_split(other, config)
    with pytest.raises(InputError, match="not for made"):
        make_split(make_patients(5, 5), config)


def test_a_subset_without_a_class_is_refused():
    ids = ("B_A-14-22549G", "B_F-14-25197", "B_F-14-14134", "M_DC-14-2773", "M_DC-14-5695")
    dataset = dataset_of_names(f"SOB_{name}-40-001.png" for name in ids)
    with pytest.raises(InputError, match="test subset of breakhis has no image of class 'malig"):
        make_split(dataset, SplitConfig(policy="official", fold=1))


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


# --- given


def test_given_subsets_are_kept_and_checked():
    dataset = make_patients(6, 6, images=2)
    stated = np.where(np.char.endswith(dataset.patients("patient"), "0"), "test", "train")
    dataset = dataclasses.replace(dataset, columns={"split": stated})
    config = by_patient(policy="given")
    split = make_split(dataset, config)
    np.testing.assert_array_equal(split.test, np.flatnonzero(stated == "test"))
    assert len(split.validation) == 4
    stated[1] = "train"  # an image of a patient who is tested
    with pytest.raises(InputError, match="patient 0-0 is in both"):
        make_split(dataset, config)
    stated[:] = "train"
    with pytest.raises(InputError, match="no images for test, only for train"):
        make_split(dataset, config)


def test_given_needs_data_that_states_its_subsets():
    with pytest.raises(InputError, match="made does not state its subsets"):
        make_split(make_patients(6, 6), by_patient(policy="given"))


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
