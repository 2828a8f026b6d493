"""Checkpoints: what is saved is restored, in the foreground and in the background."""

import os
import shutil
import threading
import time

import jax
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest

from densenet_flax.common.errors import InputError
from densenet_flax.storage.checkpoint import Checkpoints, DamagedCheckpoint
from densenet_flax.storage.named_arrays import NamedVector
from densenet_flax.storage.trained_model import read_model
from densenet_flax.storage.workdir import Workdir

_MODEL = {"params": {"a": {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3)}}}
_TRAIN = [NamedVector(np.array([7], np.int32), [("count", ())])]


def test_arrays_of_any_dtype_and_shape(tmp_path):
    train = {
        "count": np.int32(7),
        "mu['x']": np.arange(12, dtype=np.float32).reshape(3, 2, 2),
        "mu['y']": np.float32(0.1),
        "half": np.arange(5).astype(ml_dtypes.bfloat16),
        "nothing": np.zeros((0, 4), np.float32),
        "z": np.array([-0.0, np.inf], np.float32),
    }
    vectors = [NamedVector(np.ravel(a), [(name, a.shape)]) for name, a in train.items()]
    Checkpoints(tmp_path).save(3, lambda: (_MODEL, vectors), {"history": [1.5], "network": {}})
    restored = Checkpoints(tmp_path).restore(3)
    np.testing.assert_array_equal(
        restored.variables["params"]["a"]["kernel"], _MODEL["params"]["a"]["kernel"]
    )
    assert restored.meta == {"history": [1.5], "network": {}}
    assert restored.train.keys() == train.keys()
    for name, array in train.items():
        saved = restored.train[name]
        assert (saved.dtype, saved.shape) == (array.dtype, array.shape), name
        assert saved.tobytes() == array.tobytes(), name


def test_several_arrays_in_a_vector(tmp_path):
    contents = [("b", (2, 2)), ("a", ()), ("c", (1,))]
    Checkpoints(tmp_path).save(1, lambda: (_MODEL, [NamedVector(np.arange(6.0), contents)]), {})
    train = Checkpoints(tmp_path).restore(1).train
    assert {name: array.tolist() for name, array in train.items()} == {
        "b": [[0, 1], [2, 3]],
        "a": 4,
        "c": [5],
    }


def test_the_first_form_with_an_array_for_each_name(tmp_path):
    """As it was written until commit 82c0308."""
    train = {".opt_state['mu']": np.ones((2, 2), np.float32)}
    items = ocp.args.Composite(
        model=ocp.args.StandardSave(_MODEL),
        train=ocp.args.StandardSave(train),
        meta=ocp.args.JsonSave({"network": {}}),
    )
    checkpoints = Checkpoints(tmp_path)
    checkpoints._manager.save(1, args=items)
    restored = checkpoints.restore(1)
    assert restored.train.keys() == train.keys() and restored.meta == {"network": {}}
    np.testing.assert_array_equal(*restored.train.values(), np.ones((2, 2)))


@pytest.fixture
def slow(tmp_path, monkeypatch):
    """Checkpoints whose writing waits for `may_write`, and the steps that were written."""
    checkpoints = Checkpoints(tmp_path)
    may_write, written, write = threading.Event(), [], checkpoints._write

    def write_later(checkpoint):
        assert may_write.wait(60)
        write(checkpoint)
        written.append(checkpoint.step)

    monkeypatch.setattr(checkpoints, "_write", write_later)
    return checkpoints, may_write, written


def test_a_waiting_checkpoint_makes_room_for_the_next(slow):
    checkpoints, may_write, written = slow
    meta, threads = {"network": {}}, set()
    for step in (1, 2, 3, 4):
        meta["at"] = step  # changed as soon as the call returns

        def read(step=step):
            threads.add(threading.get_ident())
            return _MODEL, [NamedVector(np.full(3, step, np.float32), [("mu", (3,))])]

        checkpoints.save(step, read, meta, keep=[1], background=True)
    assert written == []
    may_write.set()
    assert checkpoints.steps == [1, 4] and written == [1, 4]
    assert threading.get_ident() not in threads  # copies to the host keep nobody waiting
    for step in (1, 4):
        restored = checkpoints.restore(step)
        assert restored.meta["at"] == step
        np.testing.assert_array_equal(restored.train["mu"], np.full(3, step))


def test_a_checkpoint_to_keep_is_waited_for(slow):
    checkpoints, may_write, written = slow
    checkpoints.save(1, lambda: (_MODEL, _TRAIN), {}, keep=[1], background=True)
    checkpoints.save(2, lambda: (_MODEL, _TRAIN), {}, keep=[2], background=True)
    threading.Timer(0.2, may_write.set).start()
    checkpoints.save(3, lambda: (_MODEL, _TRAIN), {}, keep=[2], background=True)
    assert written[:2] == [1, 2]
    assert checkpoints.steps == [2, 3]


def test_a_failure_is_raised_by_the_next_call_and_only_there(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, lambda: (_MODEL, _TRAIN), {}, background=True)
    checkpoints.finish()
    with monkeypatch.context() as patch:
        full = shutil.disk_usage(tmp_path)._replace(free=1)
        patch.setattr(shutil, "disk_usage", lambda path: full)
        checkpoints.save(2, lambda: (_MODEL, _TRAIN), {}, background=True)
        while checkpoints._writer.is_writing:
            time.sleep(0.01)
        with pytest.raises(InputError, match="checkpoint 2 could not be written"):
            checkpoints.save(3, lambda: (_MODEL, _TRAIN), {}, background=True)
    checkpoints.save(4, lambda: (_MODEL, _TRAIN), {}, background=True)
    assert checkpoints.steps == [4]


def _save_two(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    rng = np.random.default_rng(0)
    for step in (1, 2):
        model = {"params": {"kernel": rng.normal(size=(40, 50)).astype(np.float32)}}
        train = [NamedVector(rng.normal(size=900).astype(np.float32), [("mu", (900,))])]
        state = (model, train)
        checkpoints.save(step, lambda s=state: s, {"history": [0.1, 0.25]}, keep=(1,))
    return checkpoints


def test_a_flipped_bit_anywhere_is_found_or_changes_nothing(tmp_path):
    expected = _save_two(tmp_path).restore(2)
    files = sorted(path for path in (tmp_path / "checkpoints" / "2").rglob("*") if path.is_file())
    rng = np.random.default_rng(1)
    found = 0
    for number in range(60):
        file = files[number % len(files)]
        content = file.read_bytes()
        if not content:
            continue
        damaged = bytearray(content)
        damaged[rng.integers(len(damaged))] ^= 1 << rng.integers(8)
        file.write_bytes(damaged)
        try:
            restored = Checkpoints(tmp_path / "checkpoints").restore(2)
        except DamagedCheckpoint as error:
            assert "checkpoints/2: " in str(error) and "\n" not in str(error)
            found += 1
        else:
            assert restored.meta == expected.meta
            for name in ("variables", "train"):
                pairs = zip(
                    *map(jax.tree.leaves, (vars(restored)[name], vars(expected)[name])), strict=True
                )
                assert all(np.array_equal(a, b) for a, b in pairs)
        file.write_bytes(content)
    assert found > 15


def test_the_checkpoint_before_a_damaged_one_is_taken(tmp_path, caplog):
    _save_two(tmp_path)
    shutil.rmtree(tmp_path / "checkpoints" / "2" / "model")
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    assert checkpoints.restore_latest().step == 1
    assert (tmp_path / "checkpoints" / "2").exists()  # reading changes nothing
    assert checkpoints.restore_latest(repair=True).step == 1
    assert checkpoints.steps == [1]
    assert len(list(tmp_path.glob("damaged_checkpoints/2.*/train"))) == 1
    checkpoints.save(2, lambda: (_MODEL, _TRAIN), {})
    assert checkpoints.restore_latest().step == 2
    shutil.rmtree(tmp_path / "checkpoints" / "2" / "model")
    with pytest.raises(DamagedCheckpoint, match="this checkpoint cannot be read") as error:
        Checkpoints(tmp_path / "checkpoints").restore_latest()
    assert "an earlier one" not in str(error.value)
    assert Checkpoints(tmp_path / "none").restore_latest() is None


def test_the_first_that_can_be_read_and_what_to_do_if_none_can(tmp_path, caplog):
    checkpoints = _save_two(tmp_path)
    assert checkpoints.restore_first([5, 2, 1]).step == 2
    assert "checkpoints/5: this checkpoint is missing" in caplog.text
    assert "taking the checkpoint of step 2 instead" in caplog.text
    for step in (1, 2):
        shutil.rmtree(tmp_path / "checkpoints" / str(step) / "model")
    with pytest.raises(DamagedCheckpoint, match="nor can 1; put it back, or choose"):
        checkpoints.restore_latest()


def test_a_run_that_replaces_a_checkpoint_meanwhile_is_named(tmp_path):
    """Whoever reads without the lock is not told to remove what a run is about to replace."""
    _save_two(tmp_path)
    shutil.rmtree(tmp_path / "checkpoints" / "2" / "model")
    with Workdir(tmp_path).lock(), pytest.raises(DamagedCheckpoint, match="try again when it is"):
        read_model(tmp_path, step=2)
    with pytest.raises(DamagedCheckpoint, match="or remove that folder"):
        read_model(tmp_path, step=2)


def test_what_a_killed_process_left_of_a_checkpoint_is_removed_by_the_run_that_goes_on(tmp_path):
    checkpoints = _save_two(tmp_path)
    left = tmp_path / "checkpoints" / "3.orbax-checkpoint-tmp"
    shutil.copytree(tmp_path / "checkpoints" / "2", left)
    assert checkpoints.restore_latest().step == 2 and left.exists()
    assert checkpoints.restore_latest(repair=True).step == 2 and not left.exists()


def test_what_only_training_needs_may_be_missing(tmp_path):
    _save_two(tmp_path)
    shutil.rmtree(tmp_path / "checkpoints" / "2" / "train")
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    assert checkpoints.restore(2).train == {} == checkpoints.restore(1, train=False).train
    assert checkpoints.read_meta()["history"] == [0.1, 0.25]


@pytest.mark.parametrize("kind", ["file", "dangling link", "pipe in it"])
def test_what_is_no_folder_of_checkpoints_is_one_line(tmp_path, kind):
    """Among others a link to a disk that is not there: the run must not start over."""
    directory = tmp_path / "checkpoints"
    if kind == "file":
        directory.write_text("x")
    elif kind == "dangling link":
        directory.symlink_to(tmp_path / "disk")
    else:
        _save_two(tmp_path)
        (directory / "2" / "_CHECKPOINT_METADATA").unlink()
        os.mkfifo(directory / "2" / "_CHECKPOINT_METADATA")
    with pytest.raises(InputError, match=r"checkpoints.*: (leads to no folder|is a named pipe)"):
        Checkpoints(directory)
    assert not (tmp_path / "disk").exists()


def test_a_directory_that_is_removed_is_named(tmp_path):
    checkpoints = _save_two(tmp_path)
    shutil.rmtree(tmp_path / "checkpoints")
    with pytest.raises(InputError, match="was removed while the run wrote to it"):
        checkpoints.save(3, lambda: (_MODEL, _TRAIN), {})
