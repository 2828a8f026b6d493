import dataclasses
import os
import pickle
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from densenet_flax.common.errors import InputError
from densenet_flax.data.batching import epoch_order, split_into_batches
from densenet_flax.data.images import array_cache
from densenet_flax.data.images.stream import StreamedImages, prefetch_images
from densenet_flax.data.loading import open_dataset
from densenet_flax.data.sources.breakhis import BreakHisSource


@pytest.fixture(params=["breakhis", "folder"])
def pair(request, make_config, drawn_tree, tmp_path):
    """The same data set as an array and streamed, each prepared in a cache of its own."""
    path = str(drawn_tree)
    if request.param == "folder":
        path += "/BreaKHis_v1/histology_slides/breast"

    def opened(storage):
        config = make_config(name=request.param, path=path, storage=storage)
        return open_dataset(config, tmp_path / storage)

    return opened("array"), opened("stream")


def shuffled_batches(dataset, seed=0, size=5):
    order = epoch_order(len(dataset), seed, 0)
    return [ids[weight > 0] for ids, weight in split_into_batches(order, size)]


def test_streamed_and_array_data_sets_are_equal(pair):
    array, stream = pair
    assert isinstance(array.images, np.ndarray) and isinstance(stream.images, StreamedImages)
    assert stream.images.shape == array.images.shape and stream.images.dtype == np.uint8
    assert stream.fingerprint == array.fingerprint and len(stream.images) == len(stream)
    np.testing.assert_array_equal(stream.files, array.files)
    np.testing.assert_array_equal(stream.labels, array.labels)
    for kept in ("groups", "columns"):
        assert getattr(stream, kept).keys() == getattr(array, kept).keys()
        for name, column in getattr(array, kept).items():
            np.testing.assert_array_equal(getattr(stream, kept)[name], column)


def test_indexing_matches_an_array(pair):
    array, stream = (dataset.images for dataset in pair)
    ids = np.array([3, 0, 3, -1], np.int32)
    for key in (2, np.int64(5), -1, slice(None), slice(4, 9, 2), ids, ids[:1], ids[:0], [1, 2]):
        images = stream[key]
        assert images.dtype == np.uint8
        np.testing.assert_array_equal(images, array[key])
    np.testing.assert_array_equal(stream[np.arange(len(array)) % 3 == 0], array[::3])
    with pytest.raises(IndexError):
        stream[len(array)]


def test_pickling(pair):
    array, stream = (dataset.images for dataset in pair)
    again = pickle.loads(pickle.dumps(stream))
    np.testing.assert_array_equal(again[[1, 4]], array[[1, 4]])


def test_streaming_writes_no_pixels(pair, tmp_path):
    assert list((tmp_path / "array").rglob("images.npy"))
    assert not list((tmp_path / "stream").rglob("images.npy"))
    assert len(list((tmp_path / "stream").rglob("rows.json"))) == 1


def test_a_second_run_prepares_nothing_and_streams_beside_an_array(
    make_config, drawn_tree, tmp_path, monkeypatch
):
    config = make_config(name="breakhis", path=str(drawn_tree), storage="stream")
    first = open_dataset(config, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(BreakHisSource, "_prepare_records", None)
        patch.setattr(array_cache, "write_images", None)
        again = open_dataset(config, tmp_path)
    assert again.fingerprint == first.fingerprint
    open_dataset(make_config(name="breakhis", path=str(drawn_tree)), tmp_path)
    for folder in tmp_path.rglob("*-stream"):
        shutil.rmtree(folder)
    monkeypatch.setattr(array_cache, "write_images", None)
    served = open_dataset(config, tmp_path)
    np.testing.assert_array_equal(served.images[:], first.images[:])


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_the_same_from_memory_and_streamed(pair, workers):
    """Workers are started after JAX, and with absl's flags not parsed."""
    jax.numpy.zeros(1).block_until_ready()
    array, stream = pair
    lists = shuffled_batches(array)
    streamed = list(prefetch_images(stream.images, lists, workers=workers))
    assert len(streamed) == len(lists) == 4
    for ids, images in zip(lists, streamed, strict=True):
        assert images.dtype == np.uint8
        np.testing.assert_array_equal(images, array.images[ids])
    for ids, images in zip(
        lists, prefetch_images(array.images, lists, workers=workers), strict=True
    ):
        np.testing.assert_array_equal(images, array.images[ids])


def test_each_process_reads_only_its_rows(make_config, drawn_tree, tmp_path):
    config = make_config(name="breakhis", path=str(drawn_tree), storage="stream")
    dataset = open_dataset(config, tmp_path)
    lists = shuffled_batches(dataset, size=4)
    whole = list(prefetch_images(dataset.images, lists))
    batches, read = [], []
    for process in range(2):
        share = [ids[2 * process : 2 * process + 2] for ids in lists]
        seen = set()

        def reading(row, seen=seen):
            seen.add(row["file"])
            return dataset.images.read(row)

        images = dataclasses.replace(dataset.images, read=reading)
        batches.append(list(prefetch_images(images, share)))
        assert seen == set(dataset.files[np.concatenate(share)])
        read.append(seen)
    assert not read[0] & read[1]
    for both, one, two in zip(whole, *batches, strict=True):
        np.testing.assert_array_equal(both, np.concatenate([one, two]))


def test_reading_ahead_is_bounded(counted_dataset):
    dataset, reads = counted_dataset
    batches = prefetch_images(dataset.images, [np.array([i]) for i in range(20)], depth=3)
    assert next(batches)[0, 0, 0, 0] == 0
    reads.wait_for(4)
    assert reads.count <= 4
    for number in range(1, 20):
        assert next(batches)[0, 0, 0, 0] == number
    assert list(batches) == []


def test_closing_stops_the_reading(counted_dataset):
    dataset, reads = counted_dataset
    before = threading.active_count()
    batches = prefetch_images(dataset.images, [np.array([i]) for i in range(20)], depth=2)
    next(batches)
    batches.close()
    assert reads.count <= 4 and threading.active_count() == before


@pytest.fixture
def counted_dataset(pair):
    """A data set whose image number i is all i, that counts how often it is read."""

    class Counted:
        def __init__(self):
            self.count, self._changed = 0, threading.Condition()

        def __getitem__(self, rows):
            with self._changed:
                self.count += 1
                self._changed.notify_all()
            return np.full((len(rows), 2, 2, 3), rows[0], np.uint8)

        def wait_for(self, count):
            with self._changed:
                assert self._changed.wait_for(lambda: self.count >= count, timeout=20)

    counted = Counted()
    return dataclasses.replace(pair[0], images=counted), counted


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_was_damaged_later_is_named(make_config, drawn_tree, tmp_path, workers):
    root = shutil.copytree(drawn_tree, tmp_path / "tree") / "BreaKHis_v1/histology_slides/breast"
    config = make_config(name="folder", path=str(root), storage="stream")
    dataset = open_dataset(config, tmp_path / "cache")
    (root / dataset.files[2]).write_bytes(b"")
    with pytest.raises(InputError, match=re.escape(dataset.files[2]) + ": is empty"):
        list(prefetch_images(dataset.images, shuffled_batches(dataset), workers=workers))
    (root / dataset.files[2]).unlink()
    with pytest.raises(InputError, match=re.escape(dataset.files[2]) + ": cannot be read"):
        dataset.images[2]


def test_duplicates_and_bad_images_are_treated_as_in_an_array(make_config, drawn_tree, tmp_path):
    root = shutil.copytree(drawn_tree, tmp_path / "tree") / "BreaKHis_v1/histology_slides/breast"
    first, second = sorted(root.rglob("*.png"))[:2]
    with Image.open(first) as image:
        image.save(first.with_name("copy.png"), compress_level=1)
    second.write_bytes(b"")

    def opened(storage):
        changes = {"on_bad_image": "skip", "duplicates": "drop", "storage": storage}
        config = make_config(name="folder", path=str(root), **changes)
        return open_dataset(config, tmp_path / storage)

    array, stream = opened("array"), opened("stream")
    assert len(array) == len(stream) == 15
    assert stream.fingerprint == array.fingerprint and stream.notes == array.notes
    np.testing.assert_array_equal(stream.files, array.files)
    np.testing.assert_array_equal(stream.images[:], array.images[:])


def test_stain_normalization_matches_an_array(make_config, drawn_tree, tmp_path):
    stain = {"method": "clahe"}
    config = {"name": "breakhis", "path": str(drawn_tree), "stain": stain}
    array = open_dataset(make_config(**config), tmp_path)
    stream = open_dataset(make_config(storage="stream", **config), tmp_path / "other")
    np.testing.assert_array_equal(stream.images[:4], array.images[:4])
    (images,) = prefetch_images(stream.images, [np.arange(3)], workers=1)
    np.testing.assert_array_equal(images, array.images[:3])


def test_invalid_settings(make_config, tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"data\.storage='disk': expected one of 'array'"):
        open_dataset(make_config(storage="disk"), tmp_path)
    with pytest.raises(InputError, match=r"data\.workers=-1"):
        open_dataset(make_config(workers=-1), tmp_path)
    dataset = open_dataset(make_config(storage="stream"), tmp_path)
    monkeypatch.setitem(sys.modules, "grain", None)
    with pytest.raises(InputError, match=r"data\.workers=1: needs Grain"):
        list(prefetch_images(dataset.images, [np.arange(2)], workers=1))


PROGRAM = """
import sys
from absl import app, flags
import numpy as np
from densenet_flax.data.data_config import DataConfig
from densenet_flax.data.loading import open_dataset
from densenet_flax.data.images.stream import prefetch_images

PATH = flags.DEFINE_string("path", None, "data")

def main(_):
    import jax
    jax.numpy.zeros(1).block_until_ready()
    config = DataConfig(path=PATH.value, image_size=(24, 32), storage="stream")
    dataset = open_dataset(config, sys.path[0])
    lists = [np.array([0, 3]), np.array([5])]
    for ids, images in zip(lists, prefetch_images(dataset.images, lists, workers=2), strict=True):
        assert (images == dataset.images[ids]).all()
    print("all the same")

if __name__ == "__main__":
    app.run(main)
"""


def test_workers_of_a_program_with_flags(drawn_tree, tmp_path):
    """As in main.py: a worker imports the program again and must not run it."""
    (tmp_path / "program.py").write_text(PROGRAM)
    done = subprocess.run(
        [sys.executable, str(tmp_path / "program.py"), f"--path={drawn_tree}"],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("all the same") == 1 and "leaked" not in done.stderr, done.stderr
