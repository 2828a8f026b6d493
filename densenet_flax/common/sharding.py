"""Data parallelism over all devices: the only file that knows meshes and processes."""

from collections.abc import Callable, Mapping

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Shaped
from numpy.typing import ArrayLike

from densenet_flax.common.errors import InputError
from densenet_flax.common.trees import PyTree


def start_processes(coordinator: str, processes: int, process: int) -> None:
    """Connects the processes of a run; call it before JAX is used for anything else.

    Args:
      coordinator: 'auto' where JAX finds the other processes itself (Slurm, GKE, TPU pods, MPI), or
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
    """Makes a mesh of one axis, `data`, over all devices, in the order of their processes.

    `jax.make_mesh` would order devices by the network between them, and so interleave the processes
    of a TPU slice of several hosts, while the rows of a batch are divided process by process.
    """
    devices = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    return Mesh(np.array(devices), ("data",), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """Sharding of what every device holds whole: parameters, statistics, the optimizer's state."""
    return NamedSharding(mesh, PartitionSpec())


def over_batch(mesh: Mesh) -> NamedSharding:
    """Sharding of what is split along its first axis: batches."""
    return NamedSharding(mesh, PartitionSpec("data"))


def replicate(tree: PyTree, mesh: Mesh) -> PyTree:
    """Copies a tree of arrays to every device; the result shares no memory and may be donated."""
    sharding = replicated(mesh)
    # np.array and not np.asarray: a donated buffer must not be the caller's.
    copies = jax.tree.map(np.array, tree)
    if not multiple_processes():
        return jax.device_put(copies, sharding)  # all leaves at once
    return jax.tree.map(
        lambda x: jax.make_array_from_process_local_data(sharding, x, x.shape), copies
    )


def process_slice(rows: Shaped[np.ndarray, " N"], mesh: Mesh) -> Shaped[np.ndarray, " n"]:
    """Selects the rows of a batch that this process reads and puts on its devices.

    Args:
      rows: of the whole batch, the same in every process; padded with the first one until the
        number of devices divides them.
      mesh: of the devices, in the order of their processes.

    Raises:
      ValueError: the devices are in another order, so that rows would go to the wrong process.
    """
    processes = [device.process_index for device in mesh.devices.flat]
    if processes != sorted(processes):
        raise ValueError(
            f"mesh: its devices belong to the processes {processes}; expected them in the order of "
            "the processes, as common.sharding.make_mesh returns them"
        )
    rows = np.concatenate([rows, np.repeat(rows[:1], -len(rows) % mesh.size)])
    size = len(rows) // jax.process_count()
    return rows[jax.process_index() * size : (jax.process_index() + 1) * size]


def put_batch(
    ids: Shaped[np.ndarray, " N"],
    weight: Shaped[np.ndarray, " N"],
    take: Callable[[np.ndarray], Mapping[str, ArrayLike]],
    mesh: Mesh,
) -> dict[str, Array]:
    """Puts a batch on all devices, of which each process reads only its own rows.

    Args:
      ids: of the whole batch, the same in every process.
      weight: of each; padded with 0 until the number of devices divides the batch. Rows of weight 0
        count nowhere, so padding changes no result.
      take: reads the rows of some ids, those of `process_slice`: arrays `[n, …]` by name.
      mesh: as for `process_slice`.

    Returns:
      What `take` returned, of all processes, and `weight`.
    """
    size = len(ids) + -len(ids) % mesh.size
    local = process_slice(np.arange(len(ids)), mesh)
    first = jax.process_index() * len(local)
    is_padding = np.arange(first, first + len(local)) >= len(ids)
    padded_weight = np.where(is_padding, 0, weight[local]).astype(weight.dtype)
    batch = {**take(ids[local]), "weight": padded_weight}

    def put(x: ArrayLike) -> Array:
        x = np.asarray(x)
        return jax.make_array_from_process_local_data(over_batch(mesh), x, (size, *x.shape[1:]))

    return {name: put(x) for name, x in batch.items()}


def to_host(x: Shaped[Array, "N ..."]) -> Shaped[np.ndarray, "N ..."]:
    """Copies all rows of an array that is split over devices to every process."""
    if not multiple_processes():
        return np.asarray(x)
    return np.asarray(multihost_utils.process_allgather(x, tiled=True))


def all_processes(condition: bool) -> bool:
    """Whether a condition holds in every process; all of them have to call it."""
    if not multiple_processes():
        return condition
    return bool(multihost_utils.process_allgather(np.array(condition)).all())
