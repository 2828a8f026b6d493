"""How much of a run the device waits for the host, with a device that only takes time.

    python benchmarks/device_idle.py [--step_ms=10] [--batches=160] [--unfreeze_from=300]

Everything that the host does is real: reading and shuffling batches, dispatching steps, metrics and
logging, unpacking the state, validation, checkpoints of all parameters, prediction. Only the
network's arithmetic is replaced, by a call that keeps the "device" busy for some milliseconds
without using a processor. So the host's share can be measured on two CPU cores for a device that is
as fast as an accelerator. Times between two calls in which the device has nothing to do are
reported by what the host did. The transfer between host and device is that of a CPU, a copy.
"""

import argparse
import ctypes
import dataclasses
import functools
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np

from benchmarks.common import markdown, random_batch

GOAL = 0.1  # of an epoch outside steps and validation


@dataclasses.dataclass(frozen=True)
class Interval:
    """A call that kept the device busy, in seconds."""

    label: str
    start: float
    end: float


class FakeDevice:
    """Calls that take time inside of compiled programs, one after the other, and their times."""

    LABELS = ("step", "forward")

    def __init__(self) -> None:
        """Registers the call with XLA's CPU backend."""
        import jax

        self.intervals: list[Interval] = []
        lock = threading.Lock()  # a device runs one program at a time

        # A plain function pointer, because programs with JAX's own callbacks into Python are not
        # dispatched asynchronously on a CPU.
        @ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.POINTER(ctypes.c_void_p))
        def occupy(output: int, inputs: Any) -> None:
            milliseconds, label = ctypes.cast(inputs[0], ctypes.POINTER(ctypes.c_float))[:2]
            with lock:
                start = time.perf_counter()
                time.sleep(milliseconds / 1e3)
                label = self.LABELS[int(label)]
                self.intervals.append(Interval(label, start, time.perf_counter()))
            ctypes.cast(output, ctypes.POINTER(ctypes.c_float))[0] = 0.0

        self._occupy = occupy  # must live as long as programs call it
        capsule = jax.ffi.pycapsule(occupy)
        jax.ffi.register_ffi_target("occupy", capsule, platform="cpu", api_version=0)

    def occupy(self, label: str, milliseconds: float, after: Any) -> Any:
        """Within a program: a zero that is known so many milliseconds after `after`, a scalar."""
        import jax
        import jax.numpy as jnp

        arguments = jnp.array([milliseconds, self.LABELS.index(label)], jnp.float32)
        # Without a side effect, which would keep JAX from its fast way to call a program.
        zero = jax.ShapeDtypeStruct((), jnp.float32)
        call = jax.ffi.ffi_call("occupy", zero, custom_call_api_version=2)
        return call(arguments + 0 * after.astype(jnp.float32))

    def take(self) -> list[Interval]:
        """The calls since the last time."""
        taken, self.intervals = self.intervals, []
        return sorted(taken, key=lambda interval: interval.start)


def fake_network(device: FakeDevice, step_ms: float, segment_ms: float) -> type:
    """Replaces all arithmetic of the network; returns the class of the training steps."""
    import jax
    import jax.numpy as jnp

    from densenet_flax.inference import segments
    from densenet_flax.training.train_step import TrainStep

    class FakeStep(TrainStep):
        """A step that takes and returns what a real one does, and changes one number."""

        def _step(self, state, frozen, batch, rate_scale):
            del frozen, rate_scale
            zero = device.occupy("step", step_ms, state.step + batch["label"][0])
            params = state.params.map(lambda _, vector: vector.at[0].add(zero + 1e-6))
            count = batch["weight"].sum()
            metrics = {"loss": 0.5 * count + zero, "correct": 0.9 * count, "count": count}
            metrics |= {"gradient_norm": zero + 1, "update_norm": zero + 1}
            return dataclasses.replace(state, step=state.step + 1, params=params), metrics

    @functools.partial(jax.jit, static_argnames=("model", "start", "stop", "preprocessing"))
    def run_segment(model, variables, x, *, start, stop, preprocessing):
        del preprocessing
        values = jax.tree.leaves(variables)
        zero = device.occupy("forward", segment_ms, x.ravel()[0] + values[0].ravel()[0])
        if stop is None:
            return jnp.zeros((len(x), model.num_classes)) + zero
        images = (len(x), 64, 64, 3)
        channels = model.input_shape(stop, images)[-1]
        if stop == "head":
            return jnp.zeros((len(x), channels)) + zero
        units = model.units[model.units.index(start) : model.units.index(stop)]
        halvings = sum(2 if unit == "stem" else unit.startswith("pool") for unit in units)
        h, w = (size >> halvings for size in x.shape[1:3])
        return jnp.zeros((len(x), h, w, channels), model.dtype) + zero.astype(model.dtype)

    segments.run_segment = run_segment  # type: ignore[assignment]
    return FakeStep


def idle_by_phase(intervals: Sequence[Interval], names: Mapping[tuple[str, str], str]) -> dict:
    """Seconds between calls, by the labels of the calls before and after."""
    idle = dict.fromkeys(names.values(), 0.0)
    for before, after in pairwise(intervals):
        idle[names[before.label, after.label]] += max(0.0, after.start - before.end)
    return idle


EPOCH_PHASES = {
    ("step", "step"): "between steps",
    ("step", "forward"): "from the last step to validation",
    ("forward", "forward"): "within validation",
    ("forward", "step"): "from validation to the next epoch",
}


def epochs_of(intervals: Sequence[Interval]) -> list[list[Interval]]:
    """The calls of each epoch, the first step of the next one included; the last has no next."""
    first_steps = [
        i
        for i, interval in enumerate(intervals)
        if interval.label == "step" and (i == 0 or intervals[i - 1].label == "forward")
    ]
    return [list(intervals[begin : end + 1]) for begin, end in pairwise(first_steps)]


def describe(phases: Iterable[tuple[str, float, float]]) -> list[list[str]]:
    """Rows of the table: phase, idle and whole seconds."""
    return [
        [phase, f"{1e3 * idle:.0f}", f"{whole:.2f}", f"{idle / whole:.1%}"]
        for phase, idle, whole in phases
    ]


def measure_training(args: argparse.Namespace, device: FakeDevice, fake_step: type) -> list:
    """Rows of the frozen prefix and of the epochs of the second stage."""
    from densenet_flax.common.sharding import make_mesh
    from densenet_flax.models import frontier
    from densenet_flax.models.init import init_variables
    from densenet_flax.storage.checkpoint import Checkpoints
    from densenet_flax.storage.workdir import Workdir
    from densenet_flax.training.progress import TrainProgress
    from densenet_flax.training.stage import Stage
    from densenet_flax.training.trainer import Trainer

    class FakeTrainer(Trainer):
        def _train_step(self, stage, variables):
            return fake_step(
                self.model,
                stage,
                variables,
                self.mesh,
                seed=self.seed,
                earlier=self._earlier_frontiers(stage),
            )

    model = network(args)
    data, split = drawn_data(args)
    stages = [
        Stage("head", frontier.resolve("head", model.blocks), args.batches),
        Stage(
            "tail",
            frontier.resolve(args.unfreeze_from, model.blocks),
            args.batches * (args.epochs + 1),
        ),
    ]
    with tempfile.TemporaryDirectory() as folder:
        workdir = Workdir(folder)
        trainer = FakeTrainer(
            model=model,
            stages=stages,
            dataset=data,
            split=split,
            checkpoints=Checkpoints(Path(folder) / "checkpoints"),
            mesh=make_mesh(),
            batch_size=args.batch,
            seed=0,
            cache=args.cache,
            cache_directory=Path(folder) / "features",
            log_every=args.log_every,
            write_metrics=workdir.metrics_writer(tensorboard=False),
            write_timing=workdir.timing_writer(),
        )
        trainer.run(init_variables(model, 0), TrainProgress())
    intervals = device.take()
    first_step = next(i for i, interval in enumerate(intervals) if interval.label == "step")
    prefix = intervals[1:first_step]  # without the compilation of the first
    rows = []
    if len(prefix) > 1:
        idle = idle_by_phase(prefix, {("forward", "forward"): "frozen prefix"})
        rows += describe(
            [("frozen prefix", idle["frozen prefix"], prefix[-1].end - prefix[0].start)]
        )
    # The first epoch of the stage compiles, and the last one ends with the run.
    epochs = epochs_of(intervals[first_step:])[2:]
    idle = [idle_by_phase(epoch, EPOCH_PHASES) for epoch in epochs]
    whole = sum(epoch[-1].start - epoch[0].start for epoch in epochs) / len(epochs)
    phases = [(name, sum(i[name] for i in idle) / len(idle), whole) for name in idle[0]]
    phases.append(("**an epoch**", sum(seconds for _, seconds, _ in phases), whole))
    return rows + describe(phases)


def measure_steps(args: argparse.Namespace, device: FakeDevice, fake_step: type) -> list:
    """A row of steps on one batch, which shows what part of the rest is due to the fake device."""
    from densenet_flax.common.sharding import make_mesh
    from densenet_flax.models import frontier
    from densenet_flax.models.init import init_variables
    from densenet_flax.training.stage import Stage

    model, mesh = network(args), make_mesh()
    at = frontier.resolve(args.unfreeze_from, model.blocks)
    step = fake_step(model, Stage("tail", at, 1000), init_variables(model, 0), mesh, seed=0)
    batch = random_batch(model, at.cut, args.batch, args.pixels, mesh)
    state = step.init(0)
    for _ in range(args.batches):
        state, metrics = step.run_step(state, batch)
    float(metrics["loss"])
    intervals = device.take()[1:]
    name = "steps on one batch and nothing else"
    idle = idle_by_phase(intervals, {("step", "step"): name})
    return describe([(name, idle[name], intervals[-1].end - intervals[0].start)])


def measure_prediction(args: argparse.Namespace, device: FakeDevice) -> list:
    """Rows of the evaluation's prediction, of the classifier, and of files to a table."""
    from PIL import Image

    from densenet_flax.common.sharding import replicate
    from densenet_flax.inference.batch.image_files import find_images
    from densenet_flax.inference.batch.outputs import OutputOptions
    from densenet_flax.inference.batch.predict_files import predict_files
    from densenet_flax.inference.classifier import Classifier
    from densenet_flax.inference.dataset_predictions import predict_probabilities
    from densenet_flax.models.init import init_variables
    from densenet_flax.weights.info import WeightsInfo

    model = network(args)
    data, split = drawn_data(args)
    variables = init_variables(model, 0)
    info = WeightsInfo.of(model, class_names=data.class_names)
    size = (args.pixels, args.pixels)
    classifier = Classifier(variables, info, image_size=size, batch_size=args.batch)
    on_device = replicate(variables, classifier.network.mesh)
    images = np.asarray(data.images)
    few = images[: 20 * args.batch]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "tiles").mkdir()
        for i, image in enumerate(few):
            Image.fromarray(image).save(folder / "tiles" / f"{i:05d}.png")
        files = find_images(str(folder / "tiles"))
        outputs = OutputOptions(folder / "table.csv", embeddings=folder / "features.npy")
        calls: dict[str, Callable[[], object]] = {
            "prediction of the test images": lambda: predict_probabilities(
                classifier.network, on_device, data, split.train, args.batch
            ),
            "Classifier.predict": lambda: classifier.predict(few),
            "image files to a table": lambda: predict_files(classifier, files, outputs),
        }
        rows = []
        for name, call in calls.items():
            call()
            if name.endswith("table"):
                for path in (outputs.output, outputs.embeddings):
                    path.unlink()
            device.take()
            call()
            intervals = device.take()
            idle = idle_by_phase(intervals, {("forward", "forward"): name})
            rows += describe([(name, idle[name], intervals[-1].end - intervals[0].start)])
    return rows


def network(args: argparse.Namespace) -> Any:
    """The network, whose parameters are real and whose arithmetic is not."""
    from densenet_flax.models.densenet import NETWORKS

    return NETWORKS[args.network](num_classes=2, hidden=(256,), dropout=0.5)


def drawn_data(args: argparse.Namespace) -> tuple[Any, Any]:
    """Random images, as many as give the batches, and a split of them."""
    from densenet_flax.data.dataset import Dataset
    from densenet_flax.data.splits.split import Split, SplitPolicy

    train, validation = args.batches * args.batch, args.validation_batches * args.batch
    n, rng = train + validation, np.random.default_rng(0)
    files = np.array([f"{i:06d}.png" for i in range(n)])
    data = Dataset(
        images=rng.integers(0, 256, (n, args.pixels, args.pixels, 3), np.uint8),
        labels=np.arange(n, dtype=np.int32) % 2,
        class_names=("benign", "malignant"),
        files=files,
        groups={"patient": files},
        name="random images",
        fingerprint="",
    )
    rows = np.arange(n)
    policy = SplitPolicy("random", "patient")
    return data, Split(rows[:train], rows[train:], rows[:0], files, policy, {})


def main() -> None:
    """Measures all phases and prints a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--network", default="densenet201", help="whose parameters are kept (%(default)s)")
    add("--unfreeze_from", default="300", help="of the second stage (%(default)s)")
    add("--step_ms", type=float, default=10, help="of a training step (%(default)s)")
    add("--segment_ms", type=float, default=5, help="of each segment forward (%(default)s)")
    add("--batches", type=int, default=160, help="of an epoch (%(default)s)")
    add("--validation_batches", type=int, default=20, help="(%(default)s)")
    add("--batch", type=int, default=32, help="images (%(default)s)")
    add("--pixels", type=int, default=64, help="(%(default)s)")
    add("--epochs", type=int, default=4, help="that are measured (%(default)s)")
    add("--cache", default="memory", help="where features are kept (%(default)s)")
    add("--log_every", type=int, default=10, help="steps between lines of metrics (%(default)s)")
    args = parser.parse_args()

    import logging

    import jax

    logging.getLogger("absl").setLevel(logging.ERROR)
    device = FakeDevice()
    fake_step = fake_network(device, args.step_ms, args.segment_ms)
    rows = measure_steps(args, device, fake_step) + measure_training(args, device, fake_step)
    rows += measure_prediction(args, device)
    print(markdown(["phase", "device idle, ms", "of, s", "share"], rows))
    print(f"\nGoal: an epoch below {GOAL:.0%}. jax {jax.__version__}, {time.strftime('%Y-%m-%d')}")


if __name__ == "__main__":
    from densenet_flax.common.host_memory import tuned_host

    with tuned_host():
        main()
