"""The only file that knows meshes and processes: data parallelism over all devices."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from densenet_flax.common.errors import InputError


def start_processes(coordinator: str, processes: int, process: int) -> None:
    """Joins the processes of a run; to be called before JAX is used for anything else.

    Args:
      coordinator: 'auto' where JAX finds the others itself (Slurm, GKE, TPU pods, MPI), or
        'address:port' of the first process, with the two numbers below.
      processes: how many there are.
      process: which one this is, from 0.

    Raises:
      InputError: they cannot be found or reached.
    """
    try:
        if coordinator == "auto":
            jax.distributed.initialize()
        else:
            jax.distributed.initialize(coordinator, processes, process)
    except (ValueError, RuntimeError) as error:
        raise InputError(
            f"--coordinator={coordinator}: the processes of this run did not find each other "
            f"({str(error).splitlines()[0]}); give --coordinator=address:port --processes=N "
            "--process=0…N-1"
        ) from error


def is_first_process() -> bool:
    """Whether this process is the one that writes files."""
    return jax.process_index() == 0


def multiple_processes() -> bool:
    """Whether the run is spread over processes."""
    return jax.process_count() > 1


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

    copies = jax.tree.map(np.array, tree)
    if not multiple_processes():
        return jax.device_put(copies, sharding)  # all leaves at once

    def put(x: np.ndarray) -> jax.Array:
        return jax.make_array_from_process_local_data(sharding, x, x.shape)

    return jax.tree.map(put, copies)


def process_slice(ids: np.ndarray, mesh: Mesh) -> np.ndarray:
    """The rows of a batch that this process reads and puts on its devices.

    Args:
      ids: of the whole batch, the same in every process; filled up with the first one until the
        devices divide it.
      mesh: the devices.
    """
    ids = np.concatenate([ids, np.repeat(ids[:1], -len(ids) % mesh.size)])
    share = len(ids) // jax.process_count()
    return ids[jax.process_index() * share : (jax.process_index() + 1) * share]


def put_batch(
    ids: np.ndarray, weight: np.ndarray, take: Callable[[np.ndarray], dict[str, Any]], mesh: Mesh
) -> dict[str, jax.Array]:
    """A batch over all devices, of which each process reads only its own rows.

    Args:
      ids: of the whole batch, the same in every process.
      weight: of each; filled up with 0 until the devices divide the batch, which changes no
        result because rows of weight 0 count nowhere.
      take: from ids, those of `process_slice`, to arrays of as many rows.
      mesh: the devices.

    Returns:
      What `take` gave, and `weight`.
    """
    whole = len(ids) + -len(ids) % mesh.size
    places = process_slice(np.arange(len(ids)), mesh)
    filled = np.arange(whole)[jax.process_index() * len(places) :][: len(places)] >= len(ids)
    local = {
        **take(ids[places]),
        "weight": np.where(filled, 0, weight[places]).astype(weight.dtype),
    }

    def put(x: Any) -> jax.Array:
        x = np.asarray(x)
        return jax.make_array_from_process_local_data(over_batch(mesh), x, (whole, *x.shape[1:]))

    return {name: put(x) for name, x in local.items()}


def to_host(x: jax.Array) -> np.ndarray:
    """All rows of an array that is split over devices, on every process."""
    if not multiple_processes():
        return np.asarray(x)
    return np.asarray(multihost_utils.process_allgather(x, tiled=True))


def all_processes(fact: bool) -> bool:
    """Whether it holds in every process; to be asked by all of them."""
    if not multiple_processes():
        return fact
    return bool(multihost_utils.process_allgather(np.array(fact)).all())
