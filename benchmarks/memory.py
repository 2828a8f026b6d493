"""Peak memory and seconds of the training step for each `remat` and precision.

    python benchmarks/memory.py [--pixels=224] [--batch=32] [--unfreeze_from=300]

Each combination runs in a separate process, so that its peak is its own. Compilation is excluded
from the seconds, but not from the peak of the process. On a GPU or TPU the peak of the device is
printed instead.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

CHOICES = [
    (remat, dtype) for dtype in ("float32", "bfloat16") for remat in ("none", "bottleneck", "block")
]


def measure(
    remat: str, dtype: str, pixels: int, batch_size: int, unfreeze_from: str, steps: int
) -> dict:
    """Measures one combination, in this process."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from densenet_flax.common.sharding import make_mesh, put_batch
    from densenet_flax.models.densenet import DenseNet201
    from densenet_flax.models.frontier import resolve
    from densenet_flax.models.init import init_variables
    from densenet_flax.training.stage import Stage
    from densenet_flax.training.train_step import TrainStep

    model = DenseNet201(
        num_classes=2, hidden=(256,), dropout=0.5, remat=remat, dtype=jnp.dtype(dtype)
    )
    frontier = resolve(unfreeze_from, model.blocks)
    mesh = make_mesh()
    step = TrainStep(model, Stage("s", frontier, 100), init_variables(model, 0), mesh, seed=0)
    rng = np.random.default_rng(0)
    image = jax.ShapeDtypeStruct((batch_size, pixels, pixels, 3), jnp.float32)
    if frontier.cut == "stem":
        x = rng.integers(0, 256, image.shape, dtype=np.uint8)
    else:
        shapes = jax.eval_shape(model.init, jax.random.key(0), image)
        cut = jax.eval_shape(lambda v, i: model.apply(v, i, stop=frontier.cut), shapes, image)
        x = rng.normal(size=cut.shape).astype(np.float32)
    label = np.arange(batch_size, dtype=np.int32) % 2
    ones = np.ones(batch_size, np.float32)
    batch = put_batch(
        np.arange(batch_size), ones, lambda ids: {"inputs": x[ids], "label": label[ids]}, mesh
    )
    state, frozen = step.init(0), step.frozen  # put on the devices here, not while tracing

    def backward(params):
        variables = step.merge_tail(params, state.batch_stats.unravel(), frozen)
        options = {
            "start": frontier.cut,
            "train_norms": frontier.train_norms,
            "mutable": ["mean_var"],
        }

        def forward(p):
            return model.apply({**variables, "params": p}, batch["inputs"], **options)[0]

        return jax.vjp(forward, variables["params"])[1]

    kept = jax.tree.leaves(jax.eval_shape(lambda p: backward(p.unravel()), state.params))
    compile_seconds = step.compile(batch)
    analysis = step._compiled.memory_analysis()
    seconds = []
    for _ in range(steps):
        started = time.perf_counter()
        state, metrics = step.run_step(state, batch)
        jax.block_until_ready(state)
        seconds.append(time.perf_counter() - started)
    stats = jax.local_devices()[0].memory_stats() or {}
    host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "remat": remat,
        "dtype": dtype,
        "step_seconds": statistics.median(seconds[1:]),
        "compile_seconds": compile_seconds,
        "kept_gb": sum(leaf.size * leaf.dtype.itemsize for leaf in kept) / 1e9,
        "temporary_gb": analysis.temp_size_in_bytes / 1e9,
        "peak_gb": stats.get("peak_bytes_in_use", host) / 1e9,
        "loss": float(metrics["loss"] / metrics["count"]),
    }


def main() -> None:
    """Measures all combinations, one process each, and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pixels", type=int, default=224)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--unfreeze_from", default="300")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--only", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only:
        print(
            json.dumps(
                measure(
                    *arguments.only,
                    arguments.pixels,
                    arguments.batch,
                    arguments.unfreeze_from,
                    arguments.steps,
                )
            )
        )
        return
    columns = [
        "remat",
        "precision",
        "step, s",
        "compilation, s",
        "kept for the backward pass, GB",
        "XLA's temporaries, GB",
        "peak, GB",
    ]
    print("| " + " | ".join([*columns, "loss"]) + " |\n" + "|---" * 8 + "|")
    for remat, dtype in CHOICES:
        command = [sys.executable, __file__, *sys.argv[1:], "--only", remat, dtype]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        row = json.loads(done.stdout.splitlines()[-1])
        numbers = [f"{row['step_seconds']:.2f}", f"{row['compile_seconds']:.0f}"]
        numbers += [f"{row[name]:.2f}" for name in ("kept_gb", "temporary_gb", "peak_gb")]
        print("| " + " | ".join([remat, dtype, *numbers, f"{row['loss']:.5f}"]) + " |", flush=True)


if __name__ == "__main__":
    main()
