"""The only file that knows meshes and processes: data parallelism over all devices."""

from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec


def make_mesh() -> Mesh:
    """One axis, `data`, over all devices of all processes."""
    return jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of what every device holds whole: parameters, statistics, the optimizer."""
    return NamedSharding(mesh, PartitionSpec())


def over_batch(mesh: Mesh) -> NamedSharding:
    """The sharding of what is split along its first axis: batches."""
    return NamedSharding(mesh, PartitionSpec("data"))


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Puts a tree of arrays whole on every device; always copies, so that it may be donated."""
    sharding = replicated(mesh)
    return jax.tree.map(lambda x: jax.device_put(np.array(x), sharding), tree)


def shard_batch(batch: dict[str, Any], mesh: Mesh) -> dict[str, jax.Array]:
    """Splits a batch over the devices, padded with zeros if they do not divide it.

    The rows that are added have `weight` 0, so they change no result.
    """
    missing = -len(batch["weight"]) % mesh.size

    def put(x: Any) -> jax.Array:
        if missing:
            x = np.pad(np.asarray(x), [(0, missing)] + [(0, 0)] * (x.ndim - 1))
        return jax.device_put(x, over_batch(mesh))

    return {name: put(x) for name, x in batch.items()}
