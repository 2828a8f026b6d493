"""What comes out for more than two classes: files, sentences, commands."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
from sklearn import metrics as sk

from densenet_flax.common.errors import InputError
from densenet_flax.evaluation import (
    OperatingPoint,
    Predictions,
    choose_operating_point,
    compare,
    cross_validation_summary,
    pool,
    read_csv,
    verdict,
    write_report,
)
from densenet_flax.evaluation.__main__ import main
from densenet_flax.evaluation.metrics.calibration import calibration_metrics
from densenet_flax.evaluation.metrics.temperature import calibrate, nll_per_image
from densenet_flax.evaluation.report import multiclass_figures, plotting

PNG = plotting.png  # the true one, see quick_figures


@pytest.fixture
def both(several):
    return several(0), several(1, tag="v")


def test_csv_round_trip_is_exact(both, tmp_path):
    table = choose_operating_point(both[1]).apply(both[0])
    table.write_csv(tmp_path / "p.csv")
    header = (tmp_path / "p.csv").read_text().splitlines()[0].split(",")
    assert "probability_adenosis" in header and "calibrated_lobular_carcinoma" in header
    assert "threshold" not in header and "probability" not in header
    for names in (None, table.class_names):
        again = read_csv(tmp_path / "p.csv", names)
        assert again.class_names == table.class_names
        assert np.array_equal(again.probability, table.probability)
        assert np.array_equal(again.calibrated, table.calibrated)
        assert np.array_equal(again.label, table.label)
    # The order of the classes is the reader's to choose.
    turned = read_csv(tmp_path / "p.csv", table.class_names[::-1])
    assert np.array_equal(turned.probability, table.probability[:, ::-1])
    with pytest.raises(InputError, match="probability_lobular_carcinoma belongs to no class"):
        read_csv(tmp_path / "p.csv", table.class_names[:3])
    with pytest.raises(InputError, match="no column probability_x"):
        read_csv(tmp_path / "p.csv", (*table.class_names, "x"))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("a,p,40,x,0.2,0.3,0.5,z", "row 1 predicts 'z', but the likeliest class is y"),
        ("a,p,40,x,0.2,0.3,0.6,y", "adds up to 1.1"),
        ("a,p,40,w,0.2,0.3,0.5,y", "label 'w'; expected x or z or y"),
        ("a,p,40,x,0.2,?,0.5,y", "probability_z '[?]'"),
    ],
)
def test_a_bad_file_is_named(tmp_path, row, message):
    path = tmp_path / "p.csv"
    head = "file,patient,magnification,label,probability_x,probability_z,probability_y,prediction"
    path.write_text(f"{head}\n{row}\n")
    with pytest.raises(InputError, match=message) as error:
        read_csv(path)
    assert str(path) in str(error.value)


def test_two_columns_of_two_classes(tmp_path):
    """As a network gives them, and as another tool may write them."""
    head = "file,patient,magnification,label,probability_x,probability_y"
    (tmp_path / "p.csv").write_text(f"{head}\na,p,40,x,0.25,0.75\nb,q,40,y,0.5,0.5\n")
    table = read_csv(tmp_path / "p.csv")
    assert table.class_names == ("x", "y") and table.probability.tolist() == [0.75, 0.5]
    columns = {name: getattr(table, name) for name in table.__dataclass_fields__}
    again = Predictions(**{**columns, "probability": [[0.25, 0.75], [0.5, 0.5]]})
    assert np.array_equal(again.probability, table.probability)


def test_calibration(several):
    table = several(0, n=4000, patients=200)
    flat = replace(table, probability=calibrate(table.probability, 2.0))
    # Softer by 2 than the truth would have it: twice the temperature that the true ones have.
    true, found = choose_operating_point(table), choose_operating_point(flat)
    assert found.temperature == pytest.approx(true.temperature / 2, rel=1e-3)
    best = nll_per_image(table.label, np.log(calibrate(table.probability, true.temperature))).mean()
    for other in (0.97, 1.03):
        worse = calibrate(table.probability, true.temperature * other)
        assert nll_per_image(table.label, np.log(worse)).mean() > best
    measured = calibration_metrics(table.label, table.probability)
    assert measured["nll"] == pytest.approx(sk.log_loss(table.label, table.probability))
    truth = np.eye(4)[table.label]
    assert measured["brier"] == pytest.approx(((table.probability - truth) ** 2).sum(1).mean())
    top, right = table.probability.max(1), table.prediction == table.label
    index = np.minimum((top * 15).astype(int), 14)
    gaps = [abs(top[index == b].sum() - right[index == b].sum()) for b in range(15)]
    assert measured["ece_top_label"] == pytest.approx(sum(gaps) / len(table))
    assert "ece" not in measured
    point = found.apply(flat)
    assert point.calibrated.sum(axis=1) == pytest.approx(np.ones(len(flat)))
    assert np.array_equal(point.prediction, flat.prediction)


def test_there_is_no_threshold(both):
    table, validation = both
    with pytest.raises(InputError, match="there are 4 classes"):
        choose_operating_point(validation, "youden")
    point = choose_operating_point(validation)
    values = json.loads(json.dumps(point.to_dict()))
    assert values["threshold"] is None and values["rule"] == "likeliest class"
    assert OperatingPoint.from_dict(values) == point
    assert np.array_equal(point.decide(table.probability), table.prediction)


def test_the_report(both, tmp_path, monkeypatch):
    table, validation = both
    info = {"split": {"patient_disjoint": True}}
    result = write_report(tmp_path, table, [], info, validation=validation, resamples=200)
    names = ("confusion_matrix", "confusion_matrix_patients", "reliability", "roc")
    assert {path.name for path in tmp_path.iterdir()} == {
        "metrics.json",
        "predictions.csv",
        "report.html",
        "MODEL_CARD.md",
        *(f"{name}.{kind}" for name in names for kind in ("png", "pdf")),
    }
    assert json.loads((tmp_path / "metrics.json").read_text()) == result
    assert result["threshold"] is None and result["positive_class"] is None
    text = re.sub("<[^>]*>", " ", (tmp_path / "report.html").read_text())
    accuracy = result["image"]["accuracy"]
    assert verdict(result).startswith(f"Accuracy {accuracy:.2f} over 4 classes (95% interval ")
    assert "never seen in training" in text and "The likeliest of 4 classes is predicted" in text
    assert "Few patients: 4 adenosis, 4 fibroadenoma, 3 ductal carcinoma and 3 lobular" in text
    for said in ("Macro F1", "kappa", "By class", "Top-2", "log-loss", "200 resamples"):
        assert said in text
    for unsaid in (
        "hreshold",
        "P(fibroadenoma)",
        "positive",
        "sensitivity",
        "one class only",
        "called",
    ):
        assert unsaid not in text, unsaid
    assert not re.search(r"\b(nan|none)\b", text.lower())
    card = (tmp_path / "MODEL_CARD.md").read_text()
    assert "The likeliest class is predicted." in card and "By class, each against the rest" in card
    assert "P of 4 classes; threshold: none, the likeliest class is predicted" in card
    assert "| Macro ROC-AUC |" in card


def test_two_classes_after_several_leave_no_old_pictures(both, hand, tmp_path, quick_figures):
    write_report(tmp_path, both[0], resamples=20)
    write_report(tmp_path, hand, resamples=20)
    assert not (tmp_path / "confusion_matrix_patients.png").exists()
    write_report(tmp_path, both[0], resamples=20)
    assert not (tmp_path / "patients.png").exists()


def test_a_missing_class_and_no_better_than_guessing_are_said(both, tmp_path, quick_figures):
    table = both[0].select(both[0].label != 3)
    result = write_report(tmp_path, table, resamples=50)
    assert any("no lobular_carcinoma images here" in line for line in result["warnings"])
    always = np.tile([0.4, 0.2, 0.2, 0.2], (len(table), 1))
    result = write_report(tmp_path, replace(table, probability=always), resamples=50)
    assert any("is no better than predicting" in line for line in result["warnings"])


def test_the_matrix_is_drawn_for_any_number_of_classes():
    for classes in (3, 8, 30):
        counts = np.eye(classes, dtype=int) * 7
        counts[0, 1] = 3
        names = [f"a_rather_long_name_of_class_${i}$" for i in range(classes)]
        figure = multiclass_figures.confusion_matrix(counts.tolist(), names, "images")
        texts = [text.get_text() for text in figure.axes[0].texts]
        assert texts.count("7") == classes and texts.count("3") == 1
        assert ("70%" in texts and "30%" in texts) == (classes <= 12)
        PNG(figure, dpi=50)


def test_commands(both, several, tmp_path, capsys, quick_figures):
    table, validation = both
    better = replace(table, probability=0.7 * table.probability + 0.3 * np.eye(4)[table.label])
    paths = {}
    for name, one in (("a", table), ("b", better), ("v", validation), ("w", several(2, tag="w"))):
        paths[name] = str(tmp_path / f"{name}.csv")
        one.write_csv(paths[name])
    quick = ["--resamples", "60"]
    assert main(["compare", paths["a"], paths["b"], *quick]) == 0
    text = capsys.readouterr().out
    assert "(likeliest class)" in text and "macro_f1" in text
    found = compare(table, better, 60)
    assert found["thresholds"] is None and found["image"]["accuracy"]["difference"] > 0
    assert main(["folds", paths["v"], paths["w"], *quick]) == 0
    assert "macro_roc_auc" in capsys.readouterr().out
    summary = cross_validation_summary([validation, several(2, tag="w")], resamples=60)
    folds = [row["image"]["kappa"] for row in summary["folds"]]
    assert summary["mean"]["image"]["kappa"]["mean"] == pytest.approx(np.mean(folds))
    pooled = pool([validation, several(2, tag="w")])
    assert summary["pooled"]["image"]["accuracy"] == np.mean(pooled.prediction == pooled.label)
    out = str(tmp_path / "out")
    assert main(["report", paths["a"], out, "--validation", paths["v"], *quick]) == 0
    assert "over 4 classes" in capsys.readouterr().out
    assert main(["report", paths["a"], out, "--validation", paths["v"], "--rule", "youden"]) == 1
    assert "there are 4 classes" in capsys.readouterr().err
