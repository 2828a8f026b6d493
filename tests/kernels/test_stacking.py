"""Stacked trees, and arrays that lie one behind the other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from densenet_flax.kernels.stacking import contiguous, stack, unstack
from densenet_flax.training.raveled import Raveled


@pytest.mark.parametrize("trees", [[{"a": 0.0, "b": ()}, {"a": 1.0, "b": ()}], [None, None, None]])
def test_unstack_undoes_stack(trees):
    arrays = jax.tree.map(lambda x: jnp.full((2, 3), x), trees)
    again = unstack(stack(arrays), len(arrays))
    assert jax.tree.structure(again) == jax.tree.structure(arrays)
    jax.tree.map(np.testing.assert_array_equal, again, arrays)


def test_contiguous_changes_nothing():
    arrays = [jnp.full((i + 1, 2), i, jnp.float32) for i in range(11)]
    jax.tree.map(np.testing.assert_array_equal, contiguous(arrays), arrays)


def test_raveling_what_is_contiguous_takes_whole_buffers():
    """Or raveling costs a program for each part, and compiling as many as there are leaves."""

    def ravel(stacked, stats):
        tree = {f"block{i}": {"scale": part} for i, part in enumerate(unstack(stacked, 20))}
        for i, part in enumerate(contiguous([stats[: 8 * i + 8] for i in range(20)])):
            tree[f"block{i}"]["mean"] = part
        return Raveled.of(tree, jax.tree.map(lambda _: "", tree)).vectors[""]

    stacked, stats = jnp.arange(20 * 6.0).reshape(20, 6), jnp.arange(160.0)
    compiled = jax.jit(ravel).lower(stacked, stats).compile()
    assert compiled.as_text().count(" fusion(") <= 4  # 19 if parts of the second are slices of it
    expected = [np.arange(8 * i + 8) for i in range(20)] + [np.arange(120)]
    np.testing.assert_array_equal(compiled(stacked, stats), np.concatenate(expected))
