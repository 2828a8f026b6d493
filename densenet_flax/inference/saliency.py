"""Where a network found what speaks for a class: class-activation maps, and a check of them.

The score that is explained is a class's logit less the mean of the other logits: adding the same
to all logits changes no probability, and so it should change no map.

CAM: Zhou et al., CVPR 2016. Grad-CAM: Selvaraju et al., ICCV 2017. The check by randomising the
weights: Adebayo et al., "Sanity Checks for Saliency Maps", NeurIPS 2018.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy  # its parts are imported when they are first used

from densenet_flax.common.errors import InputError
from densenet_flax.common.sharding import replicate, to_host
from densenet_flax.inference.segments import SegmentedModel
from densenet_flax.models.densenet import DenseNet
from densenet_flax.models.units import param_key, select_units

Variables = Mapping[str, Any]


def next_unit(model: DenseNet, unit: str) -> str:
    """The unit after this one: what enters there is what this one hands on.

    Raises:
      InputError: it is no unit of the backbone; the message has some that are.
    """
    line = [name for name in model.units if name != "head"]
    if unit not in line:
        raise InputError(
            f"unit {unit!r}: expected a unit of the line, such as norm, {line[-2]}, pool3 or "
            f"conv2_block1; the last is {line[-1]}"
        )
    return model.units[model.units.index(unit) + 1]


def is_cam(model: DenseNet, unit: str) -> bool:
    """Whether maps of this unit are CAMs, parts of the score itself, or a linearisation of it."""
    return unit == "norm" and not model.hidden


def saliency_maps(
    pipeline: SegmentedModel,
    variables: Variables,
    images: Any,
    target: Any,
    *,
    unit: str = "norm",
    entering: Any = None,
) -> np.ndarray:
    """What each place of an image adds to the score of a class.

    At the last unit with a linear head that is exact: the mean of a map, plus the biases, is the
    score. Elsewhere it is Grad-CAM: the unit's channels, weighted by the sum over places of the
    score's gradient. Signs are kept, so that places that speak against the class are negative;
    Grad-CAM as published shows what is positive.

    Args:
      pipeline: the compiled network; it is cut before 'norm', and should be at `next_unit(unit)`
        if that lies further up.
      variables: of the whole network, on the devices.
      images: uint8 [N, H, W, 3], on the devices.
      target: int [N], which class.
      unit: of the backbone, whose channels are weighed.
      entering: what enters at 'norm', if it is known; spares running the network for unit 'norm'.

    Returns:
      float32 [N, h, w], at the resolution of the unit.

    Raises:
      InputError: there is no such unit.
    """
    model, after = pipeline.model, next_unit(pipeline.model, unit)
    start = "norm" if unit == "norm" else after
    x = entering
    if x is None or unit != "norm":
        if start not in pipeline.cuts:
            pipeline = SegmentedModel(
                model,
                pipeline.mesh,
                cuts=[*pipeline.cuts, start],
                preprocessing=pipeline.preprocessing,
            )
        x = pipeline.run(variables, images, stop=start)
    units = model.units[model.units.index(start) :]
    part = {name: select_units(tree, units) for name, tree in variables.items()}
    target = jnp.asarray(target, jnp.int32)
    return to_host(_maps(model, part, x, target, start=start, after=after))


@functools.partial(jax.jit, static_argnames=("model", "start", "after"))
def _maps(model: DenseNet, variables, x, target, *, start: str, after: str) -> jax.Array:
    if start != after:  # the last norm itself, which is not part of what is weighed
        x = model.apply(variables, x, start=start, stop=after)
    x = x.astype(jnp.float32)
    if after == "head" and not model.hidden:
        kernel = variables["params"]["head"]["predictions"]["kernel"]  # [C, K]
        contrast = _contrast(target, model.num_classes)
        return jnp.einsum("nhwc,ck,nk->nhw", x, kernel, contrast, precision="highest")

    def score(features: jax.Array) -> jax.Array:
        logits: Any = model.apply(variables, features, start=after)
        return jnp.sum(logits * _contrast(target, model.num_classes))

    weight = jax.grad(score)(x).sum(axis=(1, 2))
    return jnp.einsum("nhwc,nc->nhw", x, weight, precision="highest")


def _contrast(target: jax.Array, classes: int) -> jax.Array:
    """[N, K]: times logits, the target's less the mean of the others."""
    if classes == 1:  # one output that says yes or no
        return jnp.where(target == 1, 1.0, -1.0)[:, None]
    chosen = jax.nn.one_hot(target, classes)
    return chosen - (1 - chosen) / (classes - 1)


def shuffle_weights(variables: Variables, units: Sequence[str], seed: int = 0) -> dict[str, Any]:
    """The same network with the numbers of each tensor of these units put in random order.

    What was learned is gone, while sizes and spreads stay those that the layers work with.
    """
    keys = {param_key(unit) for unit in units}
    rng = np.random.default_rng(seed)

    def shuffle(path: tuple[Any, ...], leaf: Any) -> Any:
        if path[0].key not in keys:
            return leaf
        values = np.asarray(leaf)
        return rng.permutation(values.reshape(-1)).reshape(values.shape)

    return {
        name: jax.tree_util.tree_map_with_path(shuffle, dict(tree))
        for name, tree in variables.items()
    }


def cascading_units(model: DenseNet) -> list[tuple[str, tuple[str, ...]]]:
    """From the head down to the stem, a dense stage at a time: (name, units random so far)."""
    groups: dict[str, list[str]] = {"head": ["head"]}
    for unit in reversed([name for name in model.units if name != "head"]):
        stage = unit.partition("_block")[0]
        if unit == "norm" or unit.startswith("pool"):
            stage = f"conv{len(model.blocks) + 1}" if unit == "norm" else f"conv{unit[4:]}"
        groups.setdefault(stage, []).append(unit)
    found: list[tuple[str, tuple[str, ...]]] = []
    so_far: tuple[str, ...] = ()
    for name, units in groups.items():
        so_far = (*so_far, *units)
        found.append((name, so_far))
    return found


def mean_rank_correlation(a: np.ndarray, b: np.ndarray) -> float | None:
    """Mean over images of Spearman's rank correlation of two maps [N, h, w].

    A map that is the same everywhere ranks nothing and counts as 0; None if a map is one place.
    """
    if a[0].size < 2:
        return None
    found = []
    for one, other in zip(a, b, strict=True):
        flat = not np.ptp(one) > 0 or not np.ptp(other) > 0  # not finite either
        found.append(0.0 if flat else scipy.stats.spearmanr(one, other, axis=None).statistic)
    return float(np.mean(found))


def sanity_check(
    pipeline: SegmentedModel,
    variables: Variables,
    images: Any,
    target: np.ndarray,
    maps: np.ndarray,
    *,
    unit: str = "norm",
    seed: int = 0,
) -> dict[str, float | None]:
    """How alike maps stay when weights are made random from the head downwards.

    An explanation of what was learned has to change. Correlations near 0 at the end are good news;
    a high one says that the maps show the image, an edge filter for one, and not the network.

    Args:
      pipeline: as for `saliency_maps`.
      variables: of the whole network.
      images: as for `saliency_maps`.
      target: as for `saliency_maps`.
      maps: what `saliency_maps` gave.
      unit: as for `saliency_maps`.
      seed: of the random order.

    Returns:
      For each dense stage, in this order, the mean rank correlation with `maps` once all from the
      head down to it is random; None where a map is one place and ranks nothing.
    """
    found = {}
    for name, units in cascading_units(pipeline.model):
        shuffled = replicate(shuffle_weights(variables, units, seed), pipeline.mesh)
        others = saliency_maps(pipeline, shuffled, images, target, unit=unit)
        found[name] = mean_rank_correlation(maps, others[: len(maps)])
    return found
