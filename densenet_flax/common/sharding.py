"""Data parallelism over all devices: the only file that knows meshes."""

import functools
import hashlib
from collections.abc import Callable, Mapping

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Shaped
from numpy.typing import ArrayLike

from densenet_flax.common.errors import InputError
from densenet_flax.common.trees import PyTree


def device_kinds() -> str:
    """Names the kinds of all devices, such as 'NVIDIA H100 80GB HBM3'."""
    return ", ".join(sorted({device.device_kind for device in jax.devices()}))


def is_first_process() -> bool:
    """Whether this process is the one that writes files."""
    return jax.process_index() == 0


def multiple_processes() -> bool:
    """Whether the run is spread over processes."""
    return jax.process_count() > 1


def make_mesh() -> Mesh:
    """Makes a mesh of one axis, `data`, over all devices, in the order that JAX chooses for them.

    On a TPU slice of several hosts that order follows the network between the devices and may
    interleave the processes. Nothing here assumes an order: rows go to the devices that hold them.
    """
    return jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))


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


def process_rows(rows: Shaped[np.ndarray, " N"], mesh: Mesh) -> Shaped[np.ndarray, " n"]:
    """Selects the rows of a batch that this process reads: those that its own devices hold.

    Args:
      rows: of the whole batch, the same in every process; padded with the first one until the
        number of devices divides them.
      mesh: of the devices, in any order.

    Returns:
      The rows in the order of this process's devices in the mesh.
    """
    return _local_part(np.concatenate([rows, np.repeat(rows[:1], -len(rows) % mesh.size)]), mesh)


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
      take: reads the rows of some ids, those of `process_rows`: arrays `[n, …]` by name.
      mesh: of the devices, in any order.

    Returns:
      What `take` returned, of all processes and in the order of `ids`, and `weight`.
    """
    weight = np.concatenate([weight, np.zeros(-len(ids) % mesh.size, weight.dtype)])
    batch = {**take(process_rows(ids, mesh)), "weight": _local_part(weight, mesh)}
    return {name: _put_local(np.asarray(x), mesh) for name, x in batch.items()}


def _local_devices(mesh: Mesh) -> list[int]:
    """The numbers of this process's devices in a mesh."""
    owners = [device.process_index for device in mesh.devices.flat]
    return [number for number, owner in enumerate(owners) if owner == jax.process_index()]


def _local_part(x: Shaped[np.ndarray, "N ..."], mesh: Mesh) -> Shaped[np.ndarray, "n ..."]:
    """Selects what this process's devices hold of a whole batch; their number divides N."""
    parts = np.split(x, mesh.size)
    return np.concatenate([parts[number] for number in _local_devices(mesh)])


def _put_local(x: Shaped[np.ndarray, "n ..."], mesh: Mesh) -> Shaped[Array, "N ..."]:
    """Puts what `_local_part` selected on the devices that hold it."""
    if not multiple_processes():
        return jax.device_put(x, over_batch(mesh))
    local_devices = _local_devices(mesh)
    rows = len(x) // len(local_devices)  # on each device
    shape = (rows * mesh.size, *x.shape[1:])

    def rows_of_device(index: tuple[slice, ...] | None) -> Shaped[np.ndarray, "..."]:
        assert index is not None  # JAX passes None for arrays that are not divided
        first, _, _ = index[0].indices(shape[0])
        i = local_devices.index(first // rows)
        return x[i * rows : (i + 1) * rows]

    return jax.make_array_from_callback(shape, over_batch(mesh), rows_of_device)


def begin_copy_to_host(x: Shaped[Array, "N ..."]) -> Shaped[Array, "N ..."]:
    """Begins to copy all rows of an array that is split over devices to every process.

    Returns the array that `np.asarray` waits for. Several processes must call it in one order.
    """
    if multiple_processes():
        assert isinstance(x.sharding, NamedSharding)
        x = _gather(x.sharding)(x)
    x.copy_to_host_async()
    return x


@functools.cache
def _gather(sharding: NamedSharding) -> Callable[[Array], Array]:
    return jax.jit(lambda x: x, out_shardings=sharding.update(spec=PartitionSpec()))


def to_host(x: Shaped[Array, "N ..."]) -> Shaped[np.ndarray, "N ..."]:
    """Copies all rows of an array that is split over devices to every process, in their order."""
    return np.asarray(begin_copy_to_host(x))


def gather(value: ArrayLike) -> Shaped[np.ndarray, "P ..."]:
    """Collects one array `[…]` from each process in all of them; all have to call it.

    (`multihost_utils.process_allgather` takes `jax.devices()` to be in the order of the processes.)
    """
    value = np.asarray(value)
    if not multiple_processes():
        return value[None]
    mesh = make_mesh()
    # Each device holds what its process has; the first device of a process stands for it.
    rows = to_host(_put_local(np.repeat(value[None], len(_local_devices(mesh)), axis=0), mesh))
    owners = [device.process_index for device in mesh.devices.flat]
    return rows[[owners.index(process) for process in range(jax.process_count())]]


def broadcast(tree: PyTree) -> PyTree:
    """Copies the arrays of the first process to all of them; all have to call it.

    What one process measures, chooses or reads from a directory, others may see differently. The
    arrays of the other processes only give the shapes and dtypes.
    """
    if not multiple_processes():
        return tree
    leaves, structure = jax.tree.flatten(jax.tree.map(np.asarray, tree))
    data = gather(np.frombuffer(b"".join(leaf.tobytes() for leaf in leaves), np.uint8))[0].tobytes()
    ends = np.cumsum([leaf.nbytes for leaf in leaves]).tolist()
    copies = [
        np.frombuffer(data[end - leaf.nbytes : end], leaf.dtype).reshape(leaf.shape)
        for leaf, end in zip(leaves, ends, strict=True)
    ]
    return jax.tree.unflatten(structure, copies)


def require_equal(facts: Mapping[str, PyTree]) -> None:
    """Checks that trees of arrays, numbers and strings are the same in all processes.

    All of them have to call it, with the same names.

    Raises:
      InputError: one is not; in all processes.
    """
    if not multiple_processes():
        return
    digests = []
    for fact in facts.values():
        digest = hashlib.sha256()
        for leaf in jax.tree.leaves(fact):
            digest.update(np.asarray(leaf).tobytes())
        digests.append(np.frombuffer(digest.digest(), np.uint8))
    gathered = gather(np.stack(digests))
    differs = (gathered != gathered[:1]).any(axis=2)  # [processes, facts]
    for number, name in enumerate(facts):
        if differs[:, number].any():
            others = ", ".join(map(str, np.flatnonzero(differs[:, number])))
            raise InputError(
                f"{name}: not the same in process {others} as in process 0; all processes of a run "
                "need the same code, command line, configuration, data and files"
            )


def all_processes(condition: bool) -> bool:
    """Whether a condition holds in every process; all of them have to call it."""
    return bool(gather(condition).all())
