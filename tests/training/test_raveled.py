import jax
import jax.numpy as jnp
import numpy as np
import optax
from hypothesis import given, settings
from hypothesis import strategies as st

from densenet_flax.training.raveled import Raveled, ravel_like, unravel_to_host

SHAPES = st.lists(st.lists(st.integers(0, 4), max_size=3).map(tuple), min_size=1, max_size=6)


def tree_of(shapes, seed=0):
    rng = np.random.default_rng(seed)
    return {f"leaf{i}": rng.normal(size=s).astype(np.float32) for i, s in enumerate(shapes)}


@settings(deadline=None)  # the first packing compiles
@given(SHAPES, st.data())
def test_what_is_packed_comes_back(shapes, data):
    tree = {**tree_of(shapes), "gap": optax.MaskedNode()}
    names = {key: data.draw(st.sampled_from("ab")) for key in tree}
    packed = Raveled.of(tree, names)
    assert {k: v.ndim for k, v in packed.vectors.items()} == {
        name: 1 for key, name in names.items() if key != "gap"
    }
    back = packed.unpack()
    assert jax.tree.structure(back) == jax.tree.structure(tree)
    jax.tree.map(np.testing.assert_array_equal, back, tree)
    jax.tree.map(
        np.testing.assert_array_equal, ravel_like(unravel_to_host(packed), like=packed), packed
    )


def test_one_number_for_a_vector_is_that_of_each_of_its_leaves():
    # In the tree "b" comes first, in the vectors "a".
    tree = {"block1": {"scale": np.ones((2, 3))}, "block2": {"bias": np.ones(4)}, "bn": np.ones(5)}
    names = {"block1": {"scale": "b"}, "block2": {"bias": "a"}, "bn": "a"}
    packed = Raveled.of(tree, names)
    counts = packed.map(lambda name, _: jnp.int32({"a": 7, "b": 3}[name]))
    state = {"steps": counts, "mu": packed}
    host = unravel_to_host(state)
    assert jax.tree.map(int, host["steps"]) == {
        "block1": {"scale": 3},
        "block2": {"bias": 7},
        "bn": 7,
    }
    again = ravel_like(host, like=state)
    assert jax.tree.structure(again) == jax.tree.structure(state)
    jax.tree.map(np.testing.assert_array_equal, again, state)


def test_what_differs_in_its_number_alone_lies_side_by_side():
    """Then a compiler that packs parts of one array takes the array."""
    tree = {f"block{i}": {"bias": np.full(2, i), "scale": np.full(1, 10 * i)} for i in (2, 10, 1)}
    tree["norm"] = {"bias": np.zeros(1)}
    packed = Raveled.of(tree, jax.tree.map(lambda _: "", tree))
    np.testing.assert_array_equal(packed.vectors[""], [1, 1, 2, 2, 10, 10, 0, 10, 20, 100])
