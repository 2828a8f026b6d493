"""Our forward pass: uint8 images to pooled features, as prediction and the prefix cache run it."""

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.common import answer, peer_options
from benchmarks.peers.timing import images, time_calls
from densenet_flax.common.host_memory import tuned_host
from densenet_flax.common.sharding import make_mesh, put_batch, replicate
from densenet_flax.inference.segments import SegmentedModel
from densenet_flax.models.densenet import DenseNet201
from densenet_flax.weights import load_weights


def main() -> None:
    """Times each batch size, with the memory settings of `main.py`."""
    options = peer_options()
    dtype, implementation = jnp.dtype(options["precision"]), options["implementation"]
    model = DenseNet201(num_classes=2, hidden=(256,), dtype=dtype, implementation=implementation)
    mesh = make_mesh()
    variables = replicate(load_weights(options["weights"]["ours"], model), mesh)
    network = SegmentedModel(model, mesh)
    times = {}
    for batch in options["batches"]:
        x = images(batch, options["pixels"])
        ids, ones = np.arange(batch), np.ones(batch, np.float32)

        def call(x=x, ids=ids, ones=ones, batch=batch) -> np.ndarray:
            on_device = put_batch(ids, ones, lambda ids: {"x": x[ids]}, mesh)["x"]
            return np.asarray(network.run(variables, on_device, stop="head"))[:batch]

        times[batch] = time_calls(call, options["seconds"])
    stats = jax.local_devices()[0].memory_stats() or {}
    device = {"device_peak_gb": stats["peak_bytes_in_use"] / 1e9} if stats else {}
    answer({"device": jax.devices()[0].device_kind, "batches": times, **device}, ("jax", "flax"))


if __name__ == "__main__":
    with tuned_host():
        main()
