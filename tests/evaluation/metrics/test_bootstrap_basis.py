import numpy as np
import pytest

from densenet_flax.evaluation.metrics.bootstrap import Basis, Bootstrap, basis_of, one_class_basis
from densenet_flax.evaluation.metrics.sample import sample_of


def test_two_classes_rest_on_the_rarer_class_that_a_metric_looks_at(random_table):
    table = random_table(0)  # 4 benign and 8 malignant patients
    sample, names = sample_of(table), table.class_names
    assert basis_of(sample, "sensitivity", names) == Basis(8)
    assert basis_of(sample, "specificity", names) == Basis(4)
    for name in ("accuracy", "roc_auc", ""):
        assert basis_of(sample, name, names) == Basis(4)


def test_one_patient_cannot_be_resampled(hand, several):
    benign = basis_of(sample_of(hand), "accuracy", hand.class_names)
    assert benign.reason == "only one benign patient, and one cannot be resampled"
    assert basis_of(sample_of(hand), "sensitivity", hand.class_names) == Basis(2)
    mixed = hand.select(np.isin(hand.patient, ["a", "b"]))
    object.__setattr__(mixed, "patient", np.array(["x"] * 6))
    reason = basis_of(sample_of(mixed), "accuracy", hand.class_names).reason
    assert reason == "only one patient with images of both classes, and one cannot be resampled"
    table = several(0)
    alone = sample_of(table.select(table.patient == "p0"))
    for basis in (
        basis_of(alone, "accuracy", table.class_names),
        one_class_basis(alone, "recall", table.class_names, 0),
    ):
        assert basis.reason == "only one patient, and one cannot be resampled"


def test_a_class_with_one_patient_has_a_reason(several):
    table = several(0)
    table = table.select(~np.isin(table.patient, ["p4", "p8", "p12"]))
    sample, names = sample_of(table), table.class_names
    reason = "only one adenosis patient, and one cannot be resampled"
    assert basis_of(sample, "macro_f1", names).reason == reason
    assert one_class_basis(sample, "recall", names, 0).reason == reason
    assert basis_of(sample, "accuracy", names).reason == ""
    assert one_class_basis(sample, "recall", names, 1) == Basis(4)
    # Against the rest the rarer of the two counts, here a class with 4 of 5 patients.
    pair = sample_of(table.select(np.isin(table.patient, ["p0", "p1", "p5", "p9", "p13"])))
    assert one_class_basis(pair, "recall", names, 1) == Basis(4)
    others = "only one patient of the other classes, and one cannot be resampled"
    assert one_class_basis(pair, "precision", names, 1).reason == others
    few = sample_of(table.select(np.isin(table.patient, ["p2", "p3", "p1", "p5", "p9", "p13"])))
    assert one_class_basis(few, "precision", names, 1) == Basis(2)


def test_several_classes_rest_on_the_patients_of_all(several):
    table = several(0)  # patients of each class: 4, 4, 3, 3
    sample = sample_of(table)
    recall = one_class_basis(sample, "recall", table.class_names, 2)
    assert (recall.patients, recall.freedom, recall.reason) == (3, None, "")
    pooled = basis_of(sample, "accuracy", table.class_names)
    assert pooled.patients == pytest.approx(14 / 4)
    assert 9 < pooled.freedom <= 10
    macro = basis_of(sample, "macro_f1", table.class_names)
    assert macro.patients < pooled.patients and macro.freedom < pooled.freedom
    # Groups of one size: the share that resampling misses is that of one group.
    same = sample_of(table.select(~np.isin(table.patient, ["p12", "p13"])))
    basis = basis_of(same, "macro_f1", table.class_names)
    assert basis.patients == pytest.approx(3) and basis.freedom == pytest.approx(4 * 2)
    assert Bootstrap().tail(Basis(3, 8)) > Bootstrap().tail(Basis(3))
