import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from tensorflow_datasets.core import shuffle

import densenet_flax
from densenet_flax.common.errors import InputError
from densenet_flax.data.breakhis.breakhis_dataset_builder import Builder


def examples(builder):
    source = builder.as_data_source(split="train")
    return {example["file"]: example for example in source}


def build(data_dir, source):
    builder = Builder(data_dir=data_dir, source=source)
    builder.download_and_prepare()
    return builder


@pytest.fixture(scope="module")
def prepared(drawn_tree, tmp_path_factory):
    return build(tmp_path_factory.mktemp("prepared"), drawn_tree)


def test_features(prepared):
    content = examples(prepared)
    assert len(content) == prepared.info.splits["train"].num_examples == 16
    for file, example in content.items():
        letter, token = file.decode().split("-")[0].split("_")[1:]
        assert example["image"].shape == (48, 64, 3) and example["image"].dtype == np.uint8
        assert example["label"] == "BM".index(letter)
        assert example["subtype"] == ["A", "F", "PT", "TA", "DC", "LC", "MC", "PC"].index(token)
        assert example["magnification"] in (40, 200)
        assert example["case"] == example["slide_id"] == file.split(b"-")[2]
        assert (example["year"], example["sequence"]) == (14, 1)


def test_manual_dir_and_archive_give_the_same(prepared, drawn_archive, tmp_path):
    builder = Builder(data_dir=tmp_path)
    config = tfds.download.DownloadConfig(manual_dir=drawn_archive.parent)
    builder.download_and_prepare(download_config=config)
    from_archive, from_folder = examples(builder), examples(prepared)
    assert from_archive.keys() == from_folder.keys()
    for file in from_archive:
        for key in from_archive[file]:
            np.testing.assert_array_equal(from_archive[file][key], from_folder[file][key])


@pytest.mark.parametrize("spare_files", [100, 8])
def test_sorting_through_files(prepared, drawn_tree, tmp_path, monkeypatch, spare_files):
    """TFDS does so beyond 1 GB, with a thousand files open at a time."""
    monkeypatch.setattr(shuffle, "MAX_MEM_BUFFER_SIZE", 0)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = sorted(set(range(1000)) - set(map(int, os.listdir("/proc/self/fd"))))
    resource.setrlimit(resource.RLIMIT_NOFILE, (free[spare_files], limits[1]))
    try:
        ours, theirs = examples(build(tmp_path, drawn_tree)), examples(prepared)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert list(ours) == list(theirs)
    for file in ours:
        np.testing.assert_array_equal(ours[file]["image"], theirs[file]["image"])
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_failed_preparation_leaves_nothing_that_looks_complete(drawn_tree, tmp_path):
    tree = shutil.copytree(drawn_tree, tmp_path / "tree")
    last = max(tree.rglob("*.png"), key=lambda path: path.name)
    whole = last.read_bytes()
    last.write_bytes(whole[:-50])
    with pytest.raises(InputError, match=last.name):
        build(tmp_path / "prepared", tree)
    assert not list((tmp_path / "prepared" / "breakhis").iterdir())
    last.write_bytes(whole)
    assert len(examples(build(tmp_path / "prepared", tree))) == 16


def test_metadata_of_the_catalog():
    metadata = Builder.get_metadata()
    assert "7,909" in metadata.description
    assert "spanhol2016dataset" in metadata.citation
    assert "content.data-type.image" in metadata.tags
    assert str(Builder.VERSION) in Builder.RELEASE_NOTES


def test_no_tensorflow_and_no_jax(drawn_tree, tmp_path):
    """In a fresh process, and without the package's own __init__, which brings the network."""
    script = f"""
import sys, types
package = types.ModuleType("densenet_flax")
package.__file__ = {densenet_flax.__file__!r}
package.__path__ = [{str(Path(densenet_flax.__file__).parent)!r}]
sys.modules["densenet_flax"] = package
import densenet_flax.data.loading
assert "tensorflow_datasets" not in sys.modules, "imported before it is needed"
from densenet_flax.data.breakhis.breakhis_dataset_builder import Builder
builder = Builder(data_dir={str(tmp_path)!r}, source={str(drawn_tree)!r})
builder.download_and_prepare()
assert len(list(builder.as_data_source(split="train"))) == 16
assert not {{"tensorflow", "jax"}} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_real_images(breakhis_sample, tmp_path):
    content = examples(build(tmp_path, breakhis_sample))
    assert len(content) == len(list(breakhis_sample.rglob("*.png")))
    assert {example["image"].shape for example in content.values()} <= {
        (460, 700, 3),
        (456, 700, 3),
    }
