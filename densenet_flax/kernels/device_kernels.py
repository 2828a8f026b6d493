"""Which kernels compute the network on which kind of device."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence

from flax import linen as nn
from jaxtyping import Array, Float

from densenet_flax.kernels import convolution, pooling
from densenet_flax.kernels.convolution import conv2d
from densenet_flax.kernels.normalization import (
    MeanVar,
    mean_var,
    mean_var_one_pass,
    norm_relu,
)
from densenet_flax.kernels.parts import concatenate_parts


@dataclasses.dataclass(frozen=True)
class LayerKernels:
    """Operations of one dense layer, whose input is a list of parts.

    Attributes:
      norm_relu: the first norm and ReLU of all parts; see `normalization.norm_relu`.
      max_parts: how many parts a layer reads at most; then all but the first are concatenated.
    """

    norm_relu: Callable[[Sequence[Array], Array, Array, MeanVar, float], Array]
    max_parts: int = 8

    def conv1x1_affine_relu(
        self,
        x: Float[Array, "N H W C"],
        kernel: Float[Array, "1 1 C K"],
        factor: Float[Array, " K"],
        shift: Float[Array, " K"],
    ) -> Float[Array, "N H W K"]:
        """Computes ReLU(y · factor + shift) of a 1×1 convolution y, with the factor in its kernel.

        So the norm is no pass of its own: a convolution adds a shift and applies ReLU for free.
        """
        y = conv2d(x, kernel * factor)
        return nn.relu(y + shift.astype(y.dtype))

    def concatenate(self, parts: Sequence[Float[Array, "N H W _"]]) -> Float[Array, "N H W C"]:
        """Concatenates parts that many layers will read."""
        return concatenate_parts(parts)


@dataclasses.dataclass(frozen=True)
class Kernels:
    """Operations of the network; each computes what its plain form in `models` does.

    Attributes:
      mean_var: batch statistics of features, given the examples' weights and running means.
      stem_conv: 7×7 convolution of stride 2.
      max_pool: of the stem; see `pooling.max_pool`.
      conv1x1_avg_pool: of a transition; see `pooling.conv1x1_avg_pool`.
      layer: those of a dense layer; None if dense blocks are computed by `dense_block`.
      remat: what `DenseNet.remat` is by default.
    """

    mean_var: Callable[[Array, Array | None, Array], MeanVar]
    stem_conv: Callable[[Array, Array], Array]
    max_pool: Callable[[Array], Array]
    conv1x1_avg_pool: Callable[[Array, Array], Array]
    layer: LayerKernels | None
    remat: str


CPU = Kernels(
    mean_var=lambda x, weight, _: mean_var(x, weight),
    stem_conv=convolution.stem_conv,
    max_pool=pooling.max_pool,
    conv1x1_avg_pool=pooling.conv1x1_avg_pool,
    layer=None,
    remat="bottleneck",
)
# What each choice is worth stands in docs/benchmarks.md.
_LAYER = LayerKernels(norm_relu)
GPU = Kernels(
    mean_var=mean_var_one_pass,
    stem_conv=convolution.stem_conv,
    max_pool=pooling.max_pool_by_windows,
    conv1x1_avg_pool=pooling.avg_pool_conv1x1,
    layer=_LAYER,
    remat="none",
)
TPU = dataclasses.replace(
    GPU,
    stem_conv=convolution.stem_conv_by_squares,
    layer=dataclasses.replace(
        _LAYER, norm_relu=functools.partial(norm_relu, concatenate_first=True)
    ),
)
KERNELS: Mapping[str, Kernels | None] = {"reference": None, "fused": CPU, "gpu": GPU, "tpu": TPU}
