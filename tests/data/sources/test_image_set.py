"""What is taken as images, labels and patients, and the line that refuses what is not."""

import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from densenet_flax.common.errors import InputError
from densenet_flax.data.sources.image_set import image_set, number_labels
from densenet_flax.data.sources.tile_table import ColumnSettings

_X = np.random.default_rng(0).integers(0, 256, (4, 12, 10, 3)).astype(np.uint8)
_Y = [0, 1, 0, 1]


def _read(images=_X, labels=_Y, patients=None):
    return image_set(images, labels, patients, "images", ColumnSettings())


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (_X / 255, "values are from 0 to 1; use (x * 255).round().astype('uint8')"),
        ((_X / 255).astype(np.float16), "values are from 0 to 1"),
        (_X > 100, "values are from 0 to 1"),
        (_X.astype(np.float32) - 120, "preprocessed images; give them as they were before"),
        (_X.astype(np.float32), "use x.round().astype('uint8')"),
        (_X.astype(int), "use x.astype('uint8')"),
        (_X.astype(np.uint16) * 200, "scale them to 255"),
        (np.where(_X > 9, _X / 255, np.nan), "NaN"),
        ((_X / 255).astype(np.uint8), "no value is above 1"),
        (_X.transpose(0, 3, 1, 2), "channels come first here; use x.transpose(0, 2, 3, 1)"),
        (_X[..., 0], "use x[..., None].repeat(3, axis=-1)"),
        (_X[..., :1], "use x.repeat(3, axis=-1)"),
        (np.concatenate([_X, _X[..., :1]], -1), "use x[..., :3]"),
        (_X[0], "one image; use x[None]"),
        (_X[:, :4], "at least 8 pixels"),
        (_X.reshape(4, -1), "expected uint8 [H, W, 3]"),
        (_X[:0], "no images"),
        ([], "no images"),
        ("tiles", "one image; give a list"),
        ([_X[0] / 255], "image 0: float64 [12, 10, 3]"),
        ([_X[0].transpose(2, 0, 1)], "use x.transpose(1, 2, 0)"),
        ([("a.png", 1)], "image 0 is of type tuple"),
        (["a.png", "b.png", "a.png", "c.png"], "a.png: is given 2 times"),
    ],
)
def test_other_images_are_refused_with_what_to_do(images, words):
    with pytest.raises(ValueError, match=r"^images: ") as error:
        _read(images)
    assert isinstance(error.value, InputError) and words in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (np.eye(2)[_Y], "one-hot; use y.argmax(axis=1)"),
        (np.array(_Y)[:, None], "use y.ravel()"),
        (np.array(_Y, float), "use y.astype(int)"),
        ([0.0, np.nan, 1.0, 1.0], "label 1 is NaN"),
        (["no", None, "no", "yes"], "label 1 is None"),
        (pd.Series(["no", pd.NA, "no", "yes"], dtype="string"), "label 1 is <NA>"),
        (np.array(["no", 1, "no", "yes"], object), "some are numbers and some are names"),
        (_Y[:3], "3 labels for 4 images"),
        (None, "no labels"),
        (np.array(_Y) * 1j, "complex128"),
    ],
)
def test_other_labels_are_refused_with_what_to_do(labels, words):
    with pytest.raises(InputError, match=r"^images: ") as error:
        _read(labels=labels)
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("labels", "class_names", "words"),
    [
        ([0, 1, 2, 1], ("no", "yes"), "label 2: expected numbers from 0 to 1"),
        ([0, 1, -1, 1], (), "the numbers are -1, 0, 1"),
        ([1, 2, 1, 2], (), "without a gap"),
        ([1, 1, 1, 1], (), "without a gap"),
        ([0, 0, 0, 0], (), "all are 'class 0'"),
        (["no", "yse", "no", "no"], ("no", "yes"), "label 'yse': not one of"),
        (["no", "No", "yes", "no"], (), "differ only in spelling"),
    ],
)
def test_labels_that_are_no_classes(labels, class_names, words):
    with pytest.raises(InputError) as error:
        number_labels([_read(labels=labels)], class_names, "error")
    assert words in str(error.value)


def test_numbers_and_names_are_one_thing():
    for labels in (_Y, np.array(_Y, np.uint8), np.array(_Y, bool), jnp.array(_Y)):
        (numbers,), names = number_labels([_read(labels=labels)], (), "error")
        assert numbers.tolist() == _Y and names == ("class 0", "class 1")
    words = ["normal", "tumor", "normal", "tumor"]  # 'tumor' is looked for, so it is the second
    for labels in (words, np.array(words), pd.Series(words), pd.Categorical(words)):
        (numbers,), names = number_labels([_read(labels=labels)], (), "error")
        assert numbers.tolist() == _Y and names == ("normal", "tumor")
    with pytest.raises(InputError, match="give all in one form"):
        number_labels([_read(), _read(labels=words)], (), "error")


def test_patients():
    assert _read(patients=pd.Series([1.0, 1.0, 2.0, 30])).known["patient"] == ["1", "1", "2", "30"]
    for patients, words in (
        ([1, 2], "2 patients for 4 images"),
        ([1, None, 2, 3], "number 1 is None"),
        (pd.Series(["p1", pd.NA, "p2", "p3"], dtype="string"), "number 1 is <NA>"),
        (["a", "b", " ", "c"], "number 2 is ' '"),
        (np.ones((4, 2)), "of shape"),
    ):
        with pytest.raises(InputError, match=words):
            _read(patients=patients)


def test_a_table():
    table = pd.DataFrame(
        {"Image": ["b.png", "a.png"], "diagnosis": ["x", "y"], "case_id": [7, 8], "other": 0}
    )
    images = _read(table, None)
    assert list(images.images) == ["b.png", "a.png"] and images.labels.tolist() == ["x", "y"]
    assert images.known == {"patient": ["7", "8"]}
    for changed, words in (
        (table.drop(columns="diagnosis"), "has no column 'label'"),
        (table.assign(diagnosis=["x", None]), "label 1 is nan"),
        (table.assign(split=["train", "fold_2"]), "split 'fold_2'"),
    ):
        with pytest.raises(InputError, match=words):
            _read(changed, None)
    with pytest.raises(InputError, match="give nothing else"):
        _read(table, [0, 1])


def test_rows_of_files_and_of_pixels():
    images = _read(["~/b.png", Image.fromarray(_X[0]), _X[1], b"png"], patients=list("abcd"))
    rows = images.rows("train", images.labels)
    assert [row["file"] for row in rows] == ["~/b.png", *(f"train/00000{i}" for i in (1, 2, 3))]
    assert rows[0]["source"].endswith("/b.png") and "~" not in rows[0]["source"]
    assert not any("source" in row for row in rows[1:])
    assert [row["patient"] for row in rows] == ["a", "b", "c", "d"]
