"""What goes into a checkpoint comes out of it."""

import shutil
import threading
import time

import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest

from densenet_flax.common.errors import InputError
from densenet_flax.storage.checkpoint import Checkpoints

_MODEL = {"params": {"a": {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3)}}}
_TRAIN = {"count": np.int32(7)}


def test_leaves_of_any_type_and_shape(tmp_path):
    train = {
        "count": np.int32(7),
        "mu": {"x": np.arange(12, dtype=np.float32).reshape(3, 2, 2), "y": np.float32(0.1)},
        "half": np.arange(5).astype(ml_dtypes.bfloat16),
        "nothing": np.zeros((0, 4), np.float32),
        "z": np.array([-0.0, np.inf], np.float32),
    }
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(3, _MODEL, train, {"history": [1.5], "network": {}})
    found = Checkpoints(tmp_path).restore(3)
    np.testing.assert_array_equal(
        found.variables["params"]["a"]["kernel"], _MODEL["params"]["a"]["kernel"]
    )
    assert found.meta == {"history": [1.5], "network": {}}
    wanted = {
        "['count']": train["count"],
        "['mu']['x']": train["mu"]["x"],
        "['mu']['y']": train["mu"]["y"],
        "['half']": train["half"],
        "['nothing']": train["nothing"],
        "['z']": train["z"],
    }
    assert found.train.keys() == wanted.keys()
    for name, leaf in wanted.items():
        got = found.train[name]
        assert (got.dtype, got.shape) == (leaf.dtype, leaf.shape), name
        assert got.tobytes() == leaf.tobytes(), name


def test_a_checkpoint_with_an_array_for_each_leaf(tmp_path):
    """As they were written before."""
    train = {".opt_state['mu']": np.ones((2, 2), np.float32)}
    items = ocp.args.Composite(
        model=ocp.args.StandardSave(_MODEL),
        train=ocp.args.StandardSave(train),
        meta=ocp.args.JsonSave({"network": {}}),
    )
    checkpoints = Checkpoints(tmp_path)
    checkpoints._manager.save(1, args=items)
    found = checkpoints.restore(1)
    assert found.train.keys() == train.keys() and found.meta == {"network": {}}
    np.testing.assert_array_equal(*found.train.values(), np.ones((2, 2)))


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


def test_what_still_waits_makes_room(slow):
    checkpoints, may_write, written = slow
    train = {"mu": np.zeros(3, np.float32)}
    for step in (1, 2, 3, 4):
        train["mu"][:] = step  # changed as soon as the call returns
        checkpoints.save_soon(step, _MODEL, train, {"at": step, "network": {}}, keep=[1])
    assert written == []
    may_write.set()
    assert checkpoints.steps == [1, 4] and written == [1, 4]
    for step in (1, 4):
        found = checkpoints.restore(step)
        assert found.meta["at"] == step
        np.testing.assert_array_equal(found.train["['mu']"], np.full(3, step))


def test_what_is_to_be_kept_is_waited_for(slow):
    checkpoints, may_write, written = slow
    checkpoints.save_soon(1, _MODEL, _TRAIN, {}, keep=[1])
    checkpoints.save_soon(2, _MODEL, _TRAIN, {}, keep=[2])
    threading.Timer(0.2, may_write.set).start()
    checkpoints.save_soon(3, _MODEL, _TRAIN, {}, keep=[2])
    assert written[:2] == [1, 2]
    assert checkpoints.steps == [2, 3]


def test_a_failure_is_told_at_the_next_call_and_then_over(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save_soon(1, _MODEL, _TRAIN, {})
    checkpoints.finish()
    with monkeypatch.context() as patch:
        full = shutil.disk_usage(tmp_path)._replace(free=1)
        patch.setattr(shutil, "disk_usage", lambda path: full)
        checkpoints.save_soon(2, _MODEL, _TRAIN, {})
        while checkpoints._writing:
            time.sleep(0.01)
        with pytest.raises(InputError, match="checkpoint 2 could not be written"):
            checkpoints.save_soon(3, _MODEL, _TRAIN, {})
    checkpoints.save_soon(4, _MODEL, _TRAIN, {})
    assert checkpoints.steps == [4]
