"""The sections of `accelerator.py`; each prints Markdown, line by line as figures come.

python -m benchmarks.accelerator_sections SECTION [options of accelerator.py]
"""

import argparse
import collections
import gzip
import itertools
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from benchmarks.accelerator import option_parser
from benchmarks.common import ROOT, markdown_lines, random_batch, run_peer

IMPLEMENTATIONS = ("reference", "fused")
Lines = Iterator[str]


def make_model(args: argparse.Namespace, dtype: str, implementation: str) -> Any:
    """DenseNet201 with the recipe's head, or with `--small` a network of one layer per block."""
    import jax.numpy as jnp

    from densenet_flax.models.densenet import DenseNet

    return DenseNet(
        blocks=(1, 1, 1, 1) if args.small else (6, 12, 48, 32),
        num_classes=2,
        hidden=(256,),
        dropout=0.5,
        dtype=jnp.dtype(dtype),
        implementation=implementation,
    )


def sizes(args: argparse.Namespace) -> tuple[tuple[int, ...], int]:
    """Batch sizes, and pixels of an image's side."""
    return ((4,), 32) if args.small else ((32, 256), 224)


def random_images(n: int, pixels: int) -> np.ndarray:
    """Images uint8 [n, pixels, pixels, 3], the same in every call."""
    return np.random.default_rng(0).integers(0, 256, (n, pixels, pixels, 3), np.uint8)


def seconds_per_call(call: Callable[[], Any], seconds: float) -> float:
    """Seconds of a call whose results nobody waits for until the last: the device's throughput."""
    import jax

    jax.block_until_ready(call())
    count, started = 1, time.perf_counter()
    while True:
        results = [call() for _ in range(count)]
        jax.block_until_ready(results[-1])
        elapsed = time.perf_counter() - started
        if elapsed > seconds:
            return elapsed / count
        count, started = 2 * count, time.perf_counter()


def device_memory() -> str:
    """The peak of this process on the device so far, in GB; a dash where JAX does not know it."""
    import jax

    stats = jax.local_devices()[0].memory_stats() or {}
    return f"{stats['peak_bytes_in_use'] / 1e9:.2f}" if "peak_bytes_in_use" in stats else "–"


def device(args: argparse.Namespace) -> Lines:
    """What the figures are of."""
    import flax
    import jax

    first = jax.devices()[0]
    memory = (first.memory_stats() or {}).get("bytes_limit", 0)
    kind = f"{first.device_kind} ({first.platform})"
    yield f"- {len(jax.devices())} × {kind}, {memory / 1e9:.1f} GB for JAX"
    yield f"- {os.cpu_count()} CPU cores, {platform.platform()}"
    yield f"- Python {platform.python_version()}, jax {jax.__version__}, flax {flax.__version__}"
    if shutil.which("nvidia-smi"):
        query = ["nvidia-smi", "--query-gpu=name,driver_version,power.limit,clocks.max.sm"]
        done = subprocess.run([*query, "--format=csv,noheader"], capture_output=True, text=True)
        yield f"- {done.stdout.strip()}"
    network = "a tiny network" if args.small else "DenseNet201"
    yield f"- {network}, images of {sizes(args)[1]} pixels; random weights and images"


def parity(args: argparse.Namespace) -> Lines:
    """Logits and gradients of this device against float32 on the CPU backend."""
    import jax
    import optax

    from densenet_flax.models import frontier
    from densenet_flax.models.init import init_variables
    from densenet_flax.models.preprocessing import preprocess_input

    pixels = 64 if args.small else 128  # the CPU has to compute it, too
    images, labels = random_images(8, pixels), np.arange(8) % 2
    plain = make_model(args, "float32", "reference")
    variables = init_variables(plain, 0)
    norms = frontier.resolve("all", plain.blocks).train_norms

    def compute(model: Any, on: Any) -> tuple[np.ndarray, np.ndarray, float]:
        def loss(params: Any, rest: Any, x: Any) -> Any:
            trees = {**rest, "params": params}
            x = preprocess_input(x)
            logits, _ = model.apply(trees, x, train_norms=norms, mutable=["mean_var"])
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            return losses.mean(), logits

        rest = {name: tree for name, tree in variables.items() if name != "params"}
        arguments = jax.device_put((variables["params"], rest, images), on)
        (value, logits), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(*arguments)
        flat = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(grads)])
        return np.asarray(logits), flat, float(value)

    def distance(x: np.ndarray, y: np.ndarray) -> str:
        return f"{np.linalg.norm(x - y) / np.linalg.norm(y):.1e}"

    logits, gradient, value = compute(plain, jax.devices("cpu")[0])

    def rows() -> Iterator[list[Any]]:
        for dtype, implementation in itertools.product(("float32", "bfloat16"), IMPLEMENTATIONS):
            model = make_model(args, dtype, implementation)
            others = compute(model, jax.devices()[0])
            errors = distance(others[0], logits), distance(others[1], gradient)
            yield [dtype, implementation, *errors, f"{others[2] - value:+.1e}"]

    yield f"Batch statistics in all norms, 8 images of {pixels} pixels; relative differences."
    yield ""
    columns = ["precision", "implementation", "logits", "gradient of all parameters", "loss"]
    yield from markdown_lines(columns, rows())


def forward(args: argparse.Namespace) -> Lines:
    """Images per second from pixels to features, all of them on the device."""
    import jax

    from densenet_flax.common.sharding import make_mesh, replicate
    from densenet_flax.inference.segments import SegmentedModel
    from densenet_flax.models.init import init_variables

    batches, pixels = sizes(args)
    mesh = make_mesh()
    variables = replicate(init_variables(make_model(args, "float32", "reference"), 0), mesh)

    def rows() -> Iterator[list[Any]]:
        for dtype in ("bfloat16", "float32"):
            for batch, implementation in itertools.product(batches, IMPLEMENTATIONS):
                network = SegmentedModel(make_model(args, dtype, implementation), mesh)
                x = replicate(random_images(batch, pixels), mesh)
                call = lambda net=network, x=x: net.run(variables, x, stop="head")  # noqa: E731
                started = time.perf_counter()
                jax.block_until_ready(call())
                compiled = time.perf_counter() - started
                time_of_call = seconds_per_call(call, 0.1 if args.small else 1)
                goal = "> 6,000" if dtype == "bfloat16" else "–"
                speed = [f"{1e3 * time_of_call:.2f}", f"{batch / time_of_call:.0f}", goal]
                yield [dtype, batch, implementation, *speed, f"{compiled:.0f}", device_memory()]

    columns = ["precision", "batch", "implementation", "ms", "images/s", "goal"]
    yield from markdown_lines([*columns, "first call, s", "peak so far, GB"], rows())


def make_step(args: argparse.Namespace, case: tuple[str, str, int, str]) -> tuple[Any, Any]:
    """A training step and a batch for it, by (trains from, precision, batch, implementation)."""
    from densenet_flax.common.sharding import make_mesh
    from densenet_flax.models import frontier
    from densenet_flax.models.init import init_variables
    from densenet_flax.training.stage import Stage
    from densenet_flax.training.train_step import TrainStep

    unfreeze_from, dtype, n, implementation = case
    model, pixels, mesh = make_model(args, dtype, implementation), sizes(args)[1], make_mesh()
    at = frontier.resolve(unfreeze_from, model.blocks)
    step = TrainStep(model, Stage("s", at, 10**6), init_variables(model, 0), mesh, seed=0)
    return step, random_batch(model, at.cut, n, pixels, mesh)


def step(args: argparse.Namespace) -> Lines:
    """Milliseconds of a training step, its memory, and how long it compiles."""

    def rows() -> Iterator[list[Any]]:
        starts = ("conv5_block1" if args.small else "300", "all")
        batches = sizes(args)[0]
        for case in itertools.product(starts, ("bfloat16",), batches, IMPLEMENTATIONS):
            yield measure(case)
        yield measure((starts[0], "float32", batches[0], "reference"))

    def measure(case: tuple[str, str, int, str]) -> list[Any]:
        train_step, batch = make_step(args, case)
        compiled = train_step.compile(batch)
        temporary = train_step._compiled.memory_analysis().temp_size_in_bytes / 1e6
        state = train_step.init(0)

        def call() -> Any:
            nonlocal state
            state, metrics = train_step.run_step(state, batch)
            return metrics["loss"]

        time_of_step = seconds_per_call(call, 0.1 if args.small else 1)
        goal = "> 1,200" if case[:2] == ("all", "bfloat16") else "–"
        speed = [f"{1e3 * time_of_step:.2f}", f"{case[2] / time_of_step:.0f}", goal]
        return [*case, *speed, f"{compiled:.0f}", f"{temporary:.0f}", device_memory()]

    columns = ["trains from", "precision", "batch", "implementation", "ms", "images/s", "goal"]
    columns += ["compilation, s", "temporaries, MB", "peak so far, GB"]
    yield from markdown_lines(columns, rows())


def profile(args: argparse.Namespace) -> Lines:
    """The ten longest kernels of a step; the trace is kept."""
    import jax

    case = ("all", "bfloat16", sizes(args)[0][0], "reference")
    train_step, batch = make_step(args, case)
    state, _ = train_step.run_step(train_step.init(0), batch)
    jax.block_until_ready(state)
    folder = args.trace.resolve()
    with jax.profiler.trace(str(folder)):
        for _ in range(3):
            state, _ = train_step.run_step(state, batch)
        jax.block_until_ready(state)
    yield f"Three steps of {', '.join(map(str, case))}: {folder}"
    yield ""
    traces = sorted(folder.rglob("*.trace.json.gz"), key=lambda path: path.stat().st_mtime)
    if not traces:
        yield "The profiler wrote no trace that can be read here."
        return
    total, longest = longest_kernels(json.loads(gzip.decompress(traces[-1].read_bytes())))
    rows = ([name[:80], n, f"{1e3 * s:.3f}", f"{s / total:.1%}"] for name, n, s in longest)
    yield from markdown_lines(["kernel", "calls", "ms", "share"], rows)


def longest_kernels(
    trace: Mapping[str, Any], count: int = 10
) -> tuple[float, list[tuple[str, int, float]]]:
    """Seconds of all events of the devices, and the longest kernels: name, calls, seconds.

    Args:
      trace: in Chrome's format. Without a device, as on a CPU, all events of XLA count.
      count: of the kernels.
    """
    events = trace["traceEvents"]
    processes = {e["pid"]: e["args"]["name"] for e in events if e.get("name") == "process_name"}
    threads = {
        (e["pid"], e["tid"]): e["args"]["name"] for e in events if e.get("name") == "thread_name"
    }
    devices = {pid for pid, name in processes.items() if "/device:" in name}
    calls, seconds = collections.Counter[str](), collections.Counter[str]()
    for event in events:
        if event.get("ph") != "X":
            continue
        thread = threads.get((event["pid"], event["tid"]), "")
        # A device's other rows show the same time again, by step, module or operation.
        is_kernel = "hlo_op" in event.get("args", {})
        if devices:
            is_kernel = event["pid"] in devices and ("Stream" in thread or thread == "XLA Ops")
        if is_kernel:
            calls[event["name"]] += 1
            seconds[event["name"]] += event["dur"] / 1e6
    total = sum(seconds.values()) or 1.0
    return total, [(name, calls[name], s) for name, s in seconds.most_common(count)]


def peers(args: argparse.Namespace) -> Lines:
    """Images per second from host to host: ours as prediction runs it, timm, and Keras on JAX."""
    if args.small:
        yield "Left out with `--small`: the peers have DenseNet201 only."
        return
    batches, pixels = sizes(args)
    options = {"precision": "bfloat16", "pixels": pixels, "seconds": 2, "jit": "auto"}
    with tempfile.TemporaryDirectory() as folder:
        run_peer("initial", {"folder": folder})
        paths = {name: f"{folder}/{name}.safetensors" for name in ("ours", "torch")}
        options |= {"weights": {**paths, "keras": f"{folder}/keras.weights.h5"}, "compile": True}
        kinds: list[tuple[str, str, dict[str, Any], str]] = [
            (f"ours, {name}", "ours_forward", {"implementation": name}, sys.executable)
            for name in IMPLEMENTATIONS
        ]
        if "torch" in args.peers.split(","):
            kinds.append(("timm, torch.compile", "torch_forward", {}, args.torch_python))
        if "keras" in args.peers.split(","):
            kinds.append(("Keras on JAX", "keras_forward", {"backend": "jax"}, args.keras_python))

        def rows() -> Iterator[list[Any]]:
            first = 0.0
            for label, module, more, python in kinds:
                run = run_peer(module, {**options, "batches": batches, **more}, python=python)
                times = [run["batches"][str(n)]["call_seconds"] for n in batches]
                speeds = [f"{n / t:.0f}" for n, t in zip(batches, times, strict=True)]
                first = first or times[-1]
                ratio = f"{times[-1] / first:.2f}"
                yield [label, *speeds, ratio, f"{run.get('device_peak_gb', 0):.2f}"]

        yield "Goal: timm and Keras take at least 1.5 times the time of the better one of ours."
        yield ""
        columns = ["network", *(f"images/s, batch {n}" for n in batches)]
        columns += [f"time to the first row's, batch {batches[-1]}", "peak, GB"]
        yield from markdown_lines(columns, rows())


def recipe(args: argparse.Namespace) -> Lines:
    """`recipe.py` in bfloat16, with PyTorch where it is asked for."""
    if args.small:
        yield "Left out with `--small`: `recipe.py` trains DenseNet201."
        return
    names = ["ours:bfloat16"] + ["torch:bfloat16"] * ("torch" in args.peers.split(","))
    command = [sys.executable, "benchmarks/recipe.py", "--train=2000", "--validation=400"]
    command += ["--again", f"--peers={','.join(names)}", f"--python=torch={args.torch_python}"]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    yield from done.stdout.splitlines()


SECTIONS = {f.__name__: f for f in (device, parity, forward, step, profile, peers, recipe)}


def main() -> None:
    """Prints a section."""
    parser = option_parser(__doc__)
    parser.add_argument("section", choices=SECTIONS)
    args = parser.parse_args()
    for line in SECTIONS[args.section](args):
        print(line, flush=True)


if __name__ == "__main__":
    main()
