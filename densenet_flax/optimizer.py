"""From a stage to one optax transformation, with Keras's defaults."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax


class KerasAdamState(NamedTuple):
    """Steps taken and the two running moments of the gradient."""

    steps: jax.Array
    mu: Any
    nu: Any


def scale_by_keras_adam(
    b1: float = 0.9, b2: float = 0.999, eps: float = 1e-7
) -> optax.GradientTransformation:
    """Adam as Keras computes it, which is not `optax.scale_by_adam(eps=1e-7)`.

    Keras follows the efficient form in Kingma and Ba (2015, end of section 2): epsilon is added to
    the *uncorrected* `sqrt(nu)`, and the bias corrections go into the step size. At the first step
    its epsilon thus weighs 1/sqrt(1 - b2) = 32 times as much as optax's, which shows wherever
    gradients are small, as they are behind an ImageNet-trained BatchNorm.
    """

    def init(params) -> KerasAdamState:
        zeros = jax.tree.map(jnp.zeros_like, params)
        return KerasAdamState(jnp.zeros((), jnp.int32), zeros, zeros)

    def update(updates, state, params=None):
        del params
        steps = optax.safe_increment(state.steps)
        mu = optax.tree.update_moment(updates, state.mu, b1, 1)
        nu = optax.tree.update_moment(updates, state.nu, b2, 2)
        t = steps.astype(jnp.float32)
        correction = jnp.sqrt(1 - b2**t) / (1 - b1**t)
        updates = jax.tree.map(lambda m, v: correction * m / (jnp.sqrt(v) + eps), mu, nu)
        return updates, KerasAdamState(steps, mu, nu)

    return optax.GradientTransformation(init, update)


def make_optimizer(learning_rate: float, mask: Any) -> optax.GradientTransformation:
    """The optimizer of a stage: Keras's Adam on what trains, nothing on what is frozen.

    Args:
      learning_rate: constant over the stage.
      mask: tree like the parameters, True at what trains (`Frontier.mask`).

    Returns:
      A transformation of the whole parameter tree, or of its trainable part with
      `optax.MaskedNode` in place of the frozen leaves. Frozen leaves have no state, and their
      updates are zero even if gradients are handed in.
    """
    adam = optax.chain(scale_by_keras_adam(), optax.scale_by_learning_rate(learning_rate))
    frozen = jax.tree.map(lambda trains: not trains, mask)
    return optax.selective_transform(adam, freeze_mask=frozen)
