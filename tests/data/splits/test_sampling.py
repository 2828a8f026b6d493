import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from densenet_flax.common.errors import InputError
from densenet_flax.data.batching import epoch_order
from densenet_flax.data.splits.sampling import make_sampler
from tests.helpers.datasets import dataset_of_labels


def make_dataset(patients, labels):
    """A data set with an image for each patient and label."""
    groups = {"patient": np.array([f"p{patient}" for patient in patients])}
    return dataset_of_labels(labels, ("a", "b", "c", "d"), groups=groups)


@st.composite
def cases(draw):
    """Up to four classes, patients with one class or several, and some rows to train on."""
    n = draw(st.integers(1, 60))
    labels = draw(st.lists(st.integers(0, 3), min_size=n, max_size=n))
    patients = draw(st.lists(st.integers(0, 8), min_size=n, max_size=n))
    kept = draw(st.lists(st.booleans(), min_size=n, max_size=n).filter(any))
    return make_dataset(patients, labels), np.flatnonzero(kept), draw(st.integers(0, 99))


@given(cases(), st.integers(0, 20))
def test_shuffle_is_the_epoch_order(case, epoch):
    dataset, rows, seed = case
    sampler = make_sampler(dataset, rows, "shuffle", seed, group="patient")
    ids, views = sampler.epoch(epoch)
    np.testing.assert_array_equal(ids, rows[epoch_order(len(rows), seed, epoch)])
    assert (views == epoch).all() and sampler.repeats == 1 and sampler.size == len(rows)


@given(cases(), st.sampled_from(["class", "patient"]))
def test_every_class_comes_as_often_as_the_largest(case, sampling):
    dataset, rows, seed = case
    sampler = make_sampler(dataset, rows, sampling, seed, group="patient")
    largest = np.bincount(dataset.labels[rows]).max()
    for epoch in range(3):
        ids, views = sampler.epoch(epoch)
        assert ids.dtype == views.dtype == np.int32
        assert len(ids) == len(views) == sampler.size
        assert set(ids) <= set(rows.tolist())
        counts = np.bincount(dataset.labels[ids])
        assert set(counts[counts > 0]) == {largest}
        assert set(np.flatnonzero(counts)) == set(dataset.labels[rows])
        assert np.bincount(ids).max() <= sampler.repeats


@given(cases())
def test_images_of_a_class_come_equally_often(case):
    dataset, rows, seed = case
    sampler = make_sampler(dataset, rows, "class", seed, group="patient")
    ids, _ = sampler.epoch(4)
    for label in np.unique(dataset.labels[rows]):
        counts = np.bincount(ids, minlength=len(dataset))[rows[dataset.labels[rows] == label]]
        assert counts.min() >= 1 and counts.max() - counts.min() <= 1


@given(cases())
def test_patients_of_a_class_come_equally_often(case):
    dataset, rows, seed = case
    sampler = make_sampler(dataset, rows, "patient", seed, group="patient")
    counts = np.bincount(sampler.epoch(4)[0], minlength=len(dataset))
    patients = dataset.patients("patient")
    for label in np.unique(dataset.labels[rows]):
        in_class = rows[dataset.labels[rows] == label]
        counts_of_patients = [
            counts[in_class[patients[in_class] == patient]]
            for patient in np.unique(patients[in_class])
        ]
        sums = [int(each.sum()) for each in counts_of_patients]
        assert max(sums) - min(sums) <= 1
        assert all(each.max() - each.min() <= 1 for each in counts_of_patients)


@given(cases(), st.sampled_from(["shuffle", "class", "patient"]))
def test_no_view_of_an_image_comes_twice_in_a_run(case, sampling):
    dataset, rows, seed = case
    sampler = make_sampler(dataset, rows, sampling, seed, group="patient")
    seen = set()
    for epoch in range(4):
        ids, views = sampler.epoch(epoch)
        first, last = epoch * sampler.repeats, (epoch + 1) * sampler.repeats
        assert first <= views.min() and views.max() < last
        pairs = list(zip(ids.tolist(), views.tolist(), strict=True))
        assert len({*pairs}) == len(pairs) and not seen & {*pairs}
        seen |= {*pairs}
        for row in np.unique(ids):  # occurrences are counted in the order of the epoch
            np.testing.assert_array_equal(views[ids == row], first + np.arange((ids == row).sum()))


@given(cases(), st.sampled_from(["class", "patient"]))
def test_an_epoch_is_a_pure_function_of_seed_and_number(case, sampling):
    dataset, rows, seed = case
    one, other = (make_sampler(dataset, rows, sampling, seed, group="patient") for _ in range(2))
    late = one.epoch(3)
    for number in range(3):
        other.epoch(number)
    np.testing.assert_array_equal(late, other.epoch(3))


def test_the_most_repeats_happen_and_the_rest_differs_between_epochs():
    dataset = make_dataset(patients=[0] * 7 + [1, 2, 2], labels=[0] * 7 + [1, 1, 1])
    rows = np.arange(10)
    by_class = make_sampler(dataset, rows, "class", 0, group="patient")
    assert (by_class.size, by_class.repeats) == (14, 3)  # three images of class b, seven times
    by_patient = make_sampler(dataset, rows, "patient", 0, group="patient")
    assert (by_patient.size, by_patient.repeats) == (14, 4)  # one of the two patients, four times
    for sampler in (by_class, by_patient):
        counts = [np.bincount(sampler.epoch(epoch)[0], minlength=10) for epoch in range(30)]
        assert max(count.max() for count in counts) == sampler.repeats
        assert len({tuple(count) for count in counts}) > 1
    orders = {tuple(by_class.epoch(epoch)[0]) for epoch in range(5)}
    assert len(orders) == 5


def test_bad_input_is_named():
    dataset = make_dataset([0, 1], [0, 1])
    with pytest.raises(InputError, match=r"config\.sampling='rare': expected one of shuffle, cl"):
        make_sampler(dataset, np.arange(2), "rare", 0, group="patient")
    unknown = dataclasses.replace(dataset, patients_known=False)
    with pytest.raises(
        InputError, match=r"config\.sampling='patient': the patients of made are not known"
    ):
        make_sampler(unknown, np.arange(2), "patient", 0, group="patient")
    assert make_sampler(unknown, np.arange(2), "class", 0, group="patient").size == 2
