import jax
import jax.numpy as jnp
import numpy as np
import optax
from hypothesis import given, settings
from hypothesis import strategies as st

from densenet_flax.training.raveled import Raveled, unravel_to_host

SHAPES = st.lists(st.lists(st.integers(0, 4), max_size=3).map(tuple), min_size=1, max_size=6)


def tree_of(shapes, seed=0):
    rng = np.random.default_rng(seed)
    return {f"leaf{i}": rng.normal(size=s).astype(np.float32) for i, s in enumerate(shapes)}


@settings(deadline=None)  # the first call compiles
@given(SHAPES, st.data())
def test_unraveling_undoes_raveling(shapes, data):
    tree = {**tree_of(shapes), "gap": optax.MaskedNode()}
    groups = {key: data.draw(st.sampled_from("ab")) for key in tree}
    raveled = Raveled.of(tree, groups)
    assert {group: vector.ndim for group, vector in raveled.vectors.items()} == {
        group: 1 for key, group in groups.items() if key != "gap"
    }
    again = raveled.unravel()
    assert jax.tree.structure(again) == jax.tree.structure(tree)
    jax.tree.map(np.testing.assert_array_equal, again, tree)
    for group, entries in raveled.contents().items():
        assert {groups[name[2:-2]] for name, _ in entries} == {group}
        leaves = [tree[name[2:-2]] for name, _ in entries]
        assert [leaf.shape for leaf in leaves] == [shape for _, shape in entries]
        vector = np.concatenate([leaf.ravel() for leaf in leaves])
        np.testing.assert_array_equal(raveled.vectors[group], vector)


def test_a_scalar_of_a_group_is_the_value_of_each_of_its_leaves():
    # In the tree "b" comes first, in the vectors "a".
    tree = {"block1": {"scale": np.ones((2, 3))}, "block2": {"bias": np.ones(4)}, "bn": np.ones(5)}
    groups = {"block1": {"scale": "b"}, "block2": {"bias": "a"}, "bn": "a"}
    raveled = Raveled.of(tree, groups)
    counts = raveled.map(lambda group, _: jnp.int32({"a": 7, "b": 3}[group]))
    state = {"steps": counts, "mu": raveled}
    host = unravel_to_host(state)
    assert jax.tree.map(int, host["steps"]) == {
        "block1": {"scale": 3},
        "block2": {"bias": 7},
        "bn": 7,
    }
    jax.tree.map(np.testing.assert_array_equal, host["mu"], tree)


def test_the_same_leaf_of_consecutive_layers_is_contiguous_in_its_vector():
    """Then XLA copies the array of all layers that the dense block works on, not its slices."""
    tree = {f"block{i}": {"bias": np.full(2, i), "scale": np.full(1, 10 * i)} for i in (2, 10, 1)}
    tree["norm"] = {"bias": np.zeros(1)}
    raveled = Raveled.of(tree, jax.tree.map(lambda _: "", tree))
    np.testing.assert_array_equal(raveled.vectors[""], [1, 1, 2, 2, 10, 10, 0, 10, 20, 100])
