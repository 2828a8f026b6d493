"""More than two classes, against scikit-learn."""

import json
from dataclasses import replace

import numpy as np
import pytest
from sklearn import metrics as sk

from densenet_flax.common.errors import InputError
from densenet_flax.evaluation import evaluate
from densenet_flax.evaluation.metrics.basis import basis_of, one_class_basis
from densenet_flax.evaluation.metrics.bootstrap import Basis, Bootstrap, draw_patients, strata
from densenet_flax.evaluation.metrics.intervals import intervals
from densenet_flax.evaluation.metrics.metric_set import image_values, patient_values
from densenet_flax.evaluation.metrics.multiclass import METRICS, PER_CLASS
from densenet_flax.evaluation.metrics.point_metrics import image_metrics, patient_metrics
from densenet_flax.evaluation.metrics.sample import sample_of

K = range(4)


def by_scikit_learn(y, p, called):
    return {
        "accuracy": sk.accuracy_score(y, called),
        "balanced_accuracy": sk.balanced_accuracy_score(y, called),
        "macro_f1": sk.f1_score(y, called, average="macro"),
        "mcc": sk.matthews_corrcoef(y, called),
        "kappa": sk.cohen_kappa_score(y, called),
        "macro_roc_auc": sk.roc_auc_score(y, p, multi_class="ovr", average="macro"),
        "top2_accuracy": sk.top_k_accuracy_score(y, p, k=2),
    }


def of_each_class(y, p, called):
    precision, recall, f1, count = sk.precision_recall_fscore_support(y, called, labels=K)
    found = {"precision": precision, "recall": recall, "f1": f1}
    found["roc_auc"] = [sk.roc_auc_score(y == k, p[:, k]) for k in K]
    found["pr_auc"] = [sk.average_precision_score(y == k, p[:, k]) for k in K]
    return found, count


def rows_of(table, row):
    """The rows of every drawn patient, copied as often as the patient was drawn."""
    names = np.unique(table.patient)
    return np.concatenate(
        [
            np.tile(np.flatnonzero(table.patient == name), int(times))
            for name, times in zip(names, row, strict=True)
        ]
    )


@pytest.mark.parametrize("seed", range(3))
def test_points(several, seed):
    table = several(seed)
    y, p, called = table.label, table.probability, table.prediction
    assert np.array_equal(called, p.argmax(axis=1))
    found = evaluate(table)
    for name, value in by_scikit_learn(y, p, called).items():
        assert found["image"][name] == pytest.approx(value, abs=1e-12), name
    assert found["image"]["confusion"] == sk.confusion_matrix(y, called).tolist()
    expected, count = of_each_class(y, p, called)
    for k, row in enumerate(found["by_class"]):
        assert row["class"] == table.class_names[k] and row["n"] == count[k]
        assert row["patients"] == len(np.unique(table.patient[y == k]))
        assert row["called"] == np.sum(called == k) and row["undefined"] == {}
        for name in PER_CLASS:
            assert row[name] == pytest.approx(expected[name][k], abs=1e-12), name


def test_patients_are_judged_by_their_mean(several):
    table = several(0)
    names = np.unique(table.patient)
    mean = np.array([table.probability[table.patient == name].mean(axis=0) for name in names])
    truth = np.array([table.label[table.patient == name][0] for name in names])
    found = patient_metrics(table)
    expected = by_scikit_learn(truth, mean, mean.argmax(axis=1))
    assert found["patient_accuracy_by_mean_probability"] == pytest.approx(expected.pop("accuracy"))
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=1e-12), name
    right = table.prediction == table.label
    rates = [right[table.patient == name].mean() for name in names]
    assert found["patient_recognition_rate"] == pytest.approx(np.mean(rates))


def test_resamples_against_a_loop(several):
    table = several(1, n=120)
    sample = sample_of(table)
    weights = draw_patients(strata(sample), 12, 3)
    found = image_values(sample, weights)
    for i, row in enumerate(weights):
        rows = rows_of(table, row)
        y, p, called = table.label[rows], table.probability[rows], table.prediction[rows]
        for name, value in by_scikit_learn(y, p, called).items():
            assert found[name][i] == pytest.approx(value, abs=1e-12), name
        expected, _ = of_each_class(y, p, called)
        for k in K:
            for name in PER_CLASS:
                if called.tolist().count(k):
                    assert found[name][i, k] == pytest.approx(expected[name][k], abs=1e-12), name
    once = patient_values(sample, np.ones((1, weights.shape[1])))
    for name, values in once.items():
        assert values[0] == pytest.approx(patient_metrics(table)[name], abs=1e-12), name


def test_ties_are_counted_half(several):
    table = several(2)
    rounded = np.round(table.probability, 1)
    rounded[:, 0] += 1 - rounded.sum(axis=1)
    table = replace(table, probability=np.clip(rounded, 0, 1))
    sample = sample_of(table)
    found = image_values(sample, np.ones((1, len(sample.patient.label))))
    expected = sk.roc_auc_score(table.label, table.probability, multi_class="ovr")
    assert image_metrics(table)["macro_roc_auc"] == pytest.approx(expected, abs=1e-12)
    assert found["macro_roc_auc"][0] == pytest.approx(expected, abs=1e-12)


def test_what_does_not_exist_has_a_reason(several):
    table = several(0)
    without = image_metrics(table.select(table.label != 2))
    for name in ("balanced_accuracy", "macro_f1", "macro_roc_auc"):
        assert without[name] is None
        assert without["undefined"][name] == "no ductal_carcinoma images"
    assert all(without[name] is not None for name in ("accuracy", "mcc", "kappa", "top2_accuracy"))
    alone = image_metrics(table.select(table.label == 1))
    assert alone["mcc"] is None and alone["undefined"]["kappa"] == "all images are fibroadenoma"
    sure = np.tile([0.7, 0.1, 0.1, 0.1], (len(table), 1))
    same = image_metrics(replace(table, probability=sure))
    assert same["mcc"] is None and same["kappa"] == 0
    rows = evaluate(replace(table, probability=sure))["by_class"]
    assert rows[1]["precision"] is None
    assert rows[1]["undefined"]["precision"] == "no images predicted fibroadenoma"


def test_a_patient_of_several_classes(several):
    table = several(0)
    mixed = replace(table, patient=np.where(table.patient == "p1", "p0", table.patient))
    found = patient_metrics(mixed)
    assert found["n_by_class"]["several"] == 1 and found["kappa"] is None
    assert found["undefined"]["mcc"] == "1 of 13 patients have images of several classes"
    assert found["patient_recognition_rate"] > 0
    drawn = intervals(mixed, Bootstrap(50))
    assert drawn["patient"]["patient_recognition_rate"] is not None
    assert {row["class"] for row in evaluate(mixed)["by_patient"]} >= {"several"}


def test_every_metric_has_an_interval_around_it(several):
    table = several(1)
    found, points = intervals(table, Bootstrap(400)), evaluate(table)
    assert found["resamples_without_a_class"] == 0
    assert [row["magnification"] for row in found["by_magnification"]] == [40, 100]
    assert found["by_subtype"] == points["by_subtype"] == []  # the classes say it all
    for name in METRICS:
        assert found["image"][name]["low"] < points["image"][name] < found["image"][name]["high"]
    for span, row in zip(found["by_class"], points["by_class"], strict=True):
        for name in PER_CLASS:
            assert span[name]["low"] < row[name] < span[name]["high"]
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert intervals(table, Bootstrap(400)) == found != intervals(table, Bootstrap(400, seed=1))


def test_a_class_with_one_patient(several):
    """Its recall and the means over classes have no interval; the rest still does."""
    table = several(0)
    table = table.select(~np.isin(table.patient, ["p4", "p8", "p12"]))
    sample = sample_of(table)
    assert np.sum(sample.patient.label == 0) == 1
    # He is drawn with the smallest other class, so that he is not in every resample.
    weights = draw_patients(strata(sample), 400, 0)
    assert weights[:, sample.patient.label == 0].mean() > 0 and weights[:, 0].std() > 0
    found = intervals(table, Bootstrap(200))
    reason = "only one adenosis patient, and one cannot be resampled"
    assert found["image"]["undefined"]["macro_f1"] == reason
    assert found["by_class"][0]["undefined"]["recall"] == reason
    assert found["image"]["accuracy"] and found["by_class"][1]["recall"]


def test_how_many_patients_a_metric_rests_on(several):
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


def test_intervals_cover_the_truth_with_few_patients_of_each_class():
    """Plain percentiles hold the truth too rarely where a class has four patients."""
    from tests.evaluation.conftest import table

    rng, hits, plain, sets = np.random.default_rng(0), 0, 0, 150
    patient_label = np.repeat(np.arange(4), 4)
    for i in range(sets):
        rate = np.clip(rng.normal(0.7, 0.15, 16), 0, 1)  # of each patient; 0.7 on average
        patient = np.repeat(np.arange(16), 10)
        label = patient_label[patient]
        right = rng.random(160) < rate[patient]
        called = np.where(right, label, (label + 1) % 4)
        made = table(
            label=label,
            patient=patient.astype(str),
            probability=np.eye(4)[called],
            class_names=tuple("abcd"),
        )
        sample = sample_of(made)
        values = image_values(sample, draw_patients(strata(sample), 400, i), ("accuracy",))
        basis = basis_of(sample, "accuracy", "abcd")
        span = Bootstrap().interval(values["accuracy"], basis)
        hits += span["low"] <= 0.699 <= span["high"]
        low, high = np.quantile(values["accuracy"], [0.025, 0.975])
        plain += low <= 0.699 <= high
    assert hits / sets >= 0.9 and hits > plain


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"threshold": 0.3}, "threshold is 0.3, but there are 4 classes"),
        ({"probability": np.full((200, 3), 1 / 3)}, r"shape \(200, 3\).* there are 4 classes"),
        ({"probability": np.full((200, 4), 0.3)}, "adds up to 1.2"),
        ({"probability": np.full((200, 4), np.nan)}, "is nan"),
        ({"label": np.full(200, 4)}, "label of 'image0.png' is 4; expected 0 to 3"),
    ],
)
def test_a_table_that_contradicts_itself_is_refused(several, change, message):
    with pytest.raises(InputError, match=message):
        replace(several(0), **change)
