"""Saliency maps: which regions of an image are evidence for a class, and a test of the maps.

The score S of a class is its logit minus the mean of the other logits. A constant added to all
logits changes no probability; with this contrast it changes no map either.

A map is a weighted sum over the channels c of one unit's output A,

    map[h, w] = Σ_c  weight[c] · A[h, w, c]

with the weights of one of two methods:

* **CAM** (Zhou et al., "Learning Deep Features for Discriminative Localization", CVPR 2016) at the
  last unit, 'norm', of a network with a linear head: the head's kernel, contrasted as S is. It is
  exact: the mean of the map over all positions, plus the contrasted bias, is S.
* **Grad-CAM** (Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via
  Gradient-based Localization", ICCV 2017) everywhere else: the sum over all positions of ∂S/∂A.
  It differs from the publication twice: the sum replaces the mean, so that the two methods agree
  where both exist; and there is no ReLU, so that positions which lower the score are negative.

(HiResCAM would multiply ∂S/∂A and A at each position before it sums over channels.)

The test is the cascading randomization of Adebayo et al., "Sanity Checks for Saliency Maps",
NeurIPS 2018: maps that explain what was learned change when the weights are shuffled.
"""

import functools
import itertools
from collections.abc import Sequence
from typing import TypeAlias, cast

import jax
import jax.numpy as jnp
import numpy as np
import scipy  # its parts are imported when they are first used
from jaxtyping import Array, Float, Int, UInt8

from densenet_flax.common.errors import InputError
from densenet_flax.common.sharding import replicate, to_host
from densenet_flax.common.trees import PyTree, Variables
from densenet_flax.inference.segments import SegmentedModel
from densenet_flax.models.densenet import DenseNet
from densenet_flax.models.units import param_key, select_units

Maps: TypeAlias = Float[np.ndarray, "N h w"]


def next_unit(model: DenseNet, unit: str) -> str:
    """Name of the unit that takes the output of this one; InputError if there is none."""
    backbone = [name for name in model.units if name != "head"]
    if unit not in backbone:
        raise InputError(
            f"unit {unit!r}: expected a unit of the backbone, such as norm, {backbone[-2]}, pool3 "
            f"or conv2_block1; the last is {backbone[-1]}"
        )
    return model.units[model.units.index(unit) + 1]


def is_cam(model: DenseNet, unit: str) -> bool:
    """Whether maps of this unit are CAMs, exact parts of the score, or else Grad-CAMs."""
    return unit == "norm" and not model.hidden


def saliency_maps(
    segmented: SegmentedModel,
    variables: Variables,
    images: UInt8[Array, "N H W 3"] | None,
    target: Int[Array | np.ndarray, "N"],
    *,
    unit: str = "norm",
    norm_input: Float[Array, "N h w C"] | None = None,
) -> Maps:
    """Computes the contribution of each position to the score of a class, as the module defines it.

    Args:
      segmented: the compiled network; a cut at `next_unit(unit)` saves a compilation.
      variables: those of the whole network, on the devices.
      images: on the devices; not needed where `norm_input` is given and used.
      target: index of the class to explain, for each image.
      unit: name of a unit of the backbone, whose output channels are weighted; InputError for any
        other.
      norm_input: the input of the last norm, if it is known; for unit 'norm' the backbone then
        does not run again.

    Returns:
      float32, at the resolution of the unit: positive where a position is evidence for the class,
      negative where it lowers the score.
    """
    model, after = segmented.model, next_unit(segmented.model, unit)
    # The last norm runs in `_weighted_channels`, because its input is what callers have at hand.
    start = "norm" if unit == "norm" else after
    x = norm_input if unit == "norm" else None
    if x is None:
        assert images is not None, "expected images, or norm_input and unit 'norm'"
        x = segmented.with_cut(start).run(variables, images, stop=start)
    units = model.units[model.units.index(start) :]
    selected = {name: select_units(tree, units) for name, tree in variables.items()}
    target = jnp.asarray(target, jnp.int32)
    return to_host(_weighted_channels(model, selected, x, target, start=start, after=after))


@functools.partial(jax.jit, static_argnames=("model", "start", "after"))
def _weighted_channels(
    model: DenseNet,
    variables: Variables,
    x: Float[Array, "N h w C"],
    target: Int[Array, "N"],
    *,
    start: str,
    after: str,
) -> Float[Array, "N h w"]:
    """The maps of the unit before `after`, from the input of `start`."""
    if start != after:
        x = cast(Array, model.apply(variables, x, start=start, stop=after))
    x = x.astype(jnp.float32)
    factors = contrast(target, model.num_classes)
    if after == "head" and not model.hidden:
        kernel = variables["params"]["head"]["predictions"]["kernel"]  # [C, K]
        # By default sums are in bfloat16 on a TPU and in TF32 on a GPU.
        return jnp.einsum("nhwc,ck,nk->nhw", x, kernel, factors, precision="highest")

    def total_score(features: Float[Array, "N h w C"]) -> Float[Array, ""]:
        logits = cast(Array, model.apply(variables, features, start=after))
        return jnp.sum(logits * factors)

    # In inference mode the images do not mix: the gradient of the sum is that of each score.
    weight = jax.grad(total_score)(x).sum(axis=(1, 2))
    return jnp.einsum("nhwc,nc->nhw", x, weight, precision="highest")


def contrast(target: Int[Array | np.ndarray, "N"], outputs: int) -> Float[Array, "N outputs"]:
    """Coefficients that make the score S of the target from the logits."""
    if outputs == 1:  # the logit of P(positive): the other class has its negative
        return jnp.where(target == 1, 1.0, -1.0)[:, None]
    chosen = jax.nn.one_hot(target, outputs)
    return chosen - (1 - chosen) / (outputs - 1)


def shuffle_weights(variables: Variables, units: Sequence[str], seed: int = 0) -> Variables:
    """Puts the values of each tensor of these units in random order."""
    # What was learned is lost, while every tensor keeps its values, so activations keep scales that
    # the layers work with. (Adebayo et al. draw new initial values.)
    keys = {param_key(unit) for unit in units}
    rng = np.random.default_rng(seed)

    def shuffle(path: tuple[jax.tree_util.DictKey, ...], leaf: PyTree) -> PyTree:
        if path[0].key not in keys:
            return leaf
        values = np.asarray(leaf)
        return rng.permutation(values.reshape(-1)).reshape(values.shape)

    shuffle_tree = functools.partial(jax.tree_util.tree_map_with_path, shuffle)
    return {name: shuffle_tree(dict(tree)) for name, tree in variables.items()}


def cascading_units(model: DenseNet) -> list[tuple[str, tuple[str, ...]]]:
    """The steps of a cascading randomization: their names, and all units shuffled by then.

    A step is 'head', a dense block with the norm or transition after it ('conv5', …, 'conv2'), or
    'stem'.
    """
    groups: dict[str, tuple[str, ...]] = {}
    for unit in reversed(model.units):
        group = unit.partition("_block")[0].replace("pool", "conv")
        if unit == "norm":
            group = f"conv{len(model.blocks) + 1}"
        groups[group] = (*groups.get(group, ()), unit)
    return list(zip(groups, itertools.accumulate(groups.values()), strict=True))


def mean_rank_correlation(maps: Maps, others: Maps) -> float | None:
    """Mean over images of Spearman's rank correlation of two maps; None of a single position."""
    if maps[0].size < 2:
        return None
    correlations = []
    for a, b in zip(maps, others, strict=True):
        # A constant map ranks no position and counts as 0, as a map with NaN does.
        varies = np.ptp(a) > 0 and np.ptp(b) > 0
        correlations.append(scipy.stats.spearmanr(a, b, axis=None).statistic if varies else 0.0)
    return float(np.mean(correlations))


def sanity_check(
    segmented: SegmentedModel,
    variables: Variables,
    images: UInt8[Array, "N H W 3"],
    target: Int[np.ndarray, "N"],
    maps: Float[np.ndarray, "M h w"],
    *,
    unit: str = "norm",
) -> dict[str, float | None]:
    """Compares maps with those of the network whose weights are shuffled from the head down.

    Maps that explain what was learned have to change: correlations near 0 at the last step are
    good news. High ones say that the maps show the image, as an edge detector does, and not the
    network.

    Args are those of `saliency_maps`, and `maps`: what it returned, or its first M rows if the rest
    are padding.

    Returns:
      For each step of `cascading_units`, in that order, the mean rank correlation with `maps`;
      None where a map has a single position.
    """
    correlations = {}
    for name, units in cascading_units(segmented.model):
        shuffled = replicate(shuffle_weights(variables, units), segmented.mesh)
        others = saliency_maps(segmented, shuffled, images, target, unit=unit)
        correlations[name] = mean_rank_correlation(maps, others[: len(maps)])
    return correlations
