"""Images that a program handed over, from the folder where they are kept."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from densenet_flax.common.errors import InputError
from densenet_flax.data.data_config import DataConfig
from densenet_flax.data.loading import image_options, open_dataset
from densenet_flax.data.sources.arrays import check_same_images, write_subset
from densenet_flax.data.sources.image_set import image_set, number_labels
from densenet_flax.data.splits.policies import make_split
from densenet_flax.data.splits.split import load_split
from densenet_flax.data.splits.split_config import SplitConfig

_X = np.random.default_rng(0).integers(0, 256, (24, 40, 36, 3)).astype(np.uint8)
_Y = np.arange(24) % 2
_PATIENTS = [f"p{i // 4 * 2 + i % 2}" for i in range(24)]  # of two images each
_GIVEN = SplitConfig(policy="given", group="patient", validation_fraction=0.4)


@pytest.fixture
def config(tmp_path):
    return DataConfig(
        name="arrays",
        path=str(tmp_path / "data"),
        image_size=(32, 34),
        class_names=("no", "yes"),
    )


def _write(config, subset, rows, images=_X, patients=_PATIENTS):
    chosen = None if patients is None else [patients[row] for row in rows]
    given = image_set([images[row] for row in rows], _Y[rows], chosen, "images", config.columns)
    (numbers,), _ = number_labels([given], config.class_names, "error")
    write_subset(_root(config), subset, given, numbers, image_options(config))
    return given, numbers


def _root(config):
    return Path(config.path)


def test_subsets_lie_behind_each_other_and_are_indexed_as_one_array(config, tmp_path):
    _write(config, "validation", range(16, 20))
    _write(config, "train", range(16))
    dataset = open_dataset(config, tmp_path)
    assert dataset.files[[0, 15, 16]].tolist() == [
        "train/000000",
        "train/000015",
        "validation/000000",
    ]
    expected = np.stack(
        [np.asarray(Image.fromarray(image).resize((34, 32), Image.BILINEAR)) for image in _X[:20]]
    )
    for key in (3, -1, np.int64(17), slice(14, 18), [18, 2, 2], np.arange(20) % 3 == 0):
        assert np.array_equal(dataset.images[key], expected[key])
    assert dataset.images.shape == expected.shape and len(dataset.images) == 20
    assert dataset.labels.tolist() == _Y[:20].tolist() and dataset.patients_known
    assert dataset.groups["patient"].tolist() == _PATIENTS[:20]


def test_test_images_join_a_split_that_was_made_without_them(config, tmp_path):
    _write(config, "train", range(16))
    before = open_dataset(config, tmp_path)
    split = make_split(before, _GIVEN)
    assert not len(split.test) and len(split.validation)
    split.save(tmp_path / "split.json")
    for rows in (range(16, 20), range(18, 24)):
        _write(config, "test", rows)
        dataset = open_dataset(config, tmp_path)
        loaded = load_split(tmp_path / "split.json", dataset)
        assert loaded.test.tolist() == list(range(16, 16 + len(rows)))
        assert np.array_equal(loaded.train, split.train)
        assert np.array_equal(dataset.images[:16], before.images[:])
    _write(config, "test", range(14, 20))
    with pytest.raises(InputError, match=r"patient p. is in both .* and test.*leave"):
        load_split(tmp_path / "split.json", open_dataset(config, tmp_path))


def test_one_set_can_be_divided_by_another_policy(config, tmp_path):
    _write(config, "train", range(24))
    dataset = open_dataset(config, tmp_path)
    split = make_split(dataset, SplitConfig(policy="patient", group="patient"))
    assert len(split.train) and len(split.validation) and len(split.test)


@pytest.mark.parametrize(("with_patients", "unknown"), [("", "train and test"), ("train", "test")])
def test_without_patients_nothing_is_claimed(config, tmp_path, with_patients, unknown):
    for subset, rows in (("train", range(16)), ("test", range(16, 24))):
        _write(config, subset, rows, patients=_PATIENTS if subset == with_patients else None)
    dataset = open_dataset(config, tmp_path)
    assert not dataset.patients_known
    (note,) = dataset.notes
    assert note.startswith(f"patients of the {unknown} images are not given")
    assert dataset.groups["patient"][-1] == "test/000007"
    assert (dataset.groups["patient"][0] == "p0") == bool(with_patients)
    assert not make_split(dataset, _GIVEN).patient_disjoint


def test_files_can_be_streamed_and_pixels_cannot(config, tmp_path):
    files = [tmp_path / f"{i}.png" for i in range(8)]
    for file, image in zip(files, _X, strict=False):
        Image.fromarray(image).save(file)
    streamed = dataclasses.replace(config, storage="stream")
    with pytest.raises(InputError, match="these images are in memory"):
        _write(streamed, "train", range(8))
    _write(streamed, "train", range(4), images=files)
    _write(streamed, "validation", range(4, 8), images=files)
    images = open_dataset(streamed, tmp_path).images
    stored = open_dataset(config, tmp_path)  # read again from the files
    assert type(images).__name__ == "StreamedImages"
    assert np.array_equal(images[:], stored.images[:])
    assert stored.files.tolist() == [str(file) for file in files]
    _write(config, "train", range(4))
    with pytest.raises(InputError, match="these images were in memory"):
        open_dataset(streamed, tmp_path)


def test_images_of_a_run_are_recognized(config):
    given, numbers = _write(config, "train", range(8))
    check_same_images(_root(config), {"train": (given, numbers)}, 0)
    others = [
        dataclasses.replace(given, images=given.images[::-1]),
        dataclasses.replace(given, known={}),
        dataclasses.replace(given, known={"patient": ["p9"] * 8}),
    ]
    sets = [{"train": (other, numbers)} for other in others]
    sets += [
        {"train": (given, 1 - numbers)},
        {"train": (given, numbers), "validation": (given, numbers)},
    ]
    for changed in sets:
        with pytest.raises(InputError, match="belongs to other"):
            check_same_images(_root(config), changed, 0)


def test_no_images(config, tmp_path):
    for path in ("", str(tmp_path / "none")):
        with pytest.raises(InputError, match=r"set by densenet_flax.fine_tune"):
            open_dataset(dataclasses.replace(config, path=path), tmp_path)


def test_a_file_is_in_one_subset(config, tmp_path):
    files = [tmp_path / f"{i}.png" for i in range(24)]
    for file, pixels in zip(files, _X, strict=True):
        Image.fromarray(pixels).save(file)
    _write(config, "train", range(16), files)
    _write(config, "test", range(16, 20), files)
    with pytest.raises(InputError, match=r"15\.png: is among the train images, too"):
        _write(config, "test", range(15, 20), files)
    assert len(open_dataset(config, tmp_path / "cache").files) == 20
