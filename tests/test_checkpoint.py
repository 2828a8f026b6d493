"""What goes into a checkpoint comes out of it."""

import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp

from densenet_flax.checkpoint import Checkpoints

_MODEL = {"params": {"a": {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3)}}}


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
