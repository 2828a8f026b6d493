"""Random keys of views: pure functions of seed, epoch and image.

A view does not depend on the batch that an image is in, on the device, or on what was drawn before,
so a resumed run, and one on more devices, sees the same views.
"""

import enum
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key

Scalar: TypeAlias = int | Int[Array, ""]
Ids: TypeAlias = Int[Array, "N"]
ViewKey: TypeAlias = Key[Array, ""]

# A stream of random numbers for each operation, so that switching one on leaves what the others
# draw as it was. The numbers are part of what a seed means: add at the end.
Stream = enum.IntEnum("Stream", "GEOMETRY BRIGHTNESS CONTRAST HED STAIN CUTOUT MIX", start=0)
_SYMMETRY = 2**31 - 1  # stands where an epoch does, and is none


def view_keys(seed: Scalar, epoch: Scalar | Ids, ids: Ids) -> Key[Array, "N"]:
    """Returns the key of each view; seed, epoch and ids are those of `views.augment`."""

    def view_key(number: Scalar, row: Scalar) -> ViewKey:
        return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), number), row)

    return jax.vmap(view_key)(jnp.broadcast_to(epoch, ids.shape), ids)


def stream_key(key: ViewKey, stream: Stream) -> Key[Array, ""]:
    """Returns the key of an operation within a view."""
    return jax.random.fold_in(key, int(stream))


def deal_symmetries(seed: Scalar, epoch: Scalar | Ids, ids: Ids, count: int) -> Int[Array, "N"]:
    """Returns which of `count` symmetries each view shows.

    Each image begins with a random one and goes on in turn, so `count` successive epochs show each
    symmetry once; drawn independently, eight views would show five of eight on average.
    """
    key = jax.random.fold_in(jax.random.key(seed), _SYMMETRY)
    first = jax.vmap(lambda row: jax.random.randint(jax.random.fold_in(key, row), (), 0, count))
    return (first(ids) + jnp.broadcast_to(epoch, ids.shape)) % count
