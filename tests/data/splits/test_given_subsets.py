import dataclasses

import numpy as np
import pytest

from densenet_flax.common.errors import InputError
from densenet_flax.data.data_summary import summarize
from densenet_flax.data.dataset import Provenance
from densenet_flax.data.splits.policies import make_split
from tests.data.splits.datasets import by_patient, make_dataset, make_patients


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
