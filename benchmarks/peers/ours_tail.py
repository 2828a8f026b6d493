"""Our training step from Keras's layer 300, alone."""

import time

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.common import answer, median, peer_options
from benchmarks.tail import inputs
from densenet_flax.common.host_memory import tuned_host
from densenet_flax.common.sharding import make_mesh, put_batch
from densenet_flax.models.densenet import DenseNet201
from densenet_flax.models.frontier import resolve
from densenet_flax.training.stage import Stage
from densenet_flax.training.train_step import TrainStep
from densenet_flax.weights import load_weights


def main() -> None:
    """Runs the steps, with the memory settings of `main.py`."""
    options = peer_options()
    dtype = jnp.dtype(options["precision"])
    implementation = options["implementation"]
    model = DenseNet201(num_classes=2, hidden=(256,), dtype=dtype, implementation=implementation)
    variables = load_weights(options["weights"]["ours"], model)
    frontier = resolve("300", model.blocks)
    mesh = make_mesh()
    step = TrainStep(model, Stage("tail", frontier, 1000), variables, mesh, seed=0)
    x, label = inputs(options["batch"], options["pixels"])
    x = x.astype(dtype)  # as the prefix cache provides it
    ids, ones = np.arange(len(x)), np.ones(len(x), np.float32)
    batch = put_batch(ids, ones, lambda ids: {"inputs": x[ids], "label": label[ids]}, mesh)
    state = step.init(0)
    compiled = step.compile(batch)
    seconds, losses = [], []
    for _ in range(options["steps"]):
        started = time.perf_counter()
        state, metrics = step.run_step(state, batch)
        jax.block_until_ready(state)
        seconds.append(time.perf_counter() - started)
        losses.append(float(metrics["loss"] / metrics["count"]))
    stats = jax.local_devices()[0].memory_stats() or {}
    device = {"device_peak_gb": stats["peak_bytes_in_use"] / 1e9} if stats else {}
    answer(
        {
            "device": jax.devices()[0].device_kind,
            "step_seconds": median(seconds[2:]),
            "all_seconds": seconds,
            "compile_seconds": compiled,
            "losses": losses,
            **device,
        },
        ("jax", "flax"),
    )


if __name__ == "__main__":
    with tuned_host():
        main()
