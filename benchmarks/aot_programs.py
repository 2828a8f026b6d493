"""The programs of `ahead_of_time.py`, traced for devices that this machine does not have."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh

from benchmarks.hlo_cost import Peaks
from benchmarks.peers import textbook
from densenet_flax.common.sharding import over_batch, replicated
from densenet_flax.inference.segments import run_segment
from densenet_flax.models import frontier
from densenet_flax.models.densenet import DenseNet
from densenet_flax.training.stage import Stage
from densenet_flax.training.train_step import TrainStep

Network = DenseNet | textbook.Textbook
# NVIDIA's data sheet of the H100 SXM5, without sparsity.
_H100 = Peaks(
    bytes_per_second=3.352e12,
    flops_per_second={"bfloat16": 989.4e12, "tensorfloat32": 494.7e12, "float32": 66.9e12},
)


@dataclasses.dataclass(frozen=True)
class Target:
    """Devices to compile for.

    Attributes:
      platform: 'tpu' or 'gpu'.
      devices: how many.
      peaks: of one; None where XLA estimates cycles.
    """

    platform: str
    devices: int
    peaks: Peaks | None = None

    def mesh(self) -> Mesh:
        """A mesh over them, along which batches are split."""
        if self.platform == "tpu":  # the smallest topology of a v5e that libtpu accepts
            topology = topologies.get_topology_desc("v5e:2x2", "tpu")
        else:
            description = Path(__file__).with_name("h100.txtpb").read_text()
            topology = topologies.get_topology_desc(
                platform="cuda", topology=f"1x1x{self.devices}", target_config=description
            )
        devices: Any = np.array(topology.devices[: self.devices])
        return Mesh(devices, ("data",), axis_types=(AxisType.Auto,))


TARGETS = {
    "v5e": Target("tpu", 1),
    "v5e-4": Target("tpu", 4),
    "h100": Target("gpu", 1, _H100),
    "h100-4": Target("gpu", 4, _H100),
}


@dataclasses.dataclass(frozen=True)
class Case:
    """One program to compile.

    Attributes:
      target: a key of `TARGETS`.
      network: 'textbook'; 'ours', as it is on the target; or another `implementation` of ours.
      program: 'forward', images to logits; a segment, 'conv4_block5:conv4_block9', in inference
        mode, or with ':train' behind it in training mode with the gradients of all that enters it;
        else what a training step unfreezes, as in `config.stages`: 'head', '300', 'all'.
      dtype: of the network.
      batch: images, of all devices together.
      blocks: layers of each dense block.
      image_size: height and width.
      remat: see `DenseNet.remat`; None for the default.
    """

    target: str
    network: str
    program: str
    dtype: str
    batch: int
    blocks: tuple[int, ...] = (6, 12, 48, 32)
    image_size: int = 224
    remat: str | None = None

    def trace(self) -> jax.stages.Traced:
        """Traces the program for the target's devices."""
        target = TARGETS[self.target]
        # The package asks for the default backend where a choice depends on the device.
        with mock.patch.object(jax, "default_backend", lambda: target.platform):
            return _Tracer(self, target.mesh()).trace()


@dataclasses.dataclass(frozen=True)
class _Tracer:
    case: Case
    mesh: Mesh

    def trace(self) -> jax.stages.Traced:
        program = self.case.program
        ours = self.case.network != "textbook"
        if ":" in program:
            return self._segment(*program.split(":"))
        if program == "forward":
            return self._forward() if ours else self._textbook_forward()
        unfreeze = frontier.resolve(program, self.case.blocks)
        return self._step(unfreeze) if ours else self._textbook_step(unfreeze)

    @functools.cached_property
    def network(self) -> Network:
        case, dtype = self.case, jnp.dtype(self.case.dtype)
        if case.network == "textbook":
            return textbook.Textbook(case.blocks, dtype)
        return self._ours(implementation=None if case.network == "ours" else case.network)

    def _ours(self, **options: Any) -> DenseNet:
        case = self.case
        head = {"num_classes": 2, "hidden": (256,), "dropout": 0.5}
        dtype = jnp.dtype(case.dtype)
        return DenseNet(case.blocks, dtype=dtype, remat=case.remat, **head, **options)  # type: ignore[arg-type]

    def _place(self, tree: Any) -> Any:
        """The shapes of a tree, whole on every device."""
        spec = functools.partial(jax.ShapeDtypeStruct, sharding=replicated(self.mesh))
        return jax.tree.map(lambda leaf: spec(leaf.shape, leaf.dtype), tree)

    def _rows(self, shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, jnp.dtype(dtype), sharding=over_batch(self.mesh))

    def _input(self, unit: str) -> jax.ShapeDtypeStruct:
        """What enters a unit of the network."""
        size = self.case.image_size
        images = (self.case.batch, size, size, 3)
        if unit == "stem":
            return self._rows(images, np.uint8)
        dtype = np.float32 if unit == "head" else self.case.dtype
        return self._rows(self._ours().input_shape(unit, images), dtype)

    def _variables(self, start: str | None = None, stop: str | None = None) -> Any:
        """Shapes of the variables of the units from `start` up to `stop`."""
        entering = self._input(start or "stem")
        x = jax.ShapeDtypeStruct((1, *entering.shape[1:]), jnp.float32)
        init = lambda key, x: self.network.init(key, x, start=start, stop=stop)  # noqa: E731
        return jax.eval_shape(init, jax.random.key(0), x)

    def _batch(self, cut: str) -> dict[str, jax.ShapeDtypeStruct]:
        count = (self.case.batch,)
        label, weight = self._rows(count, np.int32), self._rows(count, np.float32)
        return {"inputs": self._input(cut), "label": label, "weight": weight}

    def _forward(self) -> jax.stages.Traced:
        return run_segment.trace(
            self.network,
            self._place(self._variables()),
            self._input("stem"),
            start="stem",
            stop=None,
            preprocessing="torch",
        )

    def _textbook_forward(self) -> jax.stages.Traced:
        def forward(variables, images):
            return self.network.apply(variables, textbook.preprocess(images))

        return jax.jit(forward).trace(self._place(self._variables()), self._input("stem"))

    def _step(self, unfreeze: frontier.Frontier) -> jax.stages.Traced:
        assert isinstance(self.network, DenseNet)
        zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), self._variables())
        stage = Stage("benchmark", unfreeze, steps=1000)
        step = TrainStep(self.network, stage, zeros, self.mesh, seed=0)
        return step.trace(self._batch(unfreeze.cut))

    def _textbook_step(self, unfreeze: frontier.Frontier) -> jax.stages.Traced:
        assert isinstance(self.network, textbook.Textbook)
        variables = self._variables(unfreeze.cut)
        trained, frozen = textbook.split_variables(variables, unfreeze)
        step, optimizer = textbook.make_step(self.network, unfreeze)
        state = (trained, jax.eval_shape(optimizer.init, trained["params"]))
        key = jax.eval_shape(lambda: jax.random.key(0))
        batch = self._batch(unfreeze.cut)
        everywhere = replicated(self.mesh)
        jitted = jax.jit(step, donate_argnums=0, out_shardings=(everywhere, everywhere))
        return jitted.trace(self._place(state), self._place(frozen), batch, self._place(key))

    def _segment(self, start: str, stop: str, mode: str = "") -> jax.stages.Traced:
        variables = self._place(self._variables(start, stop))
        entering = self._input(start)
        norms: frozenset[str] = frozenset()
        weight: dict[str, Any] = {}
        if mode == "train":
            norms = frontier.resolve("all", self.case.blocks).train_norms
            if self.case.network != "textbook":
                weight["weight"] = self._rows((self.case.batch,), np.float32)
        elif mode:
            raise ValueError(f"program …:{mode}: expected ':train' or nothing behind a segment")

        def apply(variables, x, weight):
            mutable = ["mean_var", "batch_stats"]
            return self.network.apply(
                variables, x, start=start, stop=stop, train_norms=norms, mutable=mutable, **weight
            )

        function: Callable[..., Any] = apply
        if mode == "train":

            def mean_square(params, stats, x, weight):  # any loss: gradients have to come from it
                y, updated = apply({"params": params, **stats}, x, weight)
                return jnp.square(y.astype(jnp.float32)).mean(), updated

            def function(variables, x, weight):
                variables = dict(variables)
                gradient = jax.value_and_grad(mean_square, argnums=(0, 2), has_aux=True)
                return gradient(variables.pop("params"), variables, x, weight)

        return jax.jit(function).trace(variables, entering, weight)
