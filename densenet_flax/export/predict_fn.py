"""The function that exported files compute: from images to probabilities and a decision.

It is `Classifier.predict` without decoding, stain normalization and resizing, in float32 throughout
and traceable by JAX. `stablehlo` traces it; `onnx_graph` follows it step by step.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias, TypedDict, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from densenet_flax.common.trees import Variables
from densenet_flax.evaluation.metrics.calibrators import Knots
from densenet_flax.evaluation.metrics.operating_point import OperatingPoint
from densenet_flax.inference.classifier import Classifier
from densenet_flax.inference.ensemble import Ensemble
from densenet_flax.inference.tta import num_views, symmetric_views
from densenet_flax.models.preprocessing import preprocess_input


class Outputs(TypedDict, total=False):
    """The outputs of an exported file, for N images and K classes; some files have not all."""

    probability: Float[Array | np.ndarray, "N K"]
    calibrated: Float[Array | np.ndarray, "N K"]
    decision: Int[Array | np.ndarray, "N *classes"]  # [N, K], 0 or 1, of independent classes


# An exported file that was loaded.
PredictFn: TypeAlias = Callable[[UInt8[np.ndarray, "N H W 3"]], Outputs]


def predict_fn(
    classifier: Classifier, variables: Variables, images: UInt8[Array, "N H W 3"]
) -> Outputs:
    """Computes probabilities, calibrated probabilities and decisions in float32.

    Args:
      classifier: the network and its settings.
      variables: those of the network.
      images: as `Classifier.prepare` returns them; N may be symbolic.
    """
    point = classifier.operating_point
    log_probability = _log_probability(classifier, variables, images)
    probability = jnp.exp(log_probability)
    if classifier.is_multilabel:
        probability = probability[..., 1]
        decision = probability >= 0.5
    elif probability.shape[-1] == 2:
        decision = probability[:, 1] >= jnp.float32(point.threshold)
    else:
        decision = log_probability.argmax(axis=-1)
    calibrated = _calibrate(point, log_probability)
    if classifier.is_multilabel:
        calibrated = calibrated[..., 1]
    decision = decision.astype(jnp.int32)
    return {"probability": probability, "calibrated": calibrated, "decision": decision}


def _calibrate(
    point: OperatingPoint, log_probability: Float[Array, "N *K"]
) -> Float[Array, "N *K"]:
    """`OperatingPoint.calibrate` of all classes, from the logarithms of their probabilities."""
    if point.knots:
        steps = Steps.of(point.knots)
        passed = (jnp.exp(log_probability[:, 1:]) - steps.start) / steps.width
        positive = steps.first + jnp.clip(passed, 0, 1) @ steps.rise
        return jnp.stack([1 - positive, positive], axis=-1)
    # Temperature scaling divides logits; log-probabilities differ from them by a constant per row.
    scores = log_probability / jnp.float32(point.temperature)
    if point.shift:
        scores += jnp.array([0, point.shift], jnp.float32)
    return jax.nn.softmax(scores, axis=-1)


class Steps(NamedTuple):
    """A calibration by isotonic regression as a sum of steps: `interp` is in no format of files.

    Attributes:
      first: the lowest calibrated probability.
      start, width, rise: of each step: the probability where it begins, over how much it rises, and
        how far.
    """

    first: np.float32
    start: Float[np.ndarray, " S"]
    width: Float[np.ndarray, " S"]
    rise: Float[np.ndarray, " S"]

    @classmethod
    def of(cls, knots: Knots) -> "Steps":
        """The steps between knots, in float32."""
        # At least one step, also where there is a single knot.
        before, after = np.transpose((*knots, knots[-1])).astype(np.float32)
        # Knots that are one number in float32 make a step without a width.
        width = np.maximum(np.diff(before), np.finfo(np.float32).tiny)
        return cls(after[0], before[:-1], width, np.diff(after))


def _log_probability(
    classifier: Classifier, variables: Variables, images: UInt8[Array, "N H W 3"]
) -> Float[Array, "N *K"]:
    """The logarithms of the network's own probabilities, or of those of an ensemble."""
    if isinstance(classifier, Ensemble):
        own = zip(classifier.members, variables.values(), strict=True)
        scores = jnp.stack([_log_probability(member, part, images) for member, part in own])
        weights = np.array(classifier.combination.weights, np.float32)[:, None, None]
        if classifier.combination.combine == "probabilities":
            return jax.nn.logsumexp(scores, axis=0, b=weights)
        return jax.nn.log_softmax((weights * scores).sum(axis=0), axis=-1)
    info = classifier.info
    x = symmetric_views(images) if classifier.tta else images
    x = preprocess_input(x, info.preprocessing)
    # One program is lowered for CPU, CUDA, ROCm and TPU at once, and the fused kernels are made for
    # a CPU: the default, which this machine's backend decides, would put them into all four.
    model = classifier.model.clone(implementation="reference")
    logits = cast(Array, model.apply(variables, x))
    if classifier.is_multilabel:  # each output decides between a class and its absence
        logits = logits[..., None]
    if info.num_classes == 1 or classifier.is_multilabel:  # two logits that differ by the output
        logits = jnp.concatenate([jnp.zeros_like(logits), logits], axis=-1)
    # Logarithms do not underflow in float32 where the network is sure.
    log_probability = jax.nn.log_softmax(logits, axis=-1)
    if classifier.tta:
        views = num_views(images.shape[1:3])
        by_image = log_probability.reshape(-1, views, *log_probability.shape[1:])
        log_probability = jax.nn.logsumexp(by_image, axis=1) - jnp.log(jnp.float32(views))
    return log_probability
