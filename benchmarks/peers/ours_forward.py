"""Our forward pass: uint8 images to pooled features, as prediction and the prefix cache run it."""

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.common import answer, options_of_peer
from benchmarks.peers.timing import images, time_calls
from densenet_flax.common.host_memory import tuned_host
from densenet_flax.common.sharding import make_mesh, put_batch, replicate
from densenet_flax.inference.segments import SegmentedModel
from densenet_flax.models.densenet import DenseNet201
from densenet_flax.weights import load_weights


def main() -> None:
    """Times each batch size, under the memory settings of `main.py`."""
    given = options_of_peer()
    model = DenseNet201(num_classes=2, hidden=(256,), dtype=jnp.dtype(given["precision"]))
    mesh = make_mesh()
    variables = replicate(load_weights(given["weights"]["ours"], model), mesh)
    pipeline = SegmentedModel(model, mesh)
    found = {}
    for batch in given["batches"]:
        x = images(batch, given["pixels"])
        ids, ones = np.arange(batch), np.ones(batch, np.float32)

        def call(x=x, ids=ids, ones=ones, batch=batch) -> np.ndarray:
            on_device = put_batch(ids, ones, lambda some: {"x": x[some]}, mesh)["x"]
            return np.asarray(pipeline.run(variables, on_device, stop="head"))[:batch]

        found[batch] = time_calls(call, given["seconds"])
    stats = jax.local_devices()[0].memory_stats() or {}
    device = {"device_peak_gb": stats["peak_bytes_in_use"] / 1e9} if stats else {}
    answer({"device": jax.devices()[0].device_kind, "batches": found, **device}, ("jax", "flax"))


if __name__ == "__main__":
    with tuned_host():
        main()
