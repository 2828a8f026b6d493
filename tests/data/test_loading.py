import dataclasses
import logging as python_logging
import os
import re
import shutil
import threading

import numpy as np
import pytest
from PIL import Image

from densenet_flax.common.errors import InputError
from densenet_flax.data.breakhis import breakhis_dataset_builder
from densenet_flax.data.data_config import DataConfig
from densenet_flax.data.images import array_cache
from densenet_flax.data.loading import open_dataset
from densenet_flax.data.sources.breakhis import BreakHisSource
from densenet_flax.data.splits.policies import make_split
from densenet_flax.data.splits.split import load_split
from densenet_flax.data.splits.split_config import SplitConfig


@pytest.fixture
def from_folder(make_config, drawn_tree, tmp_path):
    config = make_config(name="breakhis", path=str(drawn_tree))
    return open_dataset(config, tmp_path / "cache")


def test_contents_of_a_data_set(from_folder, drawn_tree):
    dataset = from_folder
    assert dataset.images.shape == (16, 24, 32, 3) and dataset.images.dtype == np.uint8
    assert isinstance(dataset.images, np.memmap) and not dataset.images.flags.writeable
    assert dataset.labels.dtype == np.int32 and dataset.labels.sum() == 8
    assert dataset.class_names == ("benign", "malignant") and len(dataset) == 16
    paths = {path.name: path for path in drawn_tree.rglob("*.png")}
    assert dataset.files.tolist() == sorted(paths)
    for i, file in enumerate(dataset.files):
        size, filter_ = (32, 24), Image.Resampling.BILINEAR
        expected = np.asarray(Image.open(paths[file]).convert("RGB").resize(size, filter_))
        np.testing.assert_array_equal(dataset.images[i], expected)
        assert dataset.class_names[dataset.labels[i]] in str(paths[file])
        assert dataset.columns["subtype"][i] in str(paths[file])
        assert f"14-{dataset.columns['slide_id'][i]}-" in file
        assert f"/{dataset.columns['magnification'][i]}X/" in str(paths[file])
        assert dataset.columns["sequence"][i] == 1
    assert len(set(dataset.patients("case70"))) == 8


def test_archive_and_folder_give_the_same_data(from_folder, make_config, drawn_archive, tmp_path):
    config = make_config(name="breakhis", path=str(drawn_archive))
    other = open_dataset(config, tmp_path / "cache")
    np.testing.assert_array_equal(other.images, from_folder.images)
    np.testing.assert_array_equal(other.files, from_folder.files)
    assert other.fingerprint == from_folder.fingerprint


def test_drawn_tiles_are_kept_for_other_sizes(make_config, tmp_path):
    dataset = open_dataset(make_config(), tmp_path)
    assert (dataset.name, len(dataset)) == ("drawn", 16)
    other = open_dataset(make_config(image_size=(8, 8)), tmp_path)
    assert other.images.shape == (16, 8, 8, 3) and other.fingerprint != dataset.fingerprint
    assert len(list((tmp_path / "drawn").iterdir())) == 1  # drawn once, resized twice


def test_a_second_run_prepares_nothing(make_config, drawn_tree, tmp_path, monkeypatch, caplog):
    config = make_config(name="breakhis", path=str(drawn_tree))
    first = open_dataset(config, tmp_path)
    monkeypatch.setattr(BreakHisSource, "_prepare_records", None)
    caplog.clear()
    with caplog.at_level(python_logging.INFO, "absl"):
        again = open_dataset(config, tmp_path)
    np.testing.assert_array_equal(first.images, again.images)
    assert first.fingerprint == again.fingerprint
    lines = [record.getMessage() for record in caplog.records]
    assert lines == [
        "breakhis: not all of BreakHis: 16 of 7909 images",
        "breakhis: 16 images (8 benign, 8 malignant); patients: 8 by case70, 8 by slide81, "
        f"8 by id82; from {drawn_tree}",
    ]


def test_a_changed_folder_is_prepared_again(make_config, drawn_tree, tmp_path):
    tree = shutil.copytree(drawn_tree, tmp_path / "tree")
    config = make_config(name="breakhis", path=str(tree))
    before = open_dataset(config, tmp_path / "cache")
    path = sorted(tree.rglob("*.png"))[0]
    Image.new("RGB", (64, 48), "red").save(path)
    changed = open_dataset(config, tmp_path / "cache")
    row = changed.files.tolist().index(path.name)
    assert (changed.images[row] == (255, 0, 0)).all() and (before.images[row] != 255).any()
    assert changed.fingerprint != before.fingerprint
    path.unlink()
    assert len(open_dataset(config, tmp_path / "cache")) == 15


def test_selecting_one_magnification(make_config, drawn_tree, tmp_path):
    def opened(magnification):
        config = make_config(name="breakhis", path=str(drawn_tree), magnification=magnification)
        return open_dataset(config, tmp_path)

    everything, selected = opened(0), opened(200)
    chosen = everything.columns["magnification"] == 200
    assert len(selected) == 8 and set(selected.columns["magnification"]) == {200}
    np.testing.assert_array_equal(selected.files, everything.files[chosen])
    np.testing.assert_array_equal(selected.images, everything.images[chosen])
    with pytest.raises(InputError, match=r"data\.magnification=100.*only 40, 200"):
        opened(100)
    with pytest.raises(InputError, match=r"data\.magnification=50: expected"):
        opened(50)


def test_concurrent_preparations_agree(make_config, tmp_path):
    """Threads stand for processes: no lock is shared, only the disk."""
    results, failures = [], []

    def work():
        try:
            results.append(open_dataset(make_config(), tmp_path))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert len({dataset.fingerprint for dataset in results}) == 1
    for dataset in results:
        np.testing.assert_array_equal(dataset.images, results[0].images)
    assert not list(tmp_path.rglob("incomplete*"))


@pytest.mark.parametrize("moment", ["before TFDS looks", "while TFDS writes"])
def test_another_process_prepares_first(make_config, drawn_tree, tmp_path, monkeypatch, moment):
    config = make_config(name="breakhis", path=str(drawn_tree))
    owner, name = {
        "before TFDS looks": (breakhis_dataset_builder.Builder, "download_and_prepare"),
        "while TFDS writes": (breakhis_dataset_builder, "read_images"),
    }[moment]
    original = getattr(owner, name)
    met = []

    def interrupted(*arguments, **keywords):
        monkeypatch.setattr(owner, name, original)
        met.append(moment)
        open_dataset(config, tmp_path)  # the other process, from start to end
        return original(*arguments, **keywords)

    monkeypatch.setattr(owner, name, interrupted)
    assert len(open_dataset(config, tmp_path)) == 16
    assert met == [moment]
    assert not list(tmp_path.rglob("incomplete*"))


def test_an_interrupted_preparation_leaves_nothing(make_config, drawn_tree, tmp_path, monkeypatch):
    config = make_config(name="breakhis", path=str(drawn_tree))

    def fail(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(array_cache, "progress_bar", fail)
        with pytest.raises(KeyboardInterrupt):
            open_dataset(config, tmp_path)
    assert not list(tmp_path.rglob("arrays/*")) and not list(tmp_path.rglob("incomplete*"))
    assert len(open_dataset(config, tmp_path)) == 16


def test_a_damaged_image_is_named_until_it_is_replaced(make_config, drawn_tree, tmp_path):
    tree = shutil.copytree(drawn_tree, tmp_path / "tree")
    config = make_config(name="breakhis", path=str(tree))
    path = sorted(tree.rglob("*.png"))[3]
    whole = path.read_bytes()
    path.write_bytes(whole[:100])
    for _ in range(2):
        with pytest.raises(InputError, match=re.escape(path.name)):
            open_dataset(config, tmp_path / "cache")
    path.write_bytes(whole)
    assert len(open_dataset(config, tmp_path / "cache")) == 16


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "breakhis"}, r"--config\.data\.path="),
        ({"name": "breakhis", "path": "/nowhere/at/all"}, "/nowhere/at/all: no such folder"),
        ({"name": "mnist"}, r"data\.name='mnist'"),
        ({"image_size": (0, 32)}, r"data\.image_size="),
        ({"image_size": 224}, r"data\.image_size=224"),
        ({"image_size": (224,)}, r"data\.image_size="),
        ({"magnification": "100"}, r"data\.magnification='100': expected a whole number"),
        (
            {"drawn": {"patients": 3}},
            r"data\.drawn\.patients: no such key; did you mean",
        ),
        ({"drawn": {"size": (1, 1)}}, r"drawn\.size="),
    ],
)
def test_invalid_configurations(make_config, tmp_path, changes, message):
    with pytest.raises(InputError, match=message) as caught:
        open_dataset(make_config(**changes), tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["drawn", "breakhis"])
def test_unwritable_cache(make_config, drawn_tree, tmp_path, name):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"file.*cannot write here"):
        open_dataset(make_config(name=name, path=str(drawn_tree)), tmp_path / "file")


def test_full_disk(make_config, drawn_tree, tmp_path, monkeypatch):
    """ArrayRecord reports it as a RuntimeError of its own."""
    import tensorflow_datasets as tfds

    def fail(*_, **__):
        raise RuntimeError("write() failed: No space left on device; writing somewhere")

    builder = tfds.core.GeneratorBasedBuilder
    monkeypatch.setattr(builder, "download_and_prepare", fail)
    with pytest.raises(InputError, match=r"cannot write here.*No space left"):
        open_dataset(make_config(name="breakhis", path=str(drawn_tree)), tmp_path)


def test_a_damaged_cache_is_made_again(make_config, drawn_tree, tmp_path, caplog):
    config = make_config(name="breakhis", path=str(drawn_tree))
    expected = open_dataset(config, tmp_path)
    (array,) = tmp_path.rglob("images.npy")
    pixels, names = array.read_bytes(), ("images.npy", "rows.json", "checksums.json")
    for name in names:
        path = array.with_name(name)
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
        caplog.clear()
        dataset = open_dataset(config, tmp_path)
        assert len([r for r in caplog.records if "removed and made again" in r.message]) == 1
        assert array.read_bytes() == pixels and (dataset.labels == expected.labels).all()
    # Earlier versions wrote no checksums.
    array.with_name("checksums.json").unlink()
    with caplog.at_level(python_logging.INFO, "absl"):
        open_dataset(config, tmp_path)
        open_dataset(config, tmp_path)
    assert caplog.text.count("an earlier version wrote it, without checksums") == 1
    assert array.with_name("checksums.json").is_file()


def test_real_images(make_config, breakhis_sample, tmp_path):
    config = make_config(name="breakhis", path=str(breakhis_sample), image_size=(46, 70))
    dataset = open_dataset(config, tmp_path)
    assert len(dataset) == len(list(breakhis_sample.rglob("*.png")))
    assert len(set(dataset.patients("case70"))) < len(set(dataset.patients("slide81")))
    assert 100 < dataset.images.mean() < 230


def test_names_that_are_not_utf8_and_broken_links_under_skip(tmp_path):
    root = tmp_path / "tiles"
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        (root / name).mkdir(parents=True)
        for i in range(8):
            pixels = rng.integers(0, 256, (16, 16, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i}.png")
    os.rename(root / "a" / "0.png", os.fsencode(root) + b"/a/tumeur_\xe9.png")
    (root / "b" / "gone.png").symlink_to("nowhere")
    config = DataConfig(name="folder", path=str(root), image_size=(16, 16))
    with pytest.raises(InputError, match=r"gone\.png: cannot be read"):
        open_dataset(config, tmp_path / "cache")
    config = dataclasses.replace(config, on_bad_image="skip")
    dataset = open_dataset(config, tmp_path / "cache")
    assert len(dataset) == 16 and any("gone.png" in note for note in dataset.notes)
    split = make_split(dataset, SplitConfig(policy="image", group="patient"))
    split.save(tmp_path / "split.json")
    assert load_split(tmp_path / "split.json", dataset).hash == split.hash


def test_the_depth_of_16_bit_tiles_is_stated_once(tmp_path):
    values = np.linspace(0, 4095, 16 * 16).astype(np.uint16).reshape(16, 16)
    for name in ("a", "b"):
        (tmp_path / "tiles" / name).mkdir(parents=True)
        Image.fromarray(values).save(tmp_path / "tiles" / name / f"{name}.png")
        values = values[::-1]
    config = DataConfig(name="folder", path=str(tmp_path / "tiles"), image_size=(16, 16))
    with pytest.raises(InputError, match=r"a\.png: has values up to 4095.*data\.bits=12"):
        open_dataset(config, tmp_path / "cache")
    for storage in ("array", "stream"):
        config = dataclasses.replace(config, bits=12, storage=storage)
        images = open_dataset(config, tmp_path / "cache").images
        np.testing.assert_array_equal(images[0][..., 0], np.rint(values * (255 / 4095)))
