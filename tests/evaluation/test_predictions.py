import os
from dataclasses import replace

import numpy as np
import pytest

from densenet_flax.common.errors import InputError
from densenet_flax.evaluation import Predictions, read_csv
from densenet_flax.storage.atomic import replace_files

COLUMNS = ("file", "patient", "subtype", "magnification", "slide", "label", "probability")


def same(a: Predictions, b: Predictions) -> bool:
    return (
        all(np.array_equal(getattr(a, name), getattr(b, name)) for name in COLUMNS)
        and a.class_names == b.class_names
        and a.threshold == b.threshold
    )


def test_a_probability_at_the_threshold_is_positive(make):
    table = make(label=[0, 0, 0], probability=[0.7, np.nextafter(0.7, 0), 0.8], threshold=0.7)
    assert table.prediction.tolist() == [1, 0, 1]


def test_csv_round_trip_is_exact(make, tmp_path):
    rng = np.random.default_rng(0)
    hostile = [
        'a,"b".png',
        "line\nbreak.png",
        "return\r<b>é中.png",
        os.fsdecode(b"\xff.png"),
        "=1+1",
    ]
    table = make(
        file=hostile,
        patient=["1e5", "007", "nan", "x", "y"],
        slide=["", "22549AB", "s", "s", "s"],
        subtype=["adenosis", "", "", "", ""],
        magnification=[40, 100, 200, 400, 0],
        label=[0, 1, 0, 1, 1],
        probability=[*rng.random(3), 1 / 3, 5e-324],
        threshold=0.1 + 0.2,
    )
    path = tmp_path / "predictions.csv"
    table.write_csv(path)
    assert same(read_csv(path), table)
    names = ("normal", "tumour")
    other = Predictions(**{n: getattr(table, n) for n in COLUMNS}, class_names=names)
    other.write_csv(path)
    assert same(read_csv(path, class_names=names), other)


def test_the_calibrated_column_is_kept_and_changes_no_decision(hand, tmp_path):
    done = replace(hand, calibrated=hand.probability / 3)
    done.write_csv(tmp_path / "p.csv")
    again = read_csv(tmp_path / "p.csv")
    assert same(again, done) and np.array_equal(again.calibrated, done.calibrated)
    assert np.array_equal(done.prediction, hand.prediction)  # decisions never look at it
    part = done.select(hand.patient == "c")
    assert part.calibrated.tolist() == [0.6 / 3, 0.5 / 3]
    hand.write_csv(tmp_path / "p.csv")
    assert "calibrated" not in (tmp_path / "p.csv").read_text()
    assert read_csv(tmp_path / "p.csv").calibrated is None
    for bad, message in (([0.5] * 7, "'calibrated' has shape"), ([2.0] * 8, "calibrated of")):
        with pytest.raises(InputError, match=message):
            replace(hand, calibrated=bad)


def test_csv_holds_names_not_indices(hand, tmp_path):
    hand.write_csv(tmp_path / "p.csv")
    first, second = (tmp_path / "p.csv").read_text().splitlines()[:2]
    row = dict(zip(first.split(","), second.split(","), strict=True))
    assert row["label"] == "benign" and row["prediction"] == "benign"
    assert row["probability"] == "0.1" and row["patient"] == "a" and row["magnification"] == "40"


def test_columns_may_be_unknown(tmp_path):
    table = Predictions(file=["a", "b"], patient=["p", "q"], label=[0, 1], probability=[0.1, 0.9])
    explicit = replace(table, subtype=["", ""], magnification=[0, 0], slide=["", ""])
    assert same(table, explicit) and table.to_csv() == explicit.to_csv()
    table.write_csv(tmp_path / "p.csv")
    assert same(read_csv(tmp_path / "p.csv"), table)
    assert same(replace(table, subtype=None, magnification=None, slide=None), table)
    assert same(table.select(np.array([1, 0])).select(np.array([1, 0])), table)


def test_a_minimal_table_of_another_tool_can_be_read(tmp_path):
    path = tmp_path / "p.csv"
    path.write_text(
        "probability,label,magnification,patient,file\n0.25,benign,40,p,a\n0.5,malignant,40,q,b\n"
    )
    table = read_csv(path)
    assert table.threshold == 0.5 and table.prediction.tolist() == [0, 1]
    assert table.slide.tolist() == ["", ""]
    assert read_csv(path, threshold=0.2).prediction.tolist() == [1, 1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,patient,label\na,p,benign\n", "no column magnification, probability"),
        ("file,patient,magnification,label,probability\n", "empty"),
        (
            "file,patient,magnification,label,probability,probability\na,p,40,benign,0.1,0.9\n",
            "column 'probability' occurs 2 times",
        ),
        ("", "no column"),
        ("file,patient,magnification,label,probability\na,p,40,cancer,0.1\n", "label 'cancer'"),
        ("file,patient,magnification,label,probability\na,p,40,benign,x\n", "probability 'x'"),
        ("file,patient,magnification,label,probability\na,p,40,benign,nan\n", "'a' is nan"),
        ("file,patient,magnification,label,probability\na,p,40,benign,1.1\n", "'a' is 1.1"),
        ("file,patient,magnification,label,probability\na,p,4x,benign,0.1\n", "'4x'"),
        ("file,patient,magnification,label,probability\na,p,40\n", "row 1 does not have 5"),
        ("file,patient,magnification,label,probability\na,p,40,benign,1,2\n", "row 1 does not"),
        (
            "file,patient,magnification,label,probability\n"
            "a,p,40,benign,0.1\nb,p,40,benign,0.1\na,p,40,benign,0.2\n",
            "'a' occurs 2 times",
        ),
        (
            "file,patient,magnification,label,probability,prediction\n"
            "a,p,40,benign,0.1,benign\nb,p,40,benign,0.6,benign\n",
            "row 2 predicts 'benign'",
        ),
        (
            "file,patient,magnification,label,probability,threshold\n"
            "a,p,40,benign,0.1,0.5\nb,p,40,benign,0.6,0.4\n",
            "2 thresholds",
        ),
    ],
)
def test_errors_name_the_file_and_what_is_wrong(tmp_path, text, message):
    path = tmp_path / "p.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=message) as error:
        read_csv(path)
    assert str(path) in str(error.value)


def test_an_error_names_a_missing_file(tmp_path):
    with pytest.raises(InputError, match=r"absent\.csv: cannot be read"):
        read_csv(tmp_path / "absent.csv")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": [0, 2]}, "label of 'image1.png' is 2"),
        ({"label": [], "probability": []}, "empty"),
        ({"probability": [0.5]}, "'probability' has shape"),
        ({"class_names": ("a", "a")}, "two different names"),
        ({"class_names": ("a",)}, "two different names"),
        ({"class_names": ("a", "b", "c")}, "'probability' has shape .* there are 3 classes"),
        ({"threshold": 1.5}, "threshold is 1.5"),
        ({"file": ["x", "x"]}, "'x' occurs 2 times"),
    ],
)
def test_a_table_that_contradicts_itself_is_rejected(make, change, message):
    with pytest.raises(InputError, match=message):
        make(**{"label": [0, 1], "probability": [0.1, 0.9], **change})


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
def test_a_table_of_four_classes_that_contradicts_itself_is_rejected(several, change, message):
    with pytest.raises(InputError, match=message):
        replace(several(0), **change)


def test_a_table_with_a_column_of_another_length_is_rejected(hand):
    columns = {name: getattr(hand, name) for name in COLUMNS}
    with pytest.raises(InputError, match="'slide' has shape"):
        Predictions(**{**columns, "slide": []})


def test_select_keeps_the_rows_together(hand):
    part = hand.select(hand.patient == "b")
    assert part.probability.tolist() == [0.9, 0.2, 0.3, 0.4]
    assert part.label.tolist() == [1] * 4 and len(part) == 4


def test_replaced_files_are_all_new_or_all_old(tmp_path):
    replace_files(tmp_path, {"a": b"old", "b": b"old"})
    with pytest.raises(TypeError):
        replace_files(tmp_path, {"a": b"new", "b": "not bytes"})
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"a": b"old", "b": b"old"}


def test_an_unwritable_directory_is_an_input_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write here"):
        replace_files(tmp_path / "file" / "report", {"a": b""})
