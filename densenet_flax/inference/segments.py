"""The network in inference mode, compiled in segments that end where training stages cut it."""

import dataclasses
import functools
from collections.abc import Sequence
from itertools import pairwise
from typing import cast

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Shaped

from densenet_flax.common.trees import PyTree, Variables
from densenet_flax.models.densenet import DenseNet, global_average_pool
from densenet_flax.models.preprocessing import preprocess_input
from densenet_flax.models.units import select_units


@dataclasses.dataclass(frozen=True, eq=False)
class SegmentedModel:
    """A network as a chain of compiled segments, each from one cut to the next.

    Every stage's frozen prefix, its validation and the final evaluation are chains of the same few
    compiled functions, so none is compiled twice. Each is compiled when it first runs.

    Attributes:
      model: a network with a head.
      mesh: the devices to split batches over.
      cuts: names of the units at which segments begin. Always among them are the stem, the last
        norm, whose input the saliency maps need, and the head, whose input is the pooled features.
      preprocessing: mode of `preprocess_input`.
    """

    model: DenseNet
    mesh: Mesh
    _: dataclasses.KW_ONLY
    cuts: Sequence[str] = ()
    preprocessing: str = "torch"

    def __post_init__(self) -> None:
        """Adds the cuts that are always there, and brings all into the order of the network."""
        cuts = {*self.cuts, "stem", "norm", "head"}
        object.__setattr__(self, "cuts", tuple(unit for unit in self.model.units if unit in cuts))

    def with_cut(self, unit: str) -> "SegmentedModel":
        """The same network with one more cut; segments that end elsewhere stay compiled."""
        return self if unit in self.cuts else dataclasses.replace(self, cuts=(*self.cuts, unit))

    def run(
        self,
        variables: Variables,
        x: Shaped[Array, "N ..."],
        *,
        start: str = "stem",
        stop: str | None = None,
    ) -> Shaped[Array, "N ..."]:
        """Runs the network from one cut to another.

        Args:
          variables: those of the units that run; may hold more.
          x: the input of `start`, NumPy arrays included: uint8 images `[N, H, W, 3]` at the stem,
            pooled features `[N, C]` at the head, else feature maps `[N, h, w, C]`.
          start: a cut.
          stop: a later cut, which does not run; None runs to the end.

        Returns:
          The input of `stop`; logits `[N, num_classes]` if that is None.
        """
        ends = (*self.cuts, None)  # None is the end of the network
        mode = self.preprocessing
        for begin, end in pairwise(ends[ends.index(start) : ends.index(stop) + 1]):
            assert begin is not None
            used = self._select(variables, begin, end)
            x = run_segment(self.model, used, x, start=begin, stop=end, preprocessing=mode)
        return x

    def input_spec(self, cut: str, image_shape: Sequence[int]) -> jax.ShapeDtypeStruct:
        """Shape and dtype of the input of a cut after the stem, for images `[N, H, W, 3]`."""
        dtype = np.float32 if cut == "head" else self.model.dtype
        return jax.ShapeDtypeStruct(self.model.input_shape(cut, image_shape), np.dtype(dtype))

    def _select(self, variables: Variables, begin: str, end: str | None) -> dict[str, PyTree]:
        units = self.model.units
        units = units[units.index(begin) : units.index(end) if end else None]
        # Only what the segment uses: jit looks at every leaf of its arguments in every call.
        return {name: select_units(tree, units) for name, tree in variables.items()}


# Not a method: segments of equal arguments share one compilation, whichever object runs them.
@functools.partial(jax.jit, static_argnames=("model", "start", "stop", "preprocessing"))
def run_segment(
    model: DenseNet,
    variables: Variables,
    x: Shaped[Array, "N ..."],
    *,
    start: str,
    stop: str | None,
    preprocessing: str,
) -> Shaped[Array, "N ..."]:
    """One segment of `SegmentedModel.run`, from `start` to `stop`; the head's input is pooled."""
    if start == "stem":
        x = preprocess_input(x, preprocessing)
    y = cast(Array, model.apply(variables, x, start=start, stop=stop))
    return global_average_pool(y) if stop == "head" else y
