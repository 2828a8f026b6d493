"""Adam as Keras computes it."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from densenet_flax.common.trees import PyTree


class KerasAdamState(NamedTuple):
    """For each leaf, how often it was updated and the two moments of its gradient."""

    steps: PyTree
    mu: PyTree
    nu: PyTree


def scale_by_keras_adam(
    b1: float = 0.9, b2: float = 0.999, eps: float = 1e-7
) -> optax.GradientTransformation:
    """Adam as Keras computes it, which is not `optax.scale_by_adam(eps=1e-7)`.

    Keras follows the efficient form in Kingma and Ba (2015, end of section 2): epsilon is added to
    the *uncorrected* `sqrt(nu)`, and the bias corrections go into the step size. At the first step
    its epsilon thus weighs 1/sqrt(1 - b2) = 32 times as much as optax's, which shows wherever
    gradients are small, as they are behind an ImageNet-trained BatchNorm.
    """
    # Updates are counted for each leaf. The leaves are the vectors of `make_optimizer`, so a later
    # stage can keep the moments of what trained before and still correct the bias of what has just
    # been unfrozen.

    def init(params: PyTree) -> KerasAdamState:
        zeros = jax.tree.map(jnp.zeros_like, params)
        steps = jax.tree.map(lambda _: jnp.zeros((), jnp.int32), params)
        return KerasAdamState(steps, zeros, zeros)

    def update(updates: PyTree, state: KerasAdamState, params: PyTree = None):
        del params
        steps = jax.tree.map(optax.safe_increment, state.steps)
        mu = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state.mu, updates)
        nu = jax.tree.map(lambda n, g: b2 * n + (1 - b2) * jnp.square(g), state.nu, updates)

        def update_leaf(count: jax.Array, m: jax.Array, n: jax.Array) -> jax.Array:
            t = count.astype(jnp.float32)
            rate = jnp.sqrt(1 - b2**t) / (1 - b1**t)
            return rate * m / (jnp.sqrt(n) + eps)

        return jax.tree.map(update_leaf, steps, mu, nu), KerasAdamState(steps, mu, nu)

    return optax.GradientTransformation(init, update)
