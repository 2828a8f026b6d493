"""Which kernels compute the network on which kind of device."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence

from jaxtyping import Array

from densenet_flax.kernels import convolution, pooling
from densenet_flax.kernels.normalization import MeanVar, mean_var, mean_var_one_pass, norm_relu


@dataclasses.dataclass(frozen=True)
class Kernels:
    """Operations of the network; each computes what its plain form in `models` does.

    Attributes:
      mean_var: batch statistics of features, given the examples' weights and running means.
      stem_conv: 7×7 convolution of stride 2.
      max_pool: of the stem; see `pooling.max_pool`.
      conv1x1_avg_pool: of a transition; see `pooling.conv1x1_avg_pool`.
      norm_relu: of a dense layer, whose input is a list of parts; see `normalization.norm_relu`.
        None if whole dense blocks are computed by `dense_block`.
      remat: what `DenseNet.remat` is by default.
    """

    mean_var: Callable[[Array, Array | None, Array], MeanVar]
    stem_conv: Callable[[Array, Array], Array]
    max_pool: Callable[[Array], Array]
    conv1x1_avg_pool: Callable[[Array, Array], Array]
    norm_relu: Callable[[Sequence[Array], Array, Array, MeanVar, float], Array] | None
    remat: str


CPU = Kernels(
    mean_var=lambda x, weight, _: mean_var(x, weight),
    stem_conv=convolution.stem_conv,
    max_pool=pooling.max_pool,
    conv1x1_avg_pool=pooling.conv1x1_avg_pool,
    norm_relu=None,
    remat="bottleneck",
)
# docs/design.md says what each choice is worth.
GPU = Kernels(
    mean_var=mean_var_one_pass,
    stem_conv=convolution.stem_conv,
    max_pool=pooling.max_pool_by_windows,
    conv1x1_avg_pool=pooling.avg_pool_conv1x1,
    norm_relu=norm_relu,
    remat="none",
)
TPU = dataclasses.replace(
    GPU,
    stem_conv=convolution.stem_conv_by_squares,
    norm_relu=functools.partial(norm_relu, concatenate_first=True),
)
KERNELS: Mapping[str, Kernels | None] = {"reference": None, "fused": CPU, "gpu": GPU, "tpu": TPU}
