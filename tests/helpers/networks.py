"""Small networks with random weights."""

import numpy as np

TINY_BLOCKS = (2, 2, 3, 2)  # every kind of unit, and dense blocks of more than one layer


def randomize(variables, seed):
    """Moves scales, biases and statistics away from their initial ones and zeros, in place."""
    rng = np.random.default_rng(seed)

    def draw(tree):
        for name, leaf in tree.items():
            if isinstance(leaf, dict):
                draw(leaf)
            elif name in ("scale", "var"):
                tree[name] = rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32)
            elif name in ("bias", "mean"):
                tree[name] = rng.normal(0, 0.1, leaf.shape).astype(np.float32)

    draw(variables)
    return variables
