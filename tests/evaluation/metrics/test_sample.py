from dataclasses import replace

import numpy as np

from densenet_flax.evaluation.metrics.sample import sample_of


def test_patients_are_gathered_by_hand(hand):
    sample = sample_of(hand)
    assert sample.patient_names.tolist() == ["a", "b", "c"]
    assert sample.patient.label.tolist() == [0, 1, 1]
    assert sample.images.tolist() == [2, 4, 2] and sample.correct.tolist() == [2, 1, 2]
    assert sample.images_by_class.tolist() == [[2, 0], [0, 4], [0, 2]]
    np.testing.assert_allclose(sample.patient.probability, [0.25, 0.45, 0.55])
    np.testing.assert_allclose(sample.recognition_rate, [1, 0.25, 1])
    assert sample.patient.predicted.tolist() == [0, 0, 1]
    assert sample.image.patient.tolist() == [0, 0, 1, 1, 1, 1, 2, 2]


def test_patients_of_several_classes_are_gathered(several):
    table = several(0)
    sample = sample_of(table)
    for i, name in enumerate(sample.patient_names):
        own = table.patient == name
        np.testing.assert_allclose(sample.patient.probability[i], table.probability[own].mean(0))
        assert sample.images_by_class[i].tolist() == [
            np.sum(table.label[own] == k) for k in range(4)
        ]
    assert sample.classes == 4 and sample.patients == 14


def test_a_patient_with_images_of_both_classes_has_no_label(hand):
    mixed = sample_of(replace(hand, patient=["a", "a", "a", "b", "b", "b", "c", "c"]))
    assert mixed.patient.label.tolist() == [-1, 1, 1]


def test_several_tables_keep_their_thresholds(make):
    a = make(label=[0, 1], probability=[0.4, 0.6], patient=["p", "q"], threshold=0.5)
    b = make(label=[1, 0], probability=[0.4, 0.2], patient=["p", "q"], threshold=0.3)
    sample = sample_of(a, b)
    assert sample.image.predicted.tolist() == [0, 1, 1, 0]
    assert sample.patient.predicted.tolist() == [0, 1, 1, 0]
    assert sample.image.patient.tolist() == [0, 1, 2, 3]
    assert sample.patient.label.tolist() == [0, 1, 1, 0]


def test_confusion_matrices_are_weighted(hand):
    sample = sample_of(hand)
    weights = np.array([[1.0, 1, 1], [0, 2, 0], [3, 0, 1]])
    expected = [[[2, 0], [3, 3]], [[0, 0], [6, 2]], [[6, 0], [0, 2]]]
    assert sample.image.confusion(weights).tolist() == expected
    assert sample.image.sum_by_patient(np.ones((8, 2))).tolist() == [[2, 2], [4, 4], [2, 2]]
