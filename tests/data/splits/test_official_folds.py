import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from densenet_flax.common.errors import InputError
from densenet_flax.data.breakhis import folds, names
from densenet_flax.data.breakhis.name_list import dataset_of_names, list_file_names
from densenet_flax.data.splits.policies import make_split
from densenet_flax.data.splits.split import load_split
from densenet_flax.data.splits.split_config import SplitConfig
from tests.data.splits.datasets import (
    assert_patients_apart,
    make_official_dataset,
    make_patients,
    patients_of_subsets,
)


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
